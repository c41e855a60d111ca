"""The four models side by side, in numbers: the content of ``comparison.json``. Sentences are made in findings.py."""

from typing import Any

from pydantic import BaseModel, ConfigDict

from xft_core.recipe.checks import mixing_findings, recipe_findings, training_findings
from xft_core.recipe.labels import flat_names, path_labels, unique_labels
from xft_core.recipe.steps import FACTS, MODELS
from xft_core.reporting.pass_rates import Pair, PassRate, counts, pair, pass_rate, rate_text
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.run.multilingual import Average, averages
from xft_core.reporting.statistics import measured_interval

# Which model is compared with which: the question of the paper first.
PAIRS = (("merged", "sft"), ("merged", "base"), ("merged", "moe"), ("moe", "sft"), ("sft", "base"))
ROW_CHARACTERS = 200


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PassAtK(_Part):
    """pass@k on ``tests``: "base", or "plus" where base and extended tests pass."""

    tests: str
    k: int
    rate: PassRate


class Group(_Part):
    """pass@1 (with extended tests) on the problems of one group: of a ``library``, say."""

    criterion: str
    name: str
    problems: int
    rate: PassRate


class Score(_Part):
    """One model on one benchmark. Without ``extended_tests``, "plus" says the same as "base". ``language``: of MultiPL-E."""

    benchmark: str
    language: str | None
    extended_tests: bool
    problems: int
    samples: int
    pass_at_k: list[PassAtK]
    groups: list[Group]
    truncated: int | None
    infrastructure_errors: int

    def rate(self, tests: str, k: int = 1) -> PassRate | None:
        """pass@k on ``tests``, if it was measured."""
        return next((item.rate for item in self.pass_at_k if (item.tests, item.k) == (tests, k)), None)

    def text(self, tests: str, k: int = 1) -> str:
        """pass@k in % with its interval, and how many answers have no part in it; "-" where it was not measured."""
        rate = self.rate(tests, k)
        return rate_text(rate, self.infrastructure_errors) if rate else "-"


class Measure(_Part):
    """A number beside pass@k: held-out loss on other data, or a metric of a task of lm-eval. ``interval``: 95%, over the
    rows or the questions."""

    title: str
    value: float
    interval: tuple[float, float] | None
    higher_is_better: bool | None


class Row(_Part):
    """One model. ``held_out_nll`` in nats per response token; ``parameters_active`` per token."""

    model: str
    name: str
    held_out_nll: float | None
    parameters_total: int | None
    parameters_active: int | None
    scores: list[Score]
    measures: list[Measure]


class Difference(_Part):
    """``model`` beside ``against`` on one benchmark's ``tests``, problem by problem."""

    benchmark: str
    tests: str
    model: str
    against: str
    pair: Pair


class LayerMix(_Part):
    """Shares of the merged layer, which sum to one, and the largest change of one since the start."""

    shared: float | None
    routed: list[float]
    movement: float | None


class Mixing(_Part):
    """How the experts were put together, and what the held-out loss says of it."""

    method: str
    held_out_nll_merged: float | None
    held_out_nll_uniform: float | None
    movement_max: float | None
    movement_mean: float | None
    layers: list[LayerMix]


class LayerRouting(_Part):
    """Use of the routed experts of one layer on held-out rows: loads sum to one, entropy in nats."""

    load: list[float]
    entropy: float
    mean_shared_weight: float | None


class DroppedRow(_Part):
    """A training row that holds a benchmark's problem: by what (see data/decontaminate.py), and how the row begins."""

    benchmark: str
    task_id: str
    kind: str
    excerpt: str
    row: str


class Decontamination(_Part):
    """What was looked for in the training data, and what was found and dropped."""

    benchmarks: list[str]
    rows_checked: int
    dropped: list[DroppedRow]


class Further(_Part):
    """A step that the report has no section for, and its metrics as they are."""

    role: str
    metrics: dict[str, Any]


class Comparison(_Part):
    """Everything the report tells. ``benchmarks``: their titles, in the recipe's order; ``skipped``: of those that could
    not be graded where this ran, with the reason; ``choices``: what in the recipe does not fit; ``went_wrong``: what was
    noticed in training and mixing, by model; ``held_out``: sha256 of the rows that held_out_nll is measured on; ``further``:
    of stages added to the pipeline."""

    recipe: str
    seed: int
    benchmarks: list[str]
    skipped: dict[str, str]
    rows: list[Row]
    multilingual: list[Average]
    differences: list[Difference]
    training_compute_ratio: float | None
    mixing: Mixing | None
    routing: list[LayerRouting]
    choices: list[str] = []
    went_wrong: dict[str, list[str]]
    data: dict[str, int]
    held_out: str | None
    decontamination: Decontamination | None
    further: list[Further] = []

    def row(self, model: str) -> Row | None:
        """The row of one of MODELS, if it is there."""
        return next((row for row in self.rows if row.model == model), None)


def compare(evidence: Evidence) -> Comparison:
    """Put the numbers of all artifacts side by side."""
    prepare = evidence.manifests.get("prepare")
    rows = [row for model in MODELS if (row := _row(evidence, model))]
    return Comparison(
        recipe=evidence.recipe.name, seed=evidence.recipe.seed, benchmarks=evidence.benchmarks(),
        skipped=_skipped(evidence), rows=rows, multilingual=_multilingual(rows), differences=_differences(evidence),
        training_compute_ratio=_training_compute_ratio(evidence), mixing=_mixing(evidence), routing=_routing(evidence),
        choices=recipe_findings(evidence.recipe), went_wrong=_went_wrong(evidence),
        data={name: value for name, value in sorted(prepare.metrics.items()) if type(value) is int} if prepare else {},
        held_out=next((entry.sha256 for entry in prepare.files if entry.path == "held_out.safetensors"), None)
        if prepare else None,
        decontamination=_decontamination(evidence), further=_further(evidence))


def metric_endings(benchmarks: list[str]) -> dict[str, str]:
    """What the names of each benchmark's metrics end in: nothing for the first one, its title for any other."""
    names = flat_names(benchmarks)
    return {benchmark: f"_{names[benchmark]}" if place else "" for place, benchmark in enumerate(benchmarks)}


def _row(evidence: Evidence, model: str) -> Row | None:
    parameters = {
        "base": ("upcycle", "parameters_dense", "parameters_dense"),
        "sft": ("upcycle", "parameters_dense", "parameters_dense"),
        "moe": ("upcycle", "parameters_total", "parameters_active"),
        "merged": ("merge", "parameters", "parameters"),
    }
    stage, total_name, active_name = parameters[model]
    total, active = evidence.metric(stage, total_name), evidence.metric(stage, active_name)
    scores = [
        score for index, benchmark in enumerate(evidence.benchmarks())
        if (score := _score(evidence, model, index, benchmark))]
    nll = _held_out_nll(evidence, model)
    measures = _held_out_measures(evidence, model) + _lm_eval_measures(evidence, model)
    if nll is None and not scores and not measures:
        return None
    return Row(
        model=model, name=evidence.model_name(model), held_out_nll=nll, scores=scores, measures=measures,
        parameters_total=None if total is None else int(total),
        parameters_active=None if active is None else int(active))


def _held_out_nll(evidence: Evidence, model: str) -> float | None:
    if model == "base":
        before = evidence.metric("sft_baseline", "held_out_nll_before")
        # Without a baseline the untouched MoE stands for the base model, where upcycling is the identity.
        if before is None and evidence.recipe.upcycle.is_identity:
            before = evidence.metric("sft_moe", "held_out_nll_before")
        return before
    return evidence.metric({"sft": "sft_baseline", "moe": "sft_moe", "merged": "merge"}[model], "held_out_nll")


def _score(evidence: Evidence, model: str, index: int, benchmark: str) -> Score | None:
    role = f"evaluate_{model}_{index}"
    results = evidence.file(role, "results.json")
    if evidence.metric(role, "plus_pass_at_1") is None or results is None:
        return None
    extended = results.get("benchmark", {}).get("extended_tests", True)
    truncated = evidence.metric(f"generate_{model}_{index}", "truncated")
    rates = []
    for tests in ("base", "plus"):
        of_problems = counts(results, tests)
        rates += [
            PassAtK(tests=tests, k=k, rate=rate) for k in evidence.ks(role) if (rate := pass_rate(of_problems, k))]
    return Score(
        benchmark=benchmark, language=results.get("benchmark", {}).get("language"), extended_tests=extended,
        problems=int(evidence.metric(role, "problems") or 0),
        samples=int(evidence.metric(role, "samples") or 0), pass_at_k=rates, groups=_groups(results),
        truncated=None if truncated is None else int(truncated),
        infrastructure_errors=int(evidence.metric(role, "infrastructure_errors") or 0))


def _groups(results: dict[str, Any]) -> list[Group]:
    of_problems = counts(results, "plus")
    members: dict[tuple[str, str], list[str]] = {}
    for problem in results["problems"]:
        for group in problem.get("groups", {}).items():
            members.setdefault(group, []).append(problem["task_id"])
    found = []
    for (criterion, name), task_ids in sorted(members.items()):
        graded = {task_id: of_problems[task_id] for task_id in task_ids if task_id in of_problems}
        if rate := pass_rate(graded, 1):
            found.append(Group(criterion=criterion, name=name, problems=len(graded), rate=rate))
    return found


def _held_out_measures(evidence: Evidence, model: str) -> list[Measure]:
    labels = path_labels(evidence.recipe.evaluate.held_out_data)
    return [
        Measure(title=f"NLL on {label}", value=value, higher_is_better=False,
                interval=measured_interval(value, evidence.metric(f"nll_{model}_{index}", "nll_standard_error")))
        for index, label in enumerate(labels) if (value := evidence.metric(f"nll_{model}_{index}", "nll")) is not None]


def _lm_eval_measures(evidence: Evidence, model: str) -> list[Measure]:
    names = evidence.recipe.evaluate.lm_eval_tasks
    # A task may be listed beside a group that it belongs to. Labels are those of all models' tasks: they name rows.
    parts = list(dict.fromkeys(
        (index, part) for index, name in enumerate(names) for other in MODELS
        for part in _lm_eval_tasks(evidence, other, index, name)))
    labels = dict(zip(parts, unique_labels([[part, f"{names[index]}/{part}"] for index, part in parts]), strict=True))
    found = []
    for index, name in enumerate(names):
        for part, task in _lm_eval_tasks(evidence, model, index, name).items():
            metrics = task["metrics"]
            found += [
                Measure(title=f"{labels[index, part]} {metric}", value=value,
                        interval=measured_interval(value, metrics.get(f"{metric}_standard_error"), task.get("questions")),
                        higher_is_better=task["higher_is_better"].get(metric))
                for metric, value in metrics.items() if not metric.endswith("_standard_error")]
    return found


def _lm_eval_tasks(evidence: Evidence, model: str, index: int, name: str) -> dict[str, dict[str, Any]]:
    """The aggregate of a group; where it has none, its parts."""
    tasks: dict[str, dict[str, Any]] = (evidence.file(f"lm_eval_{model}_{index}", "results.json") or {"tasks": {}})["tasks"]
    if tasks.get(name, {}).get("metrics"):
        return {name: tasks[name]}
    return {part: task for part, task in tasks.items() if task["metrics"]}


def _skipped(evidence: Evidence) -> dict[str, str]:
    reasons = {}
    for index, benchmark in enumerate(evidence.benchmarks()):
        for model in MODELS:
            results = evidence.file(f"evaluate_{model}_{index}", "results.json") or {}
            if "skipped" in results:
                reasons[benchmark] = results["skipped"]
    return reasons


def _multilingual(rows: list[Row]) -> list[Average]:
    """Of two benchmarks of one language the first counts, for all models."""
    first: dict[str, str] = {}
    for score in (score for row in rows for score in row.scores if score.language):
        first.setdefault(str(score.language), score.benchmark)
    return averages({
        row.model: {
            score.language: (score.problems, rate.value)
            for score in row.scores
            if score.language and first[score.language] == score.benchmark and (rate := score.rate("base"))}
        for row in rows})


def _differences(evidence: Evidence) -> list[Difference]:
    found = []
    for index, benchmark in enumerate(evidence.benchmarks()):
        results = {
            model: content for model in MODELS if (content := evidence.file(f"evaluate_{model}_{index}", "results.json"))}
        for tests in ("base", "plus"):
            of_models = {model: counts(content, tests) for model, content in results.items()}
            for model, against in PAIRS:
                compared = pair(of_models.get(model, {}), of_models.get(against, {}))
                if compared:
                    found.append(
                        Difference(benchmark=benchmark, tests=tests, model=model, against=against, pair=compared))
    return found


def _training_compute_ratio(evidence: Evidence) -> float | None:
    """Computation of the MoE's training over the baseline's: steps (of equal batches) times active parameters."""
    moe = (evidence.metric("sft_moe", "steps") or 0) * (evidence.metric("upcycle", "parameters_active") or 0)
    dense = (evidence.metric("sft_baseline", "steps") or 0) * (evidence.metric("upcycle", "parameters_dense") or 0)
    return moe / dense if moe and dense else None


def _mixing(evidence: Evidence) -> Mixing | None:
    content = evidence.file("mix", "coefficients.json")
    if content is None:
        return None
    first_routed = 1 if content["shared_expert"] else 0
    return Mixing(
        method=content["method"],
        held_out_nll_merged=evidence.metric("mix", "held_out_nll_merged"),
        held_out_nll_uniform=evidence.metric("mix", "held_out_nll_uniform"),
        movement_max=evidence.metric("mix", "movement_max"), movement_mean=evidence.metric("mix", "movement_mean"),
        layers=[
            LayerMix(
                shared=layer["weights"][0] if first_routed else None, routed=layer["weights"][first_routed:],
                movement=layer.get("movement"))
            for layer in content["layers"]])


def _went_wrong(evidence: Evidence) -> dict[str, list[str]]:
    """Sentences on each training and on mixing, by model, from the same limits that would have stopped the run."""
    checks, found = evidence.recipe.checks, {}
    for model, role in (("sft", "sft_baseline"), ("moe", "sft_moe")):
        if role in evidence.manifests:
            found[model] = training_findings(evidence.manifests[role].metrics, checks)
    if "mix" in evidence.manifests:
        found["merged"] = mixing_findings(evidence.manifests["mix"].metrics, evidence.recipe.merge.method, checks)
    return found


def _routing(evidence: Evidence) -> list[LayerRouting]:
    content = evidence.file("sft_moe", "router.json") or {"layers": []}
    return [
        LayerRouting(load=layer["load"], entropy=layer["entropy"], mean_shared_weight=layer["mean_shared_weight"])
        for layer in content["layers"]]


def _further(evidence: Evidence) -> list[Further]:
    return [
        Further(role=role, metrics=dict(sorted(manifest.metrics.items()))) for role, manifest in evidence.manifests.items()
        if not FACTS[manifest.stage].own_section]


def _decontamination(evidence: Evidence) -> Decontamination | None:
    content = evidence.file("prepare", "decontamination.json")
    if content is None:
        return None
    return Decontamination(
        benchmarks=content["benchmarks"], rows_checked=content["rows_checked"],
        dropped=[
            DroppedRow(
                benchmark=item["benchmark"], task_id=item["task_id"], kind=item["kind"], excerpt=item["excerpt"],
                row="\n".join(item["row"])[:ROW_CHARACTERS])
            for item in content["dropped"]])
