"""Reading model directories written by other tools."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factories import CHAT_TEMPLATE, dense_model, tokenizer
from xft_core.errors import CheckpointError
from xft_core.models.loading import copy_beside_weights, load_tokenizer


@pytest.mark.parametrize("field", [{"model_max_length": "long"}, {"padding_side": "up"}, {"eos_token": 5}])
def test_a_tokenizer_that_cannot_be_used_is_said_so(field: dict[str, Any], tmp_path: Path) -> None:
    path = dense_model(tmp_path) / "tokenizer_config.json"
    assert load_tokenizer(tmp_path)("x").input_ids
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("has_default", [True, False])
def test_every_named_chat_template_is_copied(has_default: bool, tmp_path: Path) -> None:
    """Conversations with tools were prepared with one of them."""
    named, tools = tokenizer(), [{"type": "function", "function": {"name": "f"}}]
    default = {"default": CHAT_TEMPLATE} if has_default else {}
    named.chat_template = default | {"tool_use": "With é: {{ messages[0].content }}"}
    named.save_pretrained(tmp_path / "source")
    assert (tmp_path / "source" / "additional_chat_templates" / "tool_use.jinja").is_file()
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    copy_beside_weights(tmp_path / "source", tmp_path / "once")
    copy_beside_weights(tmp_path / "once", tmp_path / "twice")
    copied = load_tokenizer(tmp_path / "twice")
    assert copied.chat_template == named.chat_template
    text = copied.apply_chat_template([{"role": "user", "content": "Q"}], tools=tools, tokenize=False)
    assert text == "With é: Q"
