"""The export stage: write a model for other programs, load it again, and compare it with the original."""

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from xft_core.data.packing import IGNORED, PackedRows
from xft_core.data.response_end import load_response_ends
from xft_core.data.rows import Rows, load_rows
from xft_core.errors import CheckpointError, first_line
from xft_core.exports.code.export import export_code
from xft_core.exports.gguf.describe import describe
from xft_core.exports.gguf.modelfile import modelfile
from xft_core.exports.gguf.write import write_gguf
from xft_core.exports.stock import export_stock
from xft_core.files.temporary import temporary_directory
from xft_core.models.config import DTYPES, is_moe, transformers_config, upcycle_config_of
from xft_core.models.generation_defaults import add_end_tokens
from xft_core.models.gguf_files import SUFFIX, load_gguf
from xft_core.models.loading import copy_beside_weights, load_model, load_tokenizer
from xft_core.models.safetensors_io import read_config
from xft_core.moe.prompts import GeneratedPrompts, tell_prompts
from xft_core.runtime.device import device_for_work
from xft_core.stages.configs.export import ExportStage
from xft_core.stages.preconditions import check_gguf
from xft_core.store.results.export import ExportMetrics
from xft_core.store.workspace import Workspace
from xft_core.training.held_out import TOKENS_PER_BATCH

logger = logging.getLogger(__name__)

MODELFILE = "Modelfile"
TOKENS_TO_RUN = 16
LARGEST_ROUNDING = 1e-4  # of the largest logit, in fp32
TEXTS_TO_CUT = 64  # held-out rows whose text a GGUF file's tokenizer must split in the same way


def run(config: ExportStage, workspace: Workspace) -> ExportMetrics:
    """Run the stage. Raises CheckpointError for a model that does not fit the form."""
    source, output = config.inputs()["model"], workspace.output
    if config.form == "code":
        export_code(source, output)
        exported = None
    elif config.form == "stock":
        export_stock(source, output)
        exported = _load_stock(output)
    else:
        check_gguf()
        path = _write_gguf(config, source, output)
        exported = None if is_moe(source) else load_gguf(path, torch.float32)
    if config.data:
        content = read_config(source)
        defaults = GenerationConfig.from_model_config(transformers_config(content.get("dense_config", content)))
        add_end_tokens(output, defaults, load_response_ends(config.data) or [])
    size = sum(path.stat().st_size for path in output.iterdir() if path.suffix in (".safetensors", SUFFIX))
    measured: dict[str, Any] = dict.fromkeys(("held_out_nll", "held_out_nll_source", "same_tokens", "largest_difference"))
    if exported is not None:
        original = load_model(source, torch.float32)
        measured["largest_difference"] = difference = _largest_difference(original, exported)
        exact = config.form == "stock" or config.quantization == "f32"
        if exact and difference > LARGEST_ROUNDING * _largest_logit(original):
            raise CheckpointError(
                f"The export does not compute the same as {str(source)!r}: logits differ by {difference:.3g}. Nothing was "
                "kept. Please report this, with the config.json.")
        if config.data:
            measured |= _compared(original, exported, load_rows(config.data, "held_out"), DTYPES[config.precision])
    return ExportMetrics(size_mb=size / 2**20, **measured)


def _load_stock(directory: Path) -> PreTrainedModel:
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, trust_remote_code=False, output_loading_info=True)
    except Exception as error:  # each family fails in its own way
        raise CheckpointError(f"The export cannot be loaded: {first_line(error)}") from None
    if report["missing_keys"] or report["unexpected_keys"] or report["mismatched_keys"]:
        raise CheckpointError("The tensors in the export do not match the architecture in transformers. Please report this.")
    return model.eval()


def _write_gguf(config: ExportStage, source: Path, output: Path) -> Path:
    """Write the file, the Modelfile, and the files that transformers needs to measure it. Returns the file's path."""
    taught = load_response_ends(config.data) if config.data else None
    described = describe(source, config.template, taught or (), _texts(config.data, load_tokenizer(source)))
    path = output / f"model-{config.quantization}{SUFFIX}"
    with temporary_directory("work") as directory:
        if is_moe(source):
            if upcycle_config_of(source).normalization != "granite":
                raise CheckpointError(
                    f"{str(source)!r} is a Mixture-of-Experts with normalization {upcycle_config_of(source).normalization}: "
                    "llama.cpp supports only granite. Export the merged model, or train with upcycle.normalization granite.")
            export_stock(source, directory)
        write_gguf(directory if is_moe(source) else source, path, config.quantization, described.vocabulary,
                   described.special, described.chat_template)
    (output / MODELFILE).write_text(
        modelfile(path.name, described.template, described.stops, described.context), encoding="utf-8")
    copy_beside_weights(source, output)
    shutil.copyfile(source / "config.json", output / "config.json")
    return path


def _texts(data: Path | None, tokenizer: Any) -> list[str]:
    """Return held-out rows as text."""
    if data is None:
        return []
    rows = load_rows(data, "held_out")
    return list(tokenizer.batch_decode([rows[index][0].tolist() for index in range(min(len(rows), TEXTS_TO_CUT))]))


@torch.no_grad()
def _logits(model: PreTrainedModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().num_embeddings
    input_ids = torch.randint(vocabulary, (1, TOKENS_TO_RUN), generator=generator)
    tell_prompts(model, GeneratedPrompts(torch.ones(1, TOKENS_TO_RUN)))
    logits: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits
    return logits


def _largest_difference(original: PreTrainedModel, exported: PreTrainedModel) -> float:
    return float((_logits(exported) - _logits(original)).abs().max())


def _largest_logit(model: PreTrainedModel) -> float:
    return float(_logits(model).abs().max())


@torch.no_grad()
def _compared(
    original: PreTrainedModel, exported: PreTrainedModel, rows: Rows, dtype: torch.dtype,
) -> dict[str, float]:
    """Return the held-out losses of both models, and how often their most likely tokens are the same."""
    device = device_for_work()
    models = [model.to(device=device, dtype=dtype) for model in (original, exported)]  # type: ignore[call-overload]
    packed, size = PackedRows(rows, max(rows.lengths()), packing=False), max(1, TOKENS_PER_BATCH // max(rows.lengths()))
    nll, same, tokens = [0.0, 0.0], 0, 0
    for first in range(0, len(rows), size):
        batch = packed.collate([[index] for index in range(first, min(first + size, len(rows)))])
        labels = batch["labels"][:, 1:]
        wanted, likely = labels != IGNORED, []
        for place, model in enumerate(models):
            logits_TV = _response_logits(model, batch, wanted)
            nll[place] += float(F.cross_entropy(logits_TV, labels[wanted], reduction="sum"))
            likely.append(logits_TV.argmax(-1))
        same, tokens = same + int((likely[0] == likely[1]).sum()), tokens + int(wanted.sum())
    return {"held_out_nll_source": nll[0] / tokens, "held_out_nll": nll[1] / tokens, "same_tokens": same / tokens}


def _response_logits(model: PreTrainedModel, batch: dict[str, torch.Tensor], wanted: torch.Tensor) -> torch.Tensor:
    """Return the logits for the tokens ``wanted``: (tokens, vocabulary), fp32. The training loss cannot be used here: a stock
    mixture belongs to none of this package's families."""
    fields = {name: batch[name].to(model.device) for name in ("input_ids", "position_ids")}
    logits: torch.Tensor = model(**fields, use_cache=False).logits[:, :-1].cpu()[wanted].float()
    return logits
