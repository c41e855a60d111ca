"""Memory that is too small, in whatever form a library says so: a message with what to change, not a stack trace."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager

from xft_core.errors import OutOfMemory
from xft_core.runtime.quantities import size

# What lowers the peak of a stage without changing what it computes comes first.
CHANGES = {
    "sft": "lower sft.micro_batch_size, turn on sft.gradient_checkpointing, use sft.optimizer: adafactor or sft.precision: "
           "bf16, or lower data.max_length",
    "mix": "lower merge.micro_batch_size, or use merge.precision: bf16",
    "generate": "lower generate.batch_size, use generate.precision: bf16, or lower generate.max_new_tokens",
    "lm_eval": "lower generate.batch_size, or use generate.precision: bf16",
    "nll": "use generate.precision: bf16",
    "upcycle": "lower upcycle.num_experts",
    "evaluate": "lower evaluate.workers or evaluate.memory_limit_mb",
}
# The words of torch for processor memory, of CUDA's libraries for theirs, and of the operating system.
WORDS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED", "bad_alloc")


def what_to_change(stage: str) -> str:
    """What makes ``stage`` need less memory, as a sentence for people."""
    changes = CHANGES.get(stage, "use a larger machine or a smaller model")
    return f"To need less, {changes}; `xft plan RECIPE` says what each stage takes."


@contextmanager
def out_of_memory_is_an_error(stage: str) -> Iterator[None]:
    """Turn a failed allocation, on the processor or an accelerator, into OutOfMemory."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        kind = type(error).__name__
        if not (isinstance(error, MemoryError) or kind == "OutOfMemoryError" or any(word in str(error) for word in WORDS)):
            raise
        where = "the accelerator's memory" if "CUDA" in str(error) or kind == "OutOfMemoryError" else "the memory"
        detail = (str(error).splitlines() or [""])[0].rstrip(".")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        raise OutOfMemory(
            f"{stage}: {where} is too small{': ' + detail if detail else ''}. The process itself had taken up to "
            f"{size(peak)}. {what_to_change(stage)} What was finished is kept.") from error
