"""``problems.html``: every problem with the models' answers and verdicts side by side, in one file that loads nothing else.

A model's output is hostile text. It enters the page as JSON without any ``<`` and is shown only through ``textContent``.
The page's policy runs only the one script whose hash it names.
"""

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from itertools import combinations
from pathlib import Path
from typing import Any

from xft_core.errors import ArtifactError
from xft_core.reporting.pass_rates import Counts, counts, p_text, pair, pass_rate, rate_text
from xft_core.store.results.evaluate import EvaluationFile, GradedSample
from xft_core.store.results.generate import Sample, generated_samples

PAGE = "problems.html"
PARTS = Path(__file__).parent

# Limits of what is shown: the first samples of a problem, and the beginning of a text.
SHOWN_SAMPLES, SHOWN_CHARACTERS = 10, 20_000


@dataclass(frozen=True)
class Answers:
    """One model's evaluation on one benchmark. ``evaluation``: output of the evaluate stage; ``samples``: output of
    the generate stage, None if only the graded programs are known."""

    model: str
    benchmark: str
    evaluation: Path
    samples: Path | None = None


def write_page(title: str, answers: Sequence[Answers], target: Path) -> None:
    """Write the page. The same answers give the same bytes. Raises ArtifactError for results that cannot be read."""
    texts = _Texts()
    content = {
        "title": title,
        "benchmarks": [
            _benchmark(benchmark, [item for item in answers if item.benchmark == benchmark], texts)
            for benchmark in dict.fromkeys(item.benchmark for item in answers)],
        "texts": texts.all}
    script = (PARTS / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The data contains no "<", so nothing in it can end its element.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    data = data.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    parts = {
        "TITLE": escape(title), "HASH": digest, "STYLE": (PARTS / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": script, "DATA": data}
    page = re.sub("@@([A-Z]+)@@", lambda name: parts[name[1]], (PARTS / "page.html").read_text(encoding="utf-8"))
    target.write_text(page, encoding="utf-8", errors="replace")  # half of a surrogate pair cannot be encoded


class _Texts:
    """Every text, stored once: three models get the same prompt, and often write the same program."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: str | None) -> int | None:
        """The number of a text, shortened if it is very long; None for an empty one."""
        if not text:
            return None
        if len(text) > SHOWN_CHARACTERS:
            text = f"{text[:SHOWN_CHARACTERS]}\n… and {len(text) - SHOWN_CHARACTERS:,} characters more"
        if text not in self._places:
            self._places[text] = len(self.all)
            self.all.append(text)
        return self._places[text]


def _benchmark(title: str, answers: list[Answers], texts: _Texts) -> dict[str, Any]:
    results = {item.model: read_results(item.evaluation) for item in answers}
    of_models = {model: counts(content, "plus") for model, content in results.items()}
    written = {item.model: _written(item.samples) for item in answers}
    by_id = {
        model: {problem.task_id: problem.samples for problem in content.problems}
        for model, content in results.items()}
    task_ids = dict.fromkeys(task_id for of_model in by_id.values() for task_id in of_model)
    facts = next(iter(results.values()))
    return {
        "title": title, "extended": facts.benchmark.extended_tests,
        "models": [
            {"name": model, "base": _rate(counts(content, "base")), "plus": _rate(of_models[model])}
            for model, content in results.items()],
        "pairs": [
            {"first": list(results).index(first), "second": list(results).index(second)} | asdict(found)
            | {"difference": f"{100 * found.difference:+.1f}", "p": p_text(found.p_value)}
            for first, second in combinations(reversed(results), 2)
            if (found := pair(of_models[first], of_models[second]))],
        "problems": [
            {"id": task_id, "answers": [
                _answer(by_id[model].get(task_id), of_models[model].get(task_id), written[model].get(task_id, []), texts)
                for model in results]}
            for task_id in task_ids]}


def _rate(of_problems: Counts) -> str:
    rate = pass_rate(of_problems, 1)
    return rate_text(rate) if rate else "-"


def _answer(
    graded: list[GradedSample] | None, count: tuple[int, int] | None, written: Sequence[Sample | None], texts: _Texts,
) -> dict[str, Any] | None:
    """One model's samples for one problem; None if it was not asked."""
    if graded is None:
        return None
    if len(written) != len(graded):
        written = [None] * len(graded)
    return {
        "passed": count[0] if count else 0, "graded": count[1] if count else 0, "all": len(graded),
        "samples": [
            {"base": verdict.base, "plus": verdict.plus, "detail": texts.place(verdict.detail),
             "program": texts.place(verdict.solution), "completion": texts.place(sample.completion if sample else None),
             "prompt": texts.place(sample.prompt if sample else None), "finish": sample.finish_reason if sample else None,
             "tokens": sample.new_tokens if sample else None}
            for verdict, sample in zip(graded[:SHOWN_SAMPLES], written, strict=False)]}


def read_results(evaluation: Path) -> EvaluationFile:
    """Read the results.json of an evaluation. ``evaluation``: an output directory of the evaluate stage, or the file itself.

    Raises ArtifactError if there is no evaluation.
    """
    path = evaluation / EvaluationFile.file_name if evaluation.is_dir() else evaluation
    try:
        return EvaluationFile.parse(path.read_bytes())
    except OSError:
        raise ArtifactError(
            f"There is no evaluation in {str(evaluation)!r}. Give an output directory of the evaluate stage, or its "
            "results.json.") from None
    except ValueError:
        raise ArtifactError(f"{str(path)!r} is not the results.json of an evaluation.") from None


def _written(samples: Path | None) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for sample in generated_samples(samples) if samples else ():
        found.setdefault(sample.task_id, []).append(sample)
    return found
