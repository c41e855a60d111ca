"""The four models side by side, in numbers: the content of ``comparison.json``. Sentences are made in findings.py."""

import math
import re
from statistics import fmean, pstdev, stdev

from pydantic import BaseModel, ConfigDict

from xft_core.checks import mixing_findings, training_findings
from xft_core.reporting.evidence import MODELS, Evidence

# Which model is compared with which: the question of the paper first.
PAIRS = (("merged", "sft"), ("merged", "base"), ("merged", "moe"), ("moe", "sft"), ("sft", "base"))


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Score(_Part):
    """pass@1 on one benchmark: fractions, standard errors over its problems. "plus": base and plus tests pass."""

    benchmark: str
    problems: int
    samples: int
    base_pass_at_1: float
    base_standard_error: float | None
    plus_pass_at_1: float
    plus_standard_error: float | None
    truncated: int | None
    infrastructure_errors: int


class Row(_Part):
    """One model. ``held_out_nll`` in nats per response token; ``parameters_active`` per token."""

    model: str
    name: str
    held_out_nll: float | None
    parameters_total: int | None
    parameters_active: int | None
    scores: list[Score]


class Difference(_Part):
    """pass@1 of ``model`` minus that of ``against``, paired over the problems that both answered.

    ``better`` and ``worse`` count problems; ``sign_test`` is the two-sided exact p-value of that split (McNemar's
    exact test when there is one sample a problem).
    """

    benchmark: str
    tests: str
    model: str
    against: str
    difference: float
    standard_error: float | None
    better: int
    worse: int
    sign_test: float


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


class Comparison(_Part):
    """Everything the report tells. ``went_wrong``: what was noticed in training and mixing, by model."""

    recipe: str
    seed: int
    rows: list[Row]
    differences: list[Difference]
    training_compute_ratio: float | None
    mixing: Mixing | None
    routing: list[LayerRouting]
    went_wrong: dict[str, list[str]]
    data: dict[str, int]

    def row(self, model: str) -> Row | None:
        """The row of one of MODELS, if it is there."""
        return next((row for row in self.rows if row.model == model), None)


def compare(evidence: Evidence) -> Comparison:
    """Put the numbers of all artifacts side by side."""
    prepare = evidence.manifests.get("prepare")
    rows = [row for model in MODELS if (row := _row(evidence, model))]
    return Comparison(
        recipe=evidence.recipe.name, seed=evidence.recipe.seed, rows=rows, differences=_differences(evidence),
        training_compute_ratio=_training_compute_ratio(evidence), mixing=_mixing(evidence), routing=_routing(evidence),
        went_wrong=_went_wrong(evidence),
        data={name: value for name, value in sorted(prepare.metrics.items()) if type(value) is int} if prepare else {})


def metric_ending(benchmark: str, first: str | None) -> str:
    """What the names of a benchmark's metrics end in: nothing for the ``first`` one, its title for any other."""
    return "" if benchmark == first else "_" + re.sub(r"[^a-z0-9]+", "_", benchmark.lower()).strip("_")


def sign_test(better: int, worse: int) -> float:
    """Two-sided exact p-value of ``better`` against ``worse`` when either is as likely."""
    total = better + worse
    tail = sum(math.comb(total, count) for count in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**total)


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
    if nll is None and not scores:
        return None
    return Row(
        model=model, name=evidence.model_name(model), held_out_nll=nll, scores=scores,
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
    base, plus = evidence.metric(role, "base_pass_at_1"), evidence.metric(role, "plus_pass_at_1")
    if base is None or plus is None:
        return None
    truncated = evidence.metric(f"generate_{model}_{index}", "truncated")
    base_rates = list(_pass_rates(evidence, role, "base").values())
    return Score(
        benchmark=benchmark, problems=int(evidence.metric(role, "problems") or 0),
        samples=int(evidence.metric(role, "samples") or 0),
        base_pass_at_1=base,
        # Of the population, as the evaluate stage has it for plus.
        base_standard_error=pstdev(base_rates) / math.sqrt(len(base_rates)) if base_rates else None,
        plus_pass_at_1=plus, plus_standard_error=evidence.metric(role, "plus_standard_error"),
        truncated=None if truncated is None else int(truncated),
        infrastructure_errors=int(evidence.metric(role, "infrastructure_errors") or 0))


def _pass_rates(evidence: Evidence, role: str, tests: str) -> dict[str, float]:
    """Fraction of passing samples of every problem in an evaluation's results.json, over those that were graded."""
    rates = {}
    for problem in (evidence.file(role, "results.json") or {"problems": []})["problems"]:
        graded = [sample[tests] for sample in problem["samples"] if sample[tests] != "infrastructure_error"]
        if graded:
            rates[problem["task_id"]] = fmean(verdict == "pass" for verdict in graded)
    return rates


def _differences(evidence: Evidence) -> list[Difference]:
    found = []
    for index, benchmark in enumerate(evidence.benchmarks()):
        for tests in ("base", "plus"):
            rates = {model: _pass_rates(evidence, f"evaluate_{model}_{index}", tests) for model in MODELS}
            for model, against in PAIRS:
                common = sorted(rates[model].keys() & rates[against].keys())
                if not common:
                    continue
                changes = [rates[model][problem] - rates[against][problem] for problem in common]
                better, worse = sum(change > 0 for change in changes), sum(change < 0 for change in changes)
                found.append(Difference(
                    benchmark=benchmark, tests=tests, model=model, against=against, difference=fmean(changes),
                    standard_error=stdev(changes) / math.sqrt(len(changes)) if len(changes) > 1 else None,
                    better=better, worse=worse, sign_test=sign_test(better, worse)))
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
