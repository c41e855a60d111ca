"""Hostile input for every reader, a fixed number of times; ``python -m tests.fuzz`` goes on for as long as one likes."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.target import TARGETS

# Those that build a model or a tokenizer for every input, look through all fields of a recipe, or ask a server.
SLOW = {"model_config", "moe_model", "tokenizer", "recipe", "object_store"}


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_reader_answers_with_a_message(name: str) -> None:
    assert fuzz(name, seed=0, seconds=600, most=6 if name in SLOW else 25) == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TARGETS))
def test_every_reader_answers_with_a_message_to_many_inputs(name: str) -> None:
    assert fuzz(name, seed=1, seconds=20) == 0
