"""Reading model directories written by other tools."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.factories import dense_model
from xft_core.errors import CheckpointError
from xft_core.models.loading import load_tokenizer


@pytest.mark.parametrize("field", [{"model_max_length": "long"}, {"padding_side": "up"}, {"eos_token": 5}])
def test_a_tokenizer_that_cannot_be_used_is_said_so(field: dict[str, Any], tmp_path: Path) -> None:
    path = dense_model(tmp_path) / "tokenizer_config.json"
    assert load_tokenizer(tmp_path)("x").input_ids
    path.write_text(json.dumps(json.loads(path.read_text()) | field))
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        load_tokenizer(tmp_path)
