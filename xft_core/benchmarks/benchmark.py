"""What every kind of benchmark must be able to do. The kinds themselves are in packages of their own; see kinds.py."""

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
    """``base``: on the benchmark's own tests; ``plus``: on these and the extended ones together (the same as ``base``
    where a kind has no extended tests). ``infrastructure_error``: it could not be found out, which says nothing about
    the sample. ``detail``: for people, what went wrong: the input that failed, or the end of a compiler's complaint. It
    may quote a sample; here, and only here, it is made printable. ``score``: how much of the answer is right, from 0 to 1,
    where a task measures it. ``measures``: what else is counted, by name: [what is right, out of how many]."""

    base: Status
    plus: Status
    detail: str = ""
    score: float | None = None
    measures: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "detail", printable(self.detail))


NOT_GRADED = Verdict("infrastructure_error", "infrastructure_error")


class NotGradable(XftError):
    """This machine lacks what a benchmark is graded with. It is skipped, saying so: that is not a failure of the model."""


class AnyProblem(Protocol):
    """What all problems have; the rest is their kind's business."""

    @property
    def task_id(self) -> str:
        """Name of the problem, unique within its benchmark."""


P = TypeVar("P", bound=AnyProblem)


class Grader(ABC, Generic[P]):
    """Ready to grade on this machine: its sandbox was opened and its canaries got the right verdicts."""

    @abstractmethod
    def grade(self, problem: P, samples: list[str], alone: bool = False) -> list[Verdict]:
        """Verdicts on complete programs that answer ``problem``, in their order. Called from several threads.

        ``alone``: nothing else is being graded meanwhile. What could not be graded is an infrastructure error, and so is,
        unless alone, what ran out of time while the machine was overloaded; see evaluate.py for what becomes of it.
        Raises DataError for a problem that cannot be right, SandboxError for one that cannot be graded even alone.
        """

    @abstractmethod
    def check(self) -> None:
        """Grade programs whose verdicts are known. Raises SandboxError where one gets another: this machine cannot grade."""

    def ungradable(self, problem: P) -> str | None:
        """Why no answer to ``problem`` can be graded here, whatever it is. None, as for most: they can."""
        return None

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What verdicts depend on beside the samples, for the record: versions, sandbox, limits."""

    @abstractmethod
    def stop(self) -> None:
        """End what is being graded; nobody waits for it any more."""


class Kind(ABC, Generic[P]):
    """One kind of benchmark: the form of its file, how a model is asked, which program is graded, and how.

    name             as results and reports call it
    fields           a row of its file has all of these, and no other kind's row has
    extended_tests   whether ``plus`` verdicts say more than ``base`` ones
    runs_programs    whether grading runs what a model wrote, which needs a sandbox
    unused_settings  fields of the section evaluate that its grading does not look at, though another kind's does
    """

    name: ClassVar[str]
    fields: ClassVar[frozenset[str]]
    extended_tests: ClassVar[bool]
    runs_programs: ClassVar[bool] = True
    unused_settings: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def problem(self, row: dict[str, Any], where: str) -> P:
        """One row of a file as a problem. Raises DataError that begins with ``where`` and names the wrong field."""

    @abstractmethod
    def build_prompt(self, problem: P, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """What the model is given, in a prompt style (config.PromptStyle). Raises DataError for one that cannot be."""

    @abstractmethod
    def stops(self, problems: Sequence[P], style: str) -> tuple[str, ...]:
        """Texts at which an answer to any of these problems ends."""

    @abstractmethod
    def solution(self, problem: P, completion: str, style: str) -> str:
        """The program to grade, from what the model wrote after the prompt."""

    @abstractmethod
    def texts(self, problem: P) -> tuple[str, str]:
        """Prompt and reference solution ("" where the benchmark has none), to look for in training data."""

    @abstractmethod
    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[P]:
        """A grader that works here and now. Raises SandboxError, saying what to install, when there is none, and
        NotGradable, saying the same, where a toolchain is missing that not everyone has."""

    def versions(self, benchmark: Path, config: EvaluateConfig) -> dict[str, str | None]:
        """What verdicts depend on that is installed beside this package, by name its version; None: it is not there.

        Part of the evaluate stage's key: what was skipped is graded once the toolchain is there. Nothing by default.
        Raises SandboxError where something is missing that the benchmark is not to be skipped for.
        """
        return {}

    def groups(self, problem: P) -> dict[str, str]:
        """What a problem is counted with: by criterion (``library``) the group's name. None by default."""
        return {}

    def labels(self, problems: Sequence[P]) -> dict[str, str]:
        """What reports group benchmarks of this kind by, for results.json. Nothing by default."""
        return {}

    def rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """(line, row) of a benchmark file. Raises DataError for what cannot be read."""
        return read_jsonl(path)

    def load_problems(self, path: Path, max_problems: int | None = None) -> list[P]:
        """The problems of a benchmark file, in its order; only the first ``max_problems`` if given.

        Raises DataError, naming file and line, for a broken line, a missing or wrong field, or a task_id that occurs
        twice, and for a file without problems. The whole file is checked, whatever ``max_problems`` is.
        """
        problems: list[P] = []
        lines: dict[str, int] = {}
        for number, row in self.rows(path):
            problem = self.problem(row, where=f"{str(path)!r}, line {number}")
            if problem.task_id in lines:
                raise DataError(
                    f"{str(path)!r}, line {number}: task_id {problem.task_id!r} was already used in line "
                    f"{lines[problem.task_id]}. Every problem needs its own: rename or remove one of the two.")
            lines[problem.task_id] = number
            problems.append(problem)
        if not problems:
            raise DataError(f"{str(path)!r} holds no problems: it is empty. Give a file with one JSON problem a line.")
        return problems[:max_problems]
