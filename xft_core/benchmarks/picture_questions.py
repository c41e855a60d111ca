"""Questions about pictures with one short answer, graded by exact match; nothing is run.

A row has task_id, image (a data URL, see data/picture_rows.py), question and answer. The first line that a model writes is
compared with the answer; case, surrounding white space and a full stop at its end play no part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind, Verdict
from xft_core.benchmarks.prompts import cut
from xft_core.data.picture_rows import opened, picture_bytes
from xft_core.errors import DataError
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText

STOPS = ("\n",)


@dataclass(frozen=True)
class PictureQuestion:
    """One problem; ``pictures``: the bytes of the picture's file."""

    task_id: str
    question: str
    answer: str
    pictures: tuple[bytes, ...]


class ExactMatch(Grader[PictureQuestion]):
    """Compares answers as text."""

    def grade(self, problem: PictureQuestion, samples: list[str], alone: bool = False) -> list[Verdict]:
        """See Grader."""
        return [
            Verdict("pass", "pass") if plain(sample) == plain(problem.answer)
            else Verdict("fail", "fail", f"answered {sample.strip()!r}, not {problem.answer!r}") for sample in samples]

    def check(self) -> None:
        """See Grader. It needs nothing from the machine."""

    def facts(self) -> dict[str, Any]:
        """See Grader."""
        return {}

    def stop(self) -> None:
        """See Grader."""


class PictureQuestions(Kind[PictureQuestion]):
    """See the module."""

    name = "picture questions"
    fields = frozenset({"task_id", "image", "question", "answer"})
    extended_tests = False
    runs_programs = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor", "memory_limit_mb"})

    def problem(self, row: dict[str, Any], where: str) -> PictureQuestion:
        """See Kind."""
        for field in ("task_id", "question", "answer"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise DataError(f"{where}: {field} is {row.get(field)!r}. Give a text.")
        try:
            picture = picture_bytes(row.get("image"), None)
            opened(picture)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        return PictureQuestion(row["task_id"], row["question"], row["answer"], (picture,))

    def build_prompt(self, problem: PictureQuestion, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind. For a model that reads pictures, its processor builds the prompt instead (stages/generate.py)."""
        raise DataError(
            "The benchmark asks about pictures, and the model reads none. Use a model that does, or remove the benchmark.")

    def stops(self, problems: Sequence[PictureQuestion], style: str) -> tuple[str, ...]:
        """See Kind."""
        return STOPS

    def solution(self, problem: PictureQuestion, completion: str, style: str) -> str:
        """See Kind. The first line of the answer."""
        return cut(completion.lstrip(), STOPS)

    def texts(self, problem: PictureQuestion) -> tuple[str, str]:
        """See Kind. Empty: the same question about another picture is another problem (see stages/prepare_pictures.py)."""
        return "", ""

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[PictureQuestion]:
        """See Kind."""
        return ExactMatch()


def plain(answer: str) -> str:
    """The form of an answer that is compared."""
    return " ".join(answer.casefold().split()).removesuffix(".")
