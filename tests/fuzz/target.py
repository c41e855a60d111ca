"""Targets by name. One is a function that feeds one hostile input, made by a seeded generator, to a reader."""

import random
from collections.abc import Callable
from pathlib import Path

from xft_core.errors import XftError

Target = Callable[[random.Random, Path], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """Have a function among TARGETS."""
    TARGETS[function.__name__] = function
    return function


def attempt(name: str, rng: random.Random, directory: Path) -> bool:
    """Feed one input to a target; returns whether it was taken. Raises whatever is not a message for people."""
    try:
        TARGETS[name](rng, directory)
    except XftError as error:
        assert str(error).strip() and len(str(error)) < 20_000, "a message must say something, and not everything"
        return False
    return True
