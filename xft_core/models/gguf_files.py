"""Load models from a single GGUF file, quantised or not, as transformers models.

transformers reads the file and dequantises its weights: measurements use the weights in the file, in the arithmetic of
``dtype``. llama.cpp also rounds activations, so it differs slightly.
"""

import io
from contextlib import redirect_stderr
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from xft_core.errors import CheckpointError, first_line

SUFFIX = ".gguf"


def gguf_file(directory: Path) -> Path | None:
    """The directory's only GGUF file; None if it has none. Raises CheckpointError for several."""
    found = sorted(directory.glob(f"*{SUFFIX}"))
    if len(found) > 1:
        raise CheckpointError(f"{str(directory)!r} holds {len(found)} GGUF files: keep only the one that you mean.")
    return found[0] if found else None


def load_gguf(path: Path, dtype: torch.dtype) -> PreTrainedModel:
    """The model in ``path``, with dequantised weights. Raises CheckpointError if transformers cannot read it."""
    from transformers import GgufConfig

    try:
        with redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off
            model, report = AutoModelForCausalLM.from_pretrained(
                path.parent, gguf_file=path.name, dtype=dtype, quantization_config=GgufConfig(dequantize=True),
                output_loading_info=True, **_not_read_by_transformers(path))
    except Exception as error:  # each architecture fails in its own way
        raise CheckpointError(f"{str(path)!r} cannot be loaded: {first_line(error)}") from None
    vars(model.config).pop("quantization_config", None)
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{str(path)!r} lacks {len(missing)} tensors, including {missing[0]!r}.")
    return model


def _not_read_by_transformers(path: Path) -> dict[str, int]:
    """Fields of the configuration that transformers does not take from the file: it gives every qwen3 heads of 128."""
    import gguf

    head_dim = gguf.GGUFReader(path).get_field("qwen3.attention.key_length")
    return {"head_dim": int(head_dim.contents())} if head_dim else {}
