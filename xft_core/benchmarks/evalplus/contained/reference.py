"""The reference solution's outputs for a problem's inputs, and how long they take; memory use is bounded.

The outputs of one problem of MBPP+ fill gigabytes. Mostly a digest of each is enough. An output itself is kept while there is
room for it, and otherwise computed again.
"""

import time
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from xft_core.benchmarks.evalplus.contained import values
from xft_core.benchmarks.evalplus.contained.comparison import are_floats, dataset_of, wants_not_none
from xft_core.benchmarks.evalplus.contained.evalplus_files import mbpp_inputs

KEPT_BYTES = 16 * 2**20  # as written by marshal; the objects take about seven times as much


class ReferenceFailed(Exception):
    """The canonical solution raised, or returned what cannot be compared."""


@dataclass(frozen=True)
class Expected:
    """The known facts about one output. ``digest`` is None if outputs must be compared as values; it took
    ``digest_seconds``, the call itself ``seconds``."""

    digest: str | None
    seconds: float
    digest_seconds: float
    floats: bool
    kept: tuple[Any, ...]


class Suite:
    """One list of inputs of a problem, with the reference's outputs. Raises ReferenceFailed."""

    def __init__(self, problem: dict[str, Any], inputs: list[list[Any]]) -> None:
        task_id, self.entry_point, self.atol = problem["task_id"], problem["entry_point"], problem["atol"]
        self.dataset = dataset_of(task_id)
        self.inputs = mbpp_inputs(task_id, inputs) if self.dataset == "mbpp" else inputs
        self._room = KEPT_BYTES
        program_globals: dict[str, Any] = {}
        try:
            exec(problem["prompt"] + problem["canonical_solution"], program_globals)
            self._function = program_globals[self.entry_point]
            self.expected = [self._compute(arguments) for arguments in self.inputs]
        except BaseException as error:
            raise ReferenceFailed(f"{type(error).__name__}: {error}") from None

    def output(self, index: int) -> Any:
        """The right output for one input."""
        expected = self.expected[index]
        return expected.kept[0] if expected.kept else self._call(self.inputs[index])

    def _call(self, arguments: list[Any]) -> Any:
        output = self._function(*deepcopy(arguments))
        return output is not None if wants_not_none(self.dataset, self.entry_point) else output

    def _compute(self, arguments: list[Any]) -> Expected:
        copied = deepcopy(arguments)
        started = time.time()
        output = self._function(*copied)
        seconds = time.time() - started
        if wants_not_none(self.dataset, self.entry_point):
            output = output is not None
        started = time.time()
        digest, size = values.digest(output)
        digest_seconds = time.time() - started
        if digest is None and not values.is_whole(values.encode(output)):
            raise TypeError(f"it returns {values.shown(output)}, which cannot be compared")
        kept = (output,) if size <= self._room else ()
        self._room -= size if kept else 0
        return Expected(digest, seconds, digest_seconds, are_floats(output), kept)
