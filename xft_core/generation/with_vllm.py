"""Complete prompts with vLLM, if it is installed: many times faster on a GPU, for dense models only.

vLLM does not support the architecture of the upcycled Mixture-of-Experts.
"""

import hashlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.errors import CheckpointError, RecipeError
from xft_core.generation.completer import Completer, end_tokens
from xft_core.models.config import dense_config_of, is_moe
from xft_core.models.safetensors_index import INDEX_NAME, weight_files
from xft_core.models.safetensors_io import CheckpointReader
from xft_core.recipe.sections import GenerateConfig

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}
REMEDY = "Set generate.backend: transformers"


def check_vllm(model: Path) -> None:
    """Raise RecipeError if vLLM is not installed, CheckpointError for a model that it cannot run."""
    if is_moe(model):
        raise CheckpointError(
            f"{str(model)!r} is an upcycled Mixture-of-Experts, which vLLM does not support. {REMEDY} for this model; "
            "the base, the tuned dense and the merged model can use vLLM.")
    _check_weights(model)
    if find_spec("vllm") is None:
        raise RecipeError(
            f"generate.backend is vllm, which is not installed here. {REMEDY}, or run this stage in an environment that "
            "has vLLM: docs/how-to/vllm.md says how.")


def _check_weights(model: Path) -> None:
    """Raise CheckpointError if vLLM would read other weights than every other reader: without an index, vLLM reads all weight
    files in the directory."""
    with CheckpointReader(model) as reader:
        dense_config_of(reader)
    read = weight_files(model)
    others = sorted(path.name for path in model.glob("*.safetensors") if path.name not in read)
    if others and not (model / INDEX_NAME).is_file():
        raise CheckpointError(
            f"{str(model)!r} holds {', '.join(others[:3])} as well as {', '.join(read)}, and vLLM would read both. {REMEDY}, "
            "or move files that do not belong to the model elsewhere.")


class VllmCompleter(Completer):
    """A dense model directory in vLLM's engine, in this process. Raises the same errors as ``check_vllm``."""

    def __init__(
        self, model: Path, tokenizer: PreTrainedTokenizerBase, config: GenerateConfig, stops: tuple[str, ...]
    ) -> None:
        check_vllm(model)
        super().__init__(tokenizer, config, stops)
        # No separate process, so that a kill leaves nothing behind and vLLM's scheduling is the same in every run.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import vllm

        self._sampling_params = vllm.SamplingParams
        # generation_config: "vllm" ignores the checkpoint's own defaults (a temperature, a penalty).
        self._engine: Any = vllm.LLM(
            model=str(model), dtype=DTYPES[config.precision], generation_config="vllm", seed=0, trust_remote_code=False,
            load_format="safetensors")
        checkpoint = AutoConfig.from_pretrained(model, trust_remote_code=False).get_text_config()
        self.context_length = self._engine.llm_engine.model_config.max_model_len
        named = [checkpoint]
        if (model / "generation_config.json").is_file():
            named.append(GenerationConfig.from_pretrained(model))
        self.end_tokens = end_tokens(tokenizer, *named)

    def write(self, prompts: Sequence[Sequence[int]], rooms: Sequence[int], seed: int) -> list[list[int]]:
        """See Completer. Every request has its own seed, so that it does not matter which requests run together."""
        parameters = [
            self._sampling_params(
                n=1, temperature=self.config.temperature, top_p=self.config.top_p, seed=request_seed(seed, row),
                max_tokens=room, stop=list(self.stops), include_stop_str_in_output=True, stop_token_ids=self.end_tokens,
                skip_special_tokens=False)
            for row, room in enumerate(rooms)]
        requests = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self._engine.generate(requests, parameters, use_tqdm=False)
        # Use the tokens, not vLLM's text, which ends in the middle of the token that completes a stop.
        return [list(output.outputs[0].token_ids) for output in outputs]


def request_seed(seed: int, row: int) -> int:
    """Return the seed of one request in a batch."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{row}".encode()).digest()[:8], "big") >> 1
