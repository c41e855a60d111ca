"""The interface that every kind of benchmark implements. The kinds themselves are in their own modules; see registry.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, TypeVar

from xft_core.benchmarks.printable import printable
from xft_core.errors import DataError, XftError
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:  # grading needs no tokenizer, and these imports take seconds
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText

Status = Literal["pass", "fail", "timeout", "infrastructure_error"]


@dataclass(frozen=True)
class Verdict:
    """The result of grading one sample. ``base``: on the benchmark's own tests; ``plus``: on these and the extended tests
    together (the same as ``base`` if a kind has no extended tests). ``infrastructure_error``: the result could not be
    determined, which says nothing about the sample. ``detail``: the reason, for readers: the input that failed, or the end
    of a compiler's message. It may quote a sample; here, and only here, it is made printable. ``score``: how much of the
    answer is right, from 0 to 1, if a task measures it. ``measures``: other counts by name: [right, out of how many]."""

    base: Status
    plus: Status
    detail: str = ""
    score: float | None = None
    measures: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", printable(self.detail))


NOT_GRADED = Verdict("infrastructure_error", "infrastructure_error")


class NotGradable(XftError):
    """This machine lacks a tool that grades the benchmark. The benchmark is skipped and reported; the model did not fail."""


class AnyProblem(Protocol):
    """The one field that all problems have; the others depend on their kind."""

    @property
    def task_id(self) -> str:
        """Name of the problem, unique within its benchmark."""


P = TypeVar("P", bound=AnyProblem)


class Grader(ABC, Generic[P]):
    """A grader that is ready on this machine: its sandbox is open and its canaries got the right verdicts."""

    @abstractmethod
    def grade(self, problem: P, samples: list[str], alone: bool = False) -> list[Verdict]:
        """Grade complete programs that answer ``problem``, and return their verdicts in order. Called from several threads.

        ``alone``: nothing else is being graded meanwhile. A sample that could not be graded is an infrastructure error. So
        is, unless alone, one that ran out of time while the machine was overloaded; stages/evaluate.py handles these.
        Raises DataError for a problem that cannot be right, SandboxError for one that cannot be graded even alone.
        """

    @abstractmethod
    def check(self) -> None:
        """Grade programs with known verdicts. Raises SandboxError if one gets another verdict: this machine cannot grade."""

    def ungradable(self, problem: P) -> str | None:
        """Why no answer to ``problem`` can be graded here. None, as for most problems, if answers can be graded."""
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What verdicts depend on besides the samples, for the record: versions, sandbox, limits."""

    @abstractmethod
    def stop(self) -> None:
        """Stop grading. Verdicts still in progress are no longer needed."""


class Kind(ABC, Generic[P]):
    """One kind of benchmark: the form of its file, how a model is asked, which program is graded, and how.

    name             its name in results and reports
    fields           fields that each row of its file has; no other kind's rows have all of them
    extended_tests   whether ``plus`` verdicts say more than ``base`` verdicts
    runs_programs    whether grading runs code that a model wrote, which needs a sandbox
    unused_settings  settings of the section evaluate that its grading ignores, although another kind's uses them
    """

    name: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    extended_tests: ClassVar[bool]
    runs_programs: ClassVar[bool] = True
    unused_settings: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def problem(self, row: dict[str, Any], where: str) -> P:
        """Parse one row of a file into a problem. Raises a DataError that begins with ``where`` and names the wrong field."""

    @abstractmethod
    def build_prompt(self, problem: P, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """The prompt for a problem, in a prompt style (see recipe/sections). Raises DataError if it cannot be built."""

    @abstractmethod
    def stops(self, problems: Sequence[P], style: str) -> tuple[str, ...]:
        """The texts that end an answer to any of these problems."""

    @abstractmethod
    def solution(self, problem: P, completion: str, style: str) -> str:
        """The program to grade, built from what the model wrote after the prompt."""

    @abstractmethod
    def texts(self, problem: P) -> tuple[str, str]:
        """Prompt and reference solution ("" where the benchmark has none), to look for in training data."""

    @abstractmethod
    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[P]:
        """Open a working grader. Raises SandboxError, saying what to install, if there is none, and NotGradable, saying the
        same, if an optional toolchain is missing."""

    def versions(self, benchmark: Path, config: EvaluateConfig) -> dict[str, str | None]:
        """Versions, by name, of installed software besides this package that verdicts depend on; None for missing software.

        Part of the evaluate stage's key: a skipped benchmark is graded once its toolchain is installed. Empty by default.
        Raises SandboxError if something is missing that is no reason to skip the benchmark.
        """
        return {}

    def groups(self, problem: P) -> dict[str, str]:
        """The groups that a problem counts in: group name by criterion (``library``). None by default."""
        return {}

    def labels(self, problems: Sequence[P]) -> dict[str, str]:
        """The labels by which reports group benchmarks of this kind, for results.json. None by default."""
        return {}

    def rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, row) for each row of a benchmark file. Raises DataError if it cannot be read."""
        return read_jsonl(path)

    def load_problems(self, path: Path, max_problems: int | None = None) -> list[P]:
        """The problems of a benchmark file, in its order; only the first ``max_problems`` if given.

        Raises DataError, naming file and line, for a broken line, a missing or wrong field, or a task_id that occurs
        twice, and DataError for a file without problems. Checks the whole file, whatever ``max_problems`` is.
        """
        problems: list[P] = []
        lines: dict[str, int] = {}
        for number, row in self.rows(path):
            problem = self.problem(row, where=f"{str(path)!r}, line {number}")
            if problem.task_id in lines:
                raise DataError(
                    f"{str(path)!r}, line {number}: task_id {problem.task_id!r} was already used in line "
                    f"{lines[problem.task_id]}. Every problem needs a unique task_id: rename or remove one of the two.")
            lines[problem.task_id] = number
            problems.append(problem)
        if not problems:
            raise DataError(f"{str(path)!r} has no problems: it is empty. Give a file with one JSON problem per line.")
        return problems[:max_problems]
