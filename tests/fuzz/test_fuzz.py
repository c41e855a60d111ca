"""A fixed number of hostile inputs for every reader; ``python -m tests.fuzz`` runs as long as you like."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.target import TARGETS

# Slow targets: they build a model or a tokenizer for every input, go through all fields of a recipe, or call a server.
SLOW = {"model_config", "moe_model", "tokenizer", "recipe", "object_store"}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_reader_answers_with_a_message(name: str) -> None:
    assert fuzz(name, seed=0, seconds=600, most=6 if name in SLOW else 25) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_reader_answers_with_a_message_to_many_inputs(name: str) -> None:
    assert fuzz(name, seed=1, seconds=20) == 0
