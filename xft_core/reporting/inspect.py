"""``python -m xft_core inspect DIRECTORY``: the content of a directory, from its manifest, config and safetensors headers.

It reads no weights, so it is quick for a model of any size. Only verifying an artifact reads its files, once.
"""

import math
from pathlib import Path
from typing import Any

from xft_core.errors import ArtifactError, CheckpointError
from xft_core.files.parsing import parse_json
from xft_core.models.safetensors_index import EMBEDDINGS, HEADS, read_header, weight_files
from xft_core.models.tokenizer_files import VOCABULARY_FILES
from xft_core.runtime.quantities import size
from xft_core.store.artifacts import verify
from xft_core.store.manifest import MANIFEST, Manifest, read_manifest


def describe(directory: Path) -> str:
    """A plain-text description of a published artifact, a model directory, or both at once.

    Raises ArtifactError for anything else, CheckpointError for a model directory that cannot be read.
    """
    is_artifact, is_model = (directory / MANIFEST).is_file(), (directory / "config.json").is_file()
    if not directory.is_dir():
        raise ArtifactError(
            f"There is no directory {str(directory)!r}. Give a model directory or a published artifact.")
    if not is_artifact and not is_model:
        raise ArtifactError(
            f"{str(directory)!r} is neither a published artifact (it has no {MANIFEST}) nor a model directory "
            "(it has no config.json).")
    manifest = read_manifest(directory) if is_artifact else None
    sections = [_section("model", _model_lines(directory))] if is_model else []
    if manifest:
        sections += _artifact_sections(directory, manifest)
    return "\n\n".join(sections)


def _artifact_sections(directory: Path, manifest: Manifest) -> list[str]:
    try:
        verify(directory)
        intact = "yes: every file has the size and sha256 of the manifest"
    except ArtifactError as error:
        intact = f"NO: {error}"
    about = {
        "stage": f"{manifest.stage} (version {manifest.stage_version})", "key": manifest.key, "digest": manifest.digest,
        "created": f"{manifest.created}, in {manifest.seconds:.1f} s", "intact": intact}
    total = sum(entry.size for entry in manifest.files)
    sections = [
        ("artifact", about),
        ("made from", manifest.parents),
        ("provenance", manifest.provenance),
        ("metrics", {name: _number(value) for name, value in manifest.metrics.items()}),
        (f"files ({len(manifest.files)}, {size(total)})", {entry.path: size(entry.size) for entry in manifest.files}),
        ("versions", manifest.versions),
    ]
    return [_section(title, lines) for title, lines in sections if lines]


def _model_lines(directory: Path) -> dict[str, str]:
    config = _read_json(directory / "config.json")
    dense = config.get("dense_config", config)
    # Models that take images as well as text keep the language model's fields in their own section.
    text = dense.get("text_config", dense)
    if not all(isinstance(section, dict) for section in (dense, text, config.get("upcycle", {}))):
        raise CheckpointError(f"config.json of {str(directory)!r} is not that of a model: one of its sections has no fields.")
    tensors = _tensors(directory)
    lines = {"family": str(dense.get("model_type", "unknown"))}
    if "upcycle" in config:
        lines |= _expert_lines(config["upcycle"])
    if tensors:
        lines |= _tensor_lines(tensors, stored_once=config.get("upcycle", {}).get("store_experts") == "once")
    else:
        lines["weights"] = "none in safetensors form"
    lines["layers"] = _number(text.get("num_hidden_layers"))
    lines["hidden size"] = _number(text.get("hidden_size"))
    lines["vocabulary"] = _number(text.get("vocab_size"))
    has_head, has_embedding = (any(name.endswith(endings) for name in tensors) for endings in (HEADS, EMBEDDINGS))
    lines["tied embeddings"] = "yes" if text.get("tie_word_embeddings", not has_head) else "no"
    if lines["tied embeddings"] == "yes" and has_head and has_embedding:
        lines["tied embeddings"] += " in config.json, but a head is stored separately: no, if it differs from the embedding"
    found = [name for name in VOCABULARY_FILES if (directory / name).is_file()]
    lines["tokenizer"] = ", ".join(found) or "none"
    return lines


def _expert_lines(upcycle: dict[str, Any]) -> dict[str, str]:
    shared = upcycle.get("shared_expert", True)
    active = f"{upcycle.get('num_experts')} per layer, {upcycle.get('num_experts_per_tok')} active per token"
    if upcycle.get("groups"):
        active += f" in each of {upcycle.get('groups_per_tok', 1)} of {upcycle['groups']} groups"
    if upcycle.get("expert_rank"):
        active += f", low-rank changes (rank {upcycle['expert_rank']}) of shared weights"
    lines = {
        "experts": f"{active}, {'one of them shared (always on)' if shared else 'none shared'}",
        "routing weights": str(upcycle.get("normalization")) if shared else "softmax over the top-k logits",
    }
    others = ("router", "routing_temperature", "shared_gate", "routing", "target_active")
    if chosen := [f"{name} {upcycle[name]}" for name in others if name in upcycle]:
        lines["routing"] = ", ".join(chosen)
    return lines


def _tensor_lines(tensors: dict[str, dict[str, Any]], stored_once: bool) -> dict[str, str]:
    parameters: dict[str, int] = {}
    for tensor in tensors.values():
        parameters[tensor["dtype"]] = parameters.get(tensor["dtype"], 0) + math.prod(tensor["shape"])
    # An expanded MoE has its routed experts stacked; so does a model tuned from one stored once.
    once = stored_once and not any(".experts." in name for name in tensors)
    note = " stored; the experts are still equal and stored once" if once else ""
    return {
        "parameters": f"{sum(parameters.values()):,} in {len(tensors)} tensors{note}",
        "dtype": ", ".join(
            name if len(parameters) == 1 else f"{name} ({count:,})"
            for name, count in sorted(parameters.items(), key=lambda item: -item[1])),
    }


def _tensors(directory: Path) -> dict[str, dict[str, Any]]:
    """Name to dtype, shape and offsets of every tensor, from the headers of the shards."""
    try:
        shards = weight_files(directory)
    except CheckpointError:
        if any(directory.glob("*.safetensors")):
            raise
        return {}  # a model directory without weights
    tensors: dict[str, dict[str, Any]] = {}
    for shard in shards:
        tensors |= read_header(directory / shard)[0]
    return tensors


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__} instead of an object with fields.")
    return content


def _section(title: str, lines: dict[str, str]) -> str:
    width = max(len(name) for name in lines)
    return "\n".join([title, *(f"  {name.ljust(width)}  {value}" for name, value in lines.items())])


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "-" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
