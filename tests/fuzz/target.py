"""Targets by name. A target is a function that feeds one hostile input, created by a seeded generator, to a reader."""

import random
from collections.abc import Callable
from pathlib import Path

from xft_core.errors import XftError

Target = Callable[[random.Random, Path], None]
TARGETS: dict[str, Target] = {}


def target(function: Target) -> Target:
    """Add a function to TARGETS."""
    TARGETS[function.__name__] = function
    return function


def attempt(name: str, rng: random.Random, directory: Path) -> bool:
    """Feed one input to a target; return whether it was accepted. Let any error other than a readable message through."""
    try:
        TARGETS[name](rng, directory)
    except XftError as error:
        assert str(error).strip() and len(str(error)) < 20_000, "a message must say something, and not everything"
        return False
    return True
