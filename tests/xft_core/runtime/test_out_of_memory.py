"""Out-of-memory errors, in the words of every library that raises them."""

import pytest
import torch

from xft_core.errors import OutOfMemory
from xft_core.recipe.steps import what_to_change
from xft_core.runtime.out_of_memory import out_of_memory_is_an_error

GPU = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB\nof which 1.2 GiB is free"


@pytest.mark.parametrize(("error", "where"), [
    (torch.OutOfMemoryError(GPU), "the accelerator's memory is too small: CUDA out of memory. Tried to allocate 20.00 GiB"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "the accelerator's memory"),
    (OSError(12, "Cannot allocate memory"), "the memory is too small"),
    (MemoryError(), r"the memory is too small\. The process"),
])
def test_each_is_a_message_with_what_to_change(error: Exception, where: str) -> None:
    with pytest.raises(OutOfMemory, match=f"sft: {where}") as caught, out_of_memory_is_an_error("sft", what_to_change("sft")):
        raise error
    message = str(caught.value)
    assert "lower sft.micro_batch_size" in message and "\n" not in message and not caught.value.may_pass


def test_a_real_allocation_of_torch() -> None:
    with (pytest.raises(OutOfMemory, match=r"To avoid this, lower generate\.batch_size"),
          out_of_memory_is_an_error("generate", what_to_change("generate"))):
        torch.empty(1 << 50)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), OSError(28, "No space left on device"), ValueError()])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, out_of_memory_is_an_error("sft", what_to_change("sft")):
        raise error
    assert caught.value is error
