"""The evaluate stage: verdicts and pass@k for a model's answers to a benchmark.

results.json              benchmark, versions, sandbox, limits, processor; for every problem its samples' verdicts and the
                          reasons: see store/results/evaluate.py. If this machine lacks the benchmark's toolchain,
                          "skipped" with the reason, and no problems
samples_evalplus.jsonl    {"task_id", "solution"}: the form in which evalplus itself can grade the same samples. Also
                          written for a skipped benchmark, so that it can be graded elsewhere

Verdicts are written to disk problem by problem: a killed run continues with the remaining problems.

A sample is never left out of a score because grading it failed. A sample without a verdict is graded again once nothing else
is being graded. If that attempt fails too, the stage grades known programs: if these are graded correctly, the sample counts as
failed; otherwise the stage ends with an error. The only problems left out are those for which no answer can be graded on this
machine (DS-1000 problems whose libraries are not installed). They are left out for every model alike, and counted.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from xft_core.benchmarks.benchmark import NOT_GRADED, AnyProblem, Grader, Kind, NotGradable, Verdict
from xft_core.benchmarks.pass_at_k import pass_at_k
from xft_core.benchmarks.progress import Progress
from xft_core.benchmarks.registry import kind_of
from xft_core.errors import DataError, SandboxError
from xft_core.files.journal import append, read_appended
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.labels import group_names
from xft_core.reporting.partial_credit import MEAN_SCORE, partial_credit
from xft_core.reporting.statistics import interval_95
from xft_core.runtime.cores import cores
from xft_core.stages.configs import EvaluateStage
from xft_core.store.artifacts import input_digest
from xft_core.store.manifest import MANIFEST, read_manifest
from xft_core.store.results.evaluate import (
    EvaluateMetrics,
    EvaluationFile,
    GradedBenchmark,
    GradedProblem,
    GradedSample,
    GroupScore,
    PassRates,
)
from xft_core.store.results.generate import SAMPLES
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)


def run(config: EvaluateStage, workspace: Workspace) -> EvaluateMetrics:
    """Grade ``config.samples`` (a generate artifact, or a JSONL file with task_id and solution).

    pass@k is measured for k = 1 and for each requested k that every problem has enough samples for.
    Raises DataError for samples that do not answer the benchmark, SandboxError if nothing can be graded on this machine.
    """
    started = time.monotonic()
    benchmark = config.inputs()["benchmark"]
    benchmark_digest = input_digest(benchmark)
    kind = kind_of(benchmark)
    problems, solutions = read_samples(config.samples, kind, benchmark, benchmark_digest)
    labels: dict[str, Any] = kind.labels(problems)
    described = GradedBenchmark(
        file=benchmark.name, sha256=benchmark_digest, kind=kind.name, extended_tests=kind.extended_tests,
        problems=len(problems), **labels)
    groups: dict[str, float] = {}
    credit: dict[str, float] = {}
    try:
        grader = kind.open_grader(config.evaluate, benchmark)
    except NotGradable as reason:
        logger.warning("%s is skipped: %s", benchmark.name, reason)
        results = EvaluationFile(benchmark=described, skipped=str(reason), problems=[])
        rates = no_rates(len(problems), sum(map(len, solutions.values())))
    else:
        verdicts = grade_all(
            problems, solutions, grader, config.evaluate.workers or cores(), workspace.checkpoints / "verdicts.jsonl")
        by_criterion = group_scores({problem.task_id: kind.groups(problem) for problem in problems}, verdicts)
        grouped: dict[str, Any] = {"groups": by_criterion} if by_criterion else {}
        results = EvaluationFile(
            benchmark=described, **grader.facts(), cpu=_processor(), **grouped, problems=[
                GradedProblem(task_id=problem.task_id, **_grouped(kind, problem), samples=[
                    GradedSample(**_given(verdict), solution=solution)
                    for verdict, solution in zip(verdicts[problem.task_id], solutions[problem.task_id], strict=True)])
                for problem in problems])
        rates = scores(list(verdicts.values()), config.evaluate.k)
        credit = {item.name: item.value for item in partial_credit(results)}
        scored = {
            (criterion, name): group.pass_at_1 for criterion, found in by_criterion.items() for name, group in found.items()}
        groups = {name: scored[group] for group, name in group_names(scored).items()}
    results.write(workspace.output)
    with (workspace.output / "samples_evalplus.jsonl").open("w", encoding="utf-8") as stream:
        for problem in problems:
            for solution in solutions[problem.task_id]:
                stream.write(json.dumps({"task_id": problem.task_id, "solution": solution}, ensure_ascii=False) + "\n")
    return EvaluateMetrics(
        **dict(rates), mean_score=credit.pop(MEAN_SCORE, None), measures=credit, skipped=None if results.skipped is None else 1,
        pass_at_1_of_group=groups, seconds=round(time.monotonic() - started, 3))


def read_samples(
    samples: Path, kind: Kind[Any], benchmark: Path, benchmark_digest: str,
) -> tuple[list[AnyProblem], dict[str, list[str]]]:
    """Return the answered problems, in the benchmark's order, and the programs that answer each, by task_id.

    Raises DataError, with file and line, for a line that is not a sample of this benchmark.
    """
    if (samples / MANIFEST).is_file():
        answered = read_manifest(samples).parents.get("benchmark")
        if answered not in (None, benchmark_digest):
            raise DataError(
                f"The samples in {str(samples)!r} answer another benchmark, or another version of it, than "
                f"{str(benchmark)!r} (sha256 {answered[:12]}… and {benchmark_digest[:12]}…). Generate new samples.")
    path = samples if samples.is_file() else samples / SAMPLES
    if not path.is_file():
        raise DataError(f"There is no file {str(path)!r}. Give the output directory of the generate stage.")
    known = {problem.task_id: problem for problem in kind.load_problems(benchmark)}
    solutions: dict[str, list[str]] = {task_id: [] for task_id in known}
    for number, row in read_jsonl(path):
        task_id, solution = row.get("task_id"), row.get("solution")
        if not isinstance(task_id, str) or not isinstance(solution, str):
            raise DataError(f"{str(path)!r}, line {number}: a sample needs the strings task_id and solution.")
        try:
            solution.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{str(path)!r}, line {number}: the solution is not text ({error}). Remove the incomplete character.") from None
        if task_id not in known:
            raise DataError(
                f"{str(path)!r}, line {number}: the benchmark {str(benchmark)!r} has no problem {task_id!r}. "
                "Give the benchmark that these samples answer.")
        solutions[task_id].append(solution)
    solutions = {task_id: programs for task_id, programs in solutions.items() if programs}
    if not solutions:
        raise DataError(f"{str(path)!r} holds no samples: there is nothing to grade.")
    return [known[task_id] for task_id in solutions], solutions


def scores(verdicts: Sequence[Sequence[Verdict]], ks: Sequence[int]) -> PassRates:
    """Compute pass@k of a benchmark from the verdicts on each problem's samples.

    A problem counts with all its samples; samples without a verdict count as failed. A problem without any verdict does not
    count. Raises SandboxError if there is no verdict at all."""
    graded = [of_problem for of_problem in verdicts if _is_graded(of_problem)]
    samples = sum(map(len, verdicts))
    errors = samples - sum(map(len, graded))
    if not graded:
        reasons = sorted({verdict.detail for of_problem in verdicts for verdict in of_problem})
        raise SandboxError(f"None of the {samples} samples could be graded: {'; '.join(reasons)}.")
    if errors:
        logger.warning(
            "%d of %d problems cannot be graded here and do not count", len(verdicts) - len(graded), len(verdicts))
    possible = [k for k in sorted({1, *ks}) if k <= min(map(len, graded))]
    base_pass_at, plus_pass_at = ({
        k: _mean([
            pass_at_k(len(of_problem), sum(getattr(verdict, tests) == "pass" for verdict in of_problem), k)
            for of_problem in graded])
        for k in possible} for tests in ("base", "plus"))
    rates = [sum(verdict.plus == "pass" for verdict in of_problem) / len(of_problem) for of_problem in graded]
    low, high = interval_95(rates, samples - errors)
    return PassRates(
        base_pass_at=base_pass_at, plus_pass_at=plus_pass_at, plus_interval_low=low, plus_interval_high=high,
        problems=len(verdicts), samples=samples, infrastructure_errors=errors)


def no_rates(problems: int, samples: int) -> PassRates:
    """Return the rates of a skipped benchmark."""
    return PassRates(
        base_pass_at={}, plus_pass_at={}, plus_interval_low=None, plus_interval_high=None, problems=problems,
        samples=samples, infrastructure_errors=None)


def group_scores(
    groups: Mapping[str, Mapping[str, str]], verdicts: Mapping[str, Sequence[Verdict]],
) -> dict[str, dict[str, GroupScore]]:
    """Return the score of every group, by criterion and name.

    ``groups``: by task_id, the group for each criterion. A group is left out if none of its problems could be graded.
    """
    rates: dict[str, dict[str, list[float]]] = {}
    for task_id, of_problem in verdicts.items():
        for criterion, name in groups[task_id].items() if _is_graded(of_problem) else ():
            passed = sum(verdict.plus == "pass" for verdict in of_problem)
            rates.setdefault(criterion, {}).setdefault(name, []).append(passed / len(of_problem))
    return {
        criterion: {name: GroupScore(problems=len(values), pass_at_1=_mean(values)) for name, values in of_criterion.items()}
        for criterion, of_criterion in rates.items()}


def grade_all(
    problems: list[AnyProblem], solutions: dict[str, list[str]], grader: Grader[Any], workers: int, graded: Path,
) -> dict[str, list[Verdict]]:
    """Return the verdicts on each problem's samples, by task_id.

    Verdicts in the file ``graded`` are reused; new ones are added to it. Only ungradable problems keep infrastructure errors.

    Raises SandboxError if this machine stops grading.
    """
    verdicts = {row["task_id"]: [Verdict(**verdict) for verdict in row["verdicts"]] for row in read_appended(graded)}
    again: list[AnyProblem] = []
    waiting = []
    for problem in problems:
        if problem.task_id not in verdicts:
            reason = grader.ungradable(problem)
            if reason is None:
                waiting.append(problem)
            else:
                verdicts[problem.task_id] = [replace(NOT_GRADED, detail=reason)] * len(solutions[problem.task_id])
    progress = Progress(logger, "evaluate", len(problems), len(problems) - len(waiting))

    def keep(problem: AnyProblem, found: list[Verdict]) -> None:
        verdicts[problem.task_id] = found
        append(graded, {"task_id": problem.task_id, "verdicts": list(map(_given, found))})
        progress.advance(1)

    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(grader.grade, problem, solutions[problem.task_id]): problem for problem in waiting}
        for future in as_completed(futures):
            problem, found = futures[future], future.result()
            if all(map(_has_verdict, found)):
                keep(problem, found)
            else:
                verdicts[problem.task_id] = found
                again.append(problem)
        for problem in again:
            found = verdicts[problem.task_id]
            keep(problem, [
                verdict if _has_verdict(verdict) else _graded_alone(problem, solution, verdict, grader)
                for verdict, solution in zip(found, solutions[problem.task_id], strict=True)])
    finally:
        grader.stop()  # after an error or interrupt, do not wait for grading in progress
        pool.shutdown(cancel_futures=True)
        progress.close()
    return {problem.task_id: verdicts[problem.task_id] for problem in problems}


def _graded_alone(problem: AnyProblem, solution: str, first: Verdict, grader: Grader[Any]) -> Verdict:
    """Grade a sample again after an infrastructure error, while nothing else is being graded."""
    (verdict,) = grader.grade(problem, [solution], alone=True)
    if _has_verdict(verdict):
        return verdict
    logger.warning("%s: a sample could not be graded, even with nothing else being graded: %s", problem.task_id, verdict.detail)
    grader.check()  # raises if the machine is the cause
    return Verdict("fail", "fail", f"it cannot be graded: {first.detail}; and again, alone: {verdict.detail}")


def _has_verdict(verdict: Verdict) -> bool:
    return "infrastructure_error" not in (verdict.base, verdict.plus)


def _is_graded(of_problem: Sequence[Verdict]) -> bool:
    return any(map(_has_verdict, of_problem))


def _grouped(kind: Kind[Any], problem: AnyProblem) -> dict[str, Any]:
    groups = kind.groups(problem)
    return {"groups": groups} if groups else {}


def _given(verdict: Verdict) -> dict[str, Any]:
    """Return a verdict's fields, with score and measures only if there are any."""
    optional: dict[str, Any] = {"score": None, "measures": {}}
    return {name: value for name, value in asdict(verdict).items() if name not in optional or value != optional[name]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _processor() -> str:
    """Return the processor's name. Time limits, and with them verdicts on slow programs, depend on it."""
    description: dict[str, Any] = {}
    if os.path.exists("/proc/cpuinfo"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            description.setdefault(name.strip(), value.strip())
    return description.get("model name") or platform.machine()
