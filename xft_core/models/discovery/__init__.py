"""The Family row of any dense decoder: from the table, or found from the model's modules and proved on random tokens.

``walk.py`` proposes rows from the names and shapes of the modules, ``scaled.py`` builds a tiny model of the architecture, and
``proof.py`` upcycles it by each row and keeps the one that changes nothing. The result depends only on the config and on
transformers, takes well under a second, and is kept in memory for the process.
"""

import json
import logging
from typing import Any

import torch
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from xft_core.errors import CheckpointError
from xft_core.families import FAMILIES, PICTURE_FAMILIES, Family, picture_family
from xft_core.models.discovery.proof import prove
from xft_core.models.discovery.walk import CannotUpcycle, propose

logger = logging.getLogger(__name__)

# Fields of a config.json that do not describe the architecture. Neither do fields that begin with "_".
NOT_OF_ARCHITECTURE = frozenset({
    "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "tie_word_embeddings", "name_or_path",
    "return_dict", "output_attentions", "output_hidden_states", "id2label", "label2id"})

_found: dict[str, Family | str] = {}


def family_of(config: PreTrainedConfig) -> Family:
    """The row of a dense model's family. Raises CheckpointError with the reason if its FFNs cannot become mixtures."""
    if config.model_type in FAMILIES:
        return FAMILIES[config.model_type]
    if config.model_type in PICTURE_FAMILIES:
        inner = config.get_text_config().model_type
        found = picture_family(config.model_type, inner)
        if found is None:
            raise _refusal(config, f"its language model, {inner}, is of no family in the table")
        return found
    key = _key(config)
    if key not in _found:
        _found[key] = _discovered(config)
    row = _found[key]
    if isinstance(row, str):
        raise _refusal(config, row)
    return row


def check_decoder(config: PreTrainedConfig) -> None:
    """Raise CheckpointError with the reason for a config whose model is not a causal text decoder. Call it before building the
    model."""
    if config.model_type in (*FAMILIES, *PICTURE_FAMILIES):
        return
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(config, "it is an encoder-decoder")
    if config.get_text_config() is not config:
        raise _refusal(config, "it is not a plain text decoder: its config.json has several parts")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise _refusal(config, "transformers has no causal language model for it")
    if not isinstance(getattr(config, "num_hidden_layers", None), int):
        raise _refusal(config, "its config.json does not give its number of layers (num_hidden_layers)")


def _refusal(config: PreTrainedConfig, reason: str) -> CheckpointError:
    return CheckpointError(
        f"A {config.model_type} model cannot be upcycled: {reason}. Use a dense decoder: one from the table "
        f"({', '.join(sorted(FAMILIES))}), one that reads pictures ({', '.join(sorted(PICTURE_FAMILIES))}), or any "
        "other whose tiny model gives the same results after upcycling.")


def _discovered(config: PreTrainedConfig) -> Family | str:
    """The row, or the reason why there is none."""
    try:
        with torch.device("meta"), no_init_weights():
            model = AutoModelForCausalLM.from_config(config)
        family, where = prove(config, model, propose(model))
    except CannotUpcycle as error:
        return str(error)
    up = " * ".join(family.up) if family.gated else family.up[0]
    logger.info(
        "%s is not in the table of families. Found in its modules: FFN %s of %s, %s(%s(%s))%s%s. Upcycling %s by it changed "
        "no logits%s%s.", config.model_type, family.mlp or "without a module of its own", family.layers, family.down,
        family.activation, up, ", Conv1D" if family.transposed else "", ", plus the residual" if family.adds_residual else "",
        where, "" if family.plain_head else "; its logits are not just the output of its head",
        "" if family.packs else "; its attention does not keep packed examples apart, so each gets its own sequence")
    return family


def _key(config: PreTrainedConfig) -> str:
    fields: dict[str, Any] = {
        name: value for name, value in config.to_dict().items()
        if name not in NOT_OF_ARCHITECTURE and not name.startswith("_") and not name.endswith("_token_id")}
    return json.dumps(fields, sort_keys=True, default=str)
