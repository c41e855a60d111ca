"""IFEval's file as a kind of benchmark: key, prompt, instruction_id_list, kwargs.

base        the answer follows all instructions of a prompt loosely (prompt-level loose accuracy)
plus        the answer follows all of them strictly (prompt-level strict accuracy)
measures    instructions_strict and instructions_loose, the shares of single instructions that are followed
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xft_core.benchmarks.benchmark import Grader, Kind, Verdict
from xft_core.benchmarks.ifeval.checkers import CHECKERS, RELATIONS, UNCHECKED, follows
from xft_core.benchmarks.prompts import instruction_prompt
from xft_core.errors import DataError
from xft_core.recipe.sections import EvaluateConfig

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from xft_core.data.prompt_text import PromptText


@dataclass(frozen=True)
class Instructed:
    """One prompt with its instructions, each a name with its arguments."""

    task_id: str
    prompt: str
    instructions: tuple[tuple[str, dict[str, Any]], ...]


class RuleGrader(Grader[Instructed]):
    """Checks whether answers follow their instructions."""

    def grade(self, problem: Instructed, samples: list[str], alone: bool = False) -> list[Verdict]:
        """See Grader."""
        return [_verdict(problem, sample) for sample in samples]

    def check(self) -> None:
        """See Grader. It needs nothing from the machine."""

    def ungradable(self, problem: Instructed) -> str | None:
        """See Grader."""
        found = next((name for name, _ in problem.instructions if name in UNCHECKED), None)
        return None if found is None else f"{found} cannot be checked: {UNCHECKED[found]}"

    def facts(self) -> dict[str, Any]:
        """See Grader."""
        return {}

    def stop(self) -> None:
        """See Grader."""


class IFEval(Kind[Instructed]):
    """See the module."""

    name = "IFEval"
    fields = frozenset({"key", "prompt", "instruction_id_list", "kwargs"})
    extended_tests = True
    runs_programs = False
    unused_settings = frozenset({"min_time_limit", "time_limit_factor", "memory_limit_mb", "sandbox"})

    def problem(self, row: dict[str, Any], where: str) -> Instructed:
        """See Kind. Null arguments count as absent, as in the Hub's copy of the file."""
        key, prompt, names, arguments = (row.get(name) for name in ("key", "prompt", "instruction_id_list", "kwargs"))
        if isinstance(key, bool) or not isinstance(key, int | str) or not str(key).strip():
            raise DataError(f"{where}: key is {_shown(key)}. Give a number or a text.")
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"{where}: prompt is {_shown(prompt)}. Give a text.")
        if not isinstance(names, list) or not names:
            raise DataError(f"{where}: instruction_id_list is {_shown(names)}. Give a list of IFEval's names.")
        if not isinstance(arguments, list) or len(arguments) != len(names) or not all(
                isinstance(item, dict) for item in arguments):
            raise DataError(
                f"{where}: kwargs is {_shown(arguments)}. Give a list of {len(names)} objects, one for each instruction.")
        given = [{name: value for name, value in item.items() if value is not None} for item in arguments]
        for name, found in zip(names, given, strict=True):
            if complaint := _wrong(name, found):
                raise DataError(f"{where}: {complaint}")
        return Instructed(str(key), prompt, tuple(
            (name, {argument: found[argument] for argument in CHECKERS[name].arguments})
            for name, found in zip(names, given, strict=True)))

    def build_prompt(self, problem: Instructed, style: str, tokenizer: "PreTrainedTokenizerBase") -> "PromptText":
        """See Kind."""
        return instruction_prompt(problem.prompt, f"{problem.prompt}\n", style, tokenizer)

    def stops(self, problems: Sequence[Instructed], style: str) -> tuple[str, ...]:
        """See Kind. An answer may have any number of paragraphs."""
        return ()

    def solution(self, problem: Instructed, completion: str, style: str) -> str:
        """See Kind. The whole completion."""
        return completion

    def texts(self, problem: Instructed) -> tuple[str, str]:
        """See Kind."""
        return problem.prompt, ""

    def open_grader(self, config: EvaluateConfig, benchmark: Path) -> Grader[Instructed]:
        """See Kind."""
        return RuleGrader()


def _verdict(problem: Instructed, sample: str) -> Verdict:
    each = [follows(name, arguments, sample) for name, arguments in problem.instructions]
    loose = all(is_loose for _, is_loose in each)
    broken = [name for (name, _), (is_strict, _) in zip(problem.instructions, each, strict=True) if not is_strict]
    return Verdict(
        "pass" if loose else "fail", "fail" if broken else "pass", f"not followed: {', '.join(broken)}" if broken else "",
        measures={"instructions_strict": [sum(is_strict for is_strict, _ in each), len(each)],
                  "instructions_loose": [sum(is_loose for _, is_loose in each), len(each)]})


def _wrong(name: Any, arguments: dict[str, Any]) -> str | None:
    """What is wrong with an instruction; None if nothing is."""
    if not isinstance(name, str) or name not in CHECKERS:
        return f"instruction_id_list names {_shown(name)}, which is none of IFEval's: {', '.join(sorted(CHECKERS))}."
    for argument, kind in CHECKERS[name].arguments.items():
        value = arguments.get(argument)
        if isinstance(value, bool) or not isinstance(value, kind) or value in ("", []) or (
                isinstance(value, list) and not all(isinstance(item, str) and item for item in value)):
            wanted = {int: "a whole number", str: "a text", list: "a list of texts"}[kind]
            return f"kwargs of {name}: {argument} is {_shown(value)}. Give {wanted}."
        if argument.endswith("relation") and value not in RELATIONS:
            return f"kwargs of {name}: {argument} is {_shown(value)}. Give one of: {', '.join(RELATIONS)}."
    unknown = sorted(arguments.keys() - CHECKERS[name].arguments.keys())
    return f"kwargs of {name}: it has no argument {unknown[0]!r}. Remove it." if unknown else None


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)[:80]
