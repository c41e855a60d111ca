"""Multiple choice, in the form of MMLU's file (Hendrycks et al. 2021), graded by the likelihood of the choices: the model
writes nothing, and nothing is run.

A row has question, choices (a list of texts), answer (the right choice's index from 0, its letter, or its text), and
optionally subject and task_id. The model is asked twice (stages/choice_scores.py), and its likeliest choice is its answer:

acc           the choice with the largest log-likelihood after the question; it decides whether a problem passes
acc_norm      the same, with the log-likelihood divided by the choice's characters, as in lm-evaluation-harness
acc_letters   the likeliest letter after the question and the lettered choices, which is how MMLU itself asks
"""

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind, Verdict
from xft_core.benchmarks.prompts import instruction_prompt
from xft_core.data.prompt_text import PromptText
from xft_core.errors import DataError
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class ChoiceQuestion:
    """One problem. ``answer``: the right choice's index, from 0; ``subject``: "" for none."""

    task_id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str


class LikelihoodGrader(Grader[ChoiceQuestion]):
    """Picks the likeliest choice. A sample is a JSON object: {"log_likelihoods": [nats, ...], "letters": [nats, ...]}."""

    def grade(self, problem: ChoiceQuestion, samples: list[str], alone: bool = False) -> list[Verdict]:
        """See Grader."""
        return [_verdict(problem, sample) for sample in samples]

    def check(self) -> None:
        """See Grader. It needs nothing from the machine."""

    def facts(self) -> dict[str, Any]:
        """See Grader."""
        return {}

    def stop(self) -> None:
        """See Grader."""


class MultipleChoice(Kind[ChoiceQuestion]):
    """See the module."""

    name = "multiple choice"
    fields = frozenset({"question", "choices", "answer"})
    extended_tests = False
    runs_programs = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor", "memory_limit_mb", "sandbox"})

    def rows(self, path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
        """See Kind. A row without a task_id is named after its line."""
        for number, row in read_jsonl(path):
            yield number, {"task_id": f"{path.name.partition('.')[0]}/{number}", **row}

    def problem(self, row: dict[str, Any], where: str) -> ChoiceQuestion:
        """See Kind."""
        for field in ("task_id", "question"):
            if not isinstance(row.get(field), str) or not row[field].strip():
                raise DataError(f"{where}: {field} is {_shown(row.get(field))}. Give a text.")
        choices = row.get("choices")
        if not isinstance(choices, list) or not 2 <= len(choices) <= len(LETTERS) or not all(
                isinstance(choice, str) and choice.strip() for choice in choices):
            raise DataError(
                f"{where}: choices is {_shown(choices)}. Give a list of 2 to {len(LETTERS)} texts, none of which is empty.")
        if len(set(choices)) < len(choices):
            raise DataError(f"{where}: choices has the same text twice: {_shown(choices)}. Remove one, or correct it.")
        subject = row.get("subject", "")
        if not isinstance(subject, str):
            raise DataError(f"{where}: subject is {_shown(subject)}. Give a text, or leave it out.")
        place = _place(row.get("answer"), choices)
        if place is None:
            raise DataError(
                f"{where}: answer is {_shown(row.get('answer'))}, which is none of the {len(choices)} choices. Give its index "
                f"(0 to {len(choices) - 1}), its letter (A to {LETTERS[len(choices) - 1]}) or its text.")
        return ChoiceQuestion(row["task_id"], row["question"], tuple(choices), place, subject)

    def build_prompt(self, problem: ChoiceQuestion, style: str, tokenizer: "PreTrainedTokenizerBase") -> PromptText:
        """See Kind. The choices follow this prompt."""
        return instruction_prompt(problem.question, f"Question: {problem.question}\nAnswer:", style, tokenizer)

    def choices(self, problem: ChoiceQuestion, style: str, tokenizer: "PreTrainedTokenizerBase") -> list[PromptText]:
        """Every text whose likelihood is needed: each choice, then each letter, after its prompt."""
        prompt = self.build_prompt(problem, style, tokenizer)
        listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
        lettered = instruction_prompt(
            f"{problem.question}\n{listed}\nAnswer with the letter.", f"{problem.question}\n{listed}\nAnswer:", style,
            tokenizer)
        space = " " if style == "completion" else ""  # a tuned model's answer begins on a new line
        return [*(prompt.begin(space + choice) for choice in problem.choices),
                *(lettered.begin(space + letter) for letter in LETTERS[:len(problem.choices)])]

    def stops(self, problems: Sequence[ChoiceQuestion], style: str) -> tuple[str, ...]:
        """See Kind. The model writes nothing."""
        return ()

    def solution(self, problem: ChoiceQuestion, completion: str, style: str) -> str:
        """See Kind."""
        return completion

    def texts(self, problem: ChoiceQuestion) -> tuple[str, str]:
        """See Kind."""
        return problem.question, ""

    def groups(self, problem: ChoiceQuestion) -> dict[str, str]:
        """See Kind."""
        return {"subject": problem.subject} if problem.subject else {}

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[ChoiceQuestion]:
        """See Kind."""
        return LikelihoodGrader()


def likeliest(values: Sequence[float]) -> int:
    """The index of the largest value; the first if several are equal."""
    return max(range(len(values)), key=values.__getitem__)


def _verdict(problem: ChoiceQuestion, sample: str) -> Verdict:
    number = len(problem.choices)
    try:
        content = json.loads(sample)
        texts, letters = ([float(value) for value in content[name]] for name in ("log_likelihoods", "letters"))
    except (ValueError, TypeError, KeyError, RecursionError):
        texts, letters = [], []
    if len(texts) != number or len(letters) != number:
        return Verdict(
            "fail", "fail", "no likelihoods of the choices: the model was not asked, or the answers are from another stage",
            measures={name: [0, 1] for name in ("acc_norm", "acc_letters")})
    chosen = likeliest(texts)
    normalised = likeliest([value / len(choice) for value, choice in zip(texts, problem.choices, strict=True)])
    measures: dict[str, list[float]] = {
        "acc_norm": [int(normalised == problem.answer), 1], "acc_letters": [int(likeliest(letters) == problem.answer), 1]}
    if chosen == problem.answer:
        return Verdict("pass", "pass", measures=measures)
    return Verdict(
        "fail", "fail", f"{problem.choices[chosen]!r} is likelier than {problem.choices[problem.answer]!r}", measures=measures)


def _place(answer: Any, choices: list[str]) -> int | None:
    if isinstance(answer, int) and not isinstance(answer, bool):
        return answer if 0 <= answer < len(choices) else None
    if not isinstance(answer, str):
        return None
    if answer in choices:
        return choices.index(answer)
    return LETTERS.index(answer) if answer in LETTERS[:len(choices)] and len(answer) == 1 else None


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]
