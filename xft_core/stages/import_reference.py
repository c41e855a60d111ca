"""``python -m xft_core import-reference DIR OUT``: convert a Mixture-of-Experts that the XFT reference code tuned to the format
of this package.

The reference writes every expert as a separate layer and has ``llama_moe_upscaling`` in config.json. Here the routed experts
are stacked, expert 0 is the shared expert, and the dense model's own config.json is kept. Whatever its config says, the
reference runs at RoPE base 10000. So does the imported model, unless another base is given.
Shape suffixes: D hidden size, F FFN size, R routed experts.
"""

import logging
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from xft_core.errors import CheckpointError
from xft_core.families import FAMILIES
from xft_core.files.locate import find_model
from xft_core.models.config import save_moe_config, transformers_config
from xft_core.models.loading import copy_beside_weights
from xft_core.models.safetensors_io import CheckpointReader, TensorPlan, read_config, write_checkpoint
from xft_core.models.stored_form import is_tied, shape_only, with_tying
from xft_core.models.upcycled import empty_moe
from xft_core.recipe.sections import UpcycleConfig
from xft_core.stages.configs import ImportReferenceStage
from xft_core.store.results.upcycle import ImportReferenceMetrics
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)

REFERENCE_MODEL_TYPE = "llama_moe_upscaling"
FAMILY = FAMILIES["llama"]
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NAMES_OF_FFN = {"gate_proj.weight": "weight_gate", "up_proj.weight": "weight_up", "down_proj.weight": "weight_down"}

# The settings that correspond to each gate type.
GATE_TYPES: dict[str, dict[str, Any]] = {
    "TopKUniversalBalancedNoisyGate": {"normalization": "xft", "shared_expert": True},
    "TopKUniversalBalancedNoNormalizationNoisyGate": {"normalization": "none", "shared_expert": True},
    "TopKBalancedNoisyGate": {"shared_expert": False},
}

# Fields of the dense model, all of which the reference writes. Its attention has no biases and no dropout.
DENSE_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_scaling", "tie_word_embeddings")
OPTIONAL_FIELDS = ("initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")

# Fields that can make the reference deviate from its published method. With any other value the logits would differ.
FIXED_FIELDS: dict[str, Any] = {
    "gate_network": "mlp", "gate_use_softmax": True, "calculator_type": "UniversalCalculator", "multiply_gate_scores": True,
    "score_scale_factor": 1.0, "add_weight_norm": False}


def run(config: ImportReferenceStage, workspace: Workspace) -> ImportReferenceMetrics:
    """Write the imported model."""
    return ImportReferenceMetrics(
        parameters_total=import_reference(find_model(config.model), workspace.output, config.rope_base))


def import_reference(source: Path, target: Path, rope_base: float) -> int:
    """Write the reference's checkpoint ``source`` as an upcycled model into ``target``, one tensor in memory at a time.

    Args:
        source: a directory with the reference's config.json and safetensors, sharded or not.
        target: an existing empty directory.
        rope_base: RoPE base to run the model at; the reference code runs at 10000.

    Returns the number of parameters. Raises CheckpointError, before anything is written, for a directory that is not from the
    reference, a field without a counterpart here, and missing, misshapen or unknown tensors.
    """
    content = read_config(source)
    if content["model_type"] != REFERENCE_MODEL_TYPE:
        raise CheckpointError(
            f"{str(source)!r} is a {content['model_type']} model, not one of the XFT reference code "
            f"({REFERENCE_MODEL_TYPE}). Upcycle a dense model instead; an upcycled model needs no import.")
    _check_weights_are_safetensors(source)
    dense_config, upcycle = dense_config_of_reference(content, rope_base), upcycle_config_of_reference(content)
    with CheckpointReader(source) as reader:
        dense_config = _with_tying(reader, dense_config)
        with torch.device("meta"):
            expected = empty_moe(dense_config, upcycle, torch.float32).state_dict()
        if dense_config["tie_word_embeddings"]:
            del expected[HEAD]
        sources = {name: _sources(name, upcycle) for name in expected}
        _check_names(reader, {name for names in sources.values() for name in names})
        plans = [_plan(reader, name, list(tensor.shape), sources[name]) for name, tensor in expected.items()]
        write_checkpoint(target, plans)
    save_moe_config(target, dense_config, upcycle)
    copy_beside_weights(source, target)
    logger.info(
        "import-reference: runs at RoPE base %g%s; its config says %s, which the reference ignores", rope_base,
        ", as the reference does" if rope_base == 10000 else " as requested (the reference runs at 10000)",
        content.get("rope_theta", "nothing"))
    if not any((target / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        logger.warning("import-reference: %r has no tokenizer: to use the model with stages that read text, copy the dense "
                       "model's tokenizer files into it and import it again", str(source))
    return sum(torch.Size(plan.shape).numel() for plan in plans)


def dense_config_of_reference(content: dict[str, Any], rope_base: float) -> dict[str, Any]:
    """Return the dense Llama's config.json, from the reference's. Raises CheckpointError that names any missing fields."""
    missing = [name for name in DENSE_FIELDS if name not in content]
    if missing:
        raise CheckpointError(
            f"The reference's config.json lacks {', '.join(missing)}. Copy them from the dense model that it came from.")
    fields = {name: content[name] for name in (*DENSE_FIELDS, *OPTIONAL_FIELDS) if name in content}
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", **fields, "rope_theta": rope_base,
        "attention_bias": False, "mlp_bias": False, "attention_dropout": 0.0}


def upcycle_config_of_reference(content: dict[str, Any]) -> UpcycleConfig:
    """Return the experts and gates of the reference's config.json. Both formats count the shared expert.

    Raises CheckpointError for an unknown gate type and for fields that change what the model computes.
    """
    gate_type = content.get("gate_type")
    if gate_type not in GATE_TYPES:
        raise CheckpointError(
            f"gate_type is {gate_type!r} in the reference's config.json. Known: {', '.join(GATE_TYPES)}.")
    for name, known in FIXED_FIELDS.items():
        found = content.get(name, known)
        if any(item != known for item in (found if isinstance(found, list) else [found])):
            raise CheckpointError(
                f"{name} is {found!r} in the reference's config.json, but only {known!r} has a counterpart here. With any "
                "other value the imported model would not compute what it was trained for.")
    if content.get("gate_noise_epsilon", 0.01) != 0.01:
        logger.warning("import-reference: gate_noise_epsilon is %s; tuning the model further uses 0.01 (inference does not "
                       "depend on it)", content["gate_noise_epsilon"])
    try:
        return UpcycleConfig.model_validate({
            "num_experts": content.get("num_experts"), "num_experts_per_tok": content.get("num_selects"),
            "router_noise": content.get("gate_add_noise", True), "store_experts": "all", **GATE_TYPES[gate_type]})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])).replace("num_experts_per_tok", "num_selects")
        raise CheckpointError(f"The reference's config.json is not valid: {place} {first['msg']}") from None


def _with_tying(reader: CheckpointReader, dense_config: dict[str, Any]) -> dict[str, Any]:
    """Return the config with tie_word_embeddings as in the tensors. If only a tied head is stored, it becomes the embedding."""
    model = shape_only(transformers_config(dense_config))
    if dense_config["tie_word_embeddings"] and HEAD in reader and EMBEDDING not in reader:
        reader.rename({HEAD: EMBEDDING})
    return with_tying(dense_config, model, is_tied(reader, model))


def _sources(name: str, upcycle: UpcycleConfig) -> list[str]:
    """Return the reference's tensors that form one tensor here: one, or for stacked experts gate and up of each, or down of
    each."""
    layer, separator, inner = name.partition(f".{FAMILY.mlp}.")
    if not separator:
        return [name]
    gate, experts = f"{layer}.mlp.gate", f"{layer}.mlp.calculator.experts"
    routers = {
        "router.hidden.weight": f"{gate}.gate_network.0.weight", "router.output.weight": f"{gate}.gate_network.2.weight",
        "router.noise.weight": f"{gate}.weight_noise.weight"}
    if inner in routers:
        return [routers[inner]]
    if inner.startswith("shared_expert."):
        return [f"{experts}.{NAMES_OF_FFN[inner.removeprefix('shared_expert.')]}.0.weight"]
    dense = FAMILY.expert_sources(has_bias=False)[inner.removeprefix("experts.")]
    return [
        f"{experts}.{NAMES_OF_FFN[item]}.{expert}.weight"
        for expert in range(int(upcycle.shared_expert), upcycle.num_experts) for item in dense]


def _check_names(reader: CheckpointReader, needed: set[str]) -> None:
    # Older versions of transformers stored tensors that follow from the RoPE base.
    found = {name for name in reader.names() if not name.endswith(".rotary_emb.inv_freq")}
    if HEAD not in needed:  # tied: a stored head is a copy of the embedding
        found.discard(HEAD)
    if missing := sorted(needed - found):
        raise CheckpointError(
            f"{str(reader.directory)!r} lacks {len(missing)} tensors that its config requires, for example {missing[0]!r}: the "
            "checkpoint does not belong to its config, or was not saved completely.")
    if unknown := sorted(found - needed):
        raise CheckpointError(
            f"{str(reader.directory)!r} has {len(unknown)} tensors that its config does not require, for example "
            f"{unknown[0]!r}: the checkpoint does not belong to its config.")


def _plan(reader: CheckpointReader, name: str, shape: list[int], sources: list[str]) -> TensorPlan:
    """Return the plan of one tensor. The sources follow each other in memory: stacking means joining along rows."""
    rows = torch.Size(shape[:-1]).numel() // len(sources)
    for source in sources:
        if reader.shape(source) != [rows, shape[-1]][-len(shape):]:
            raise CheckpointError(
                f"Tensor {source!r} has shape {reader.shape(source)}, but the config says {[rows, shape[-1]][-len(shape):]}.")
    dtypes = {reader.dtype(source) for source in sources}
    if len(dtypes) > 1:
        raise CheckpointError(
            f"{name!r} would combine tensors of several dtypes ({', '.join(sorted(map(str, dtypes)))}). Convert the "
            "checkpoint to a single dtype first.")
    return TensorPlan(name, shape, dtypes.pop(), lambda: [reader.get(source) for source in sources])


def _check_weights_are_safetensors(source: Path) -> None:
    pickled = sorted(path.name for path in source.glob("pytorch_model*.bin"))
    if pickled and not any(source.glob("*.safetensors")):
        raise CheckpointError(
            f"{str(source)!r} holds pickled weights ({pickled[0]}), which can run code when loaded and are therefore refused. "
            "If you trust them, convert them in the reference's own environment: "
            "LlamaMoEUpscalingForCausalLM.from_pretrained(DIR, torch_dtype='auto').save_pretrained(NEW, "
            "safe_serialization=True), and import NEW.")
