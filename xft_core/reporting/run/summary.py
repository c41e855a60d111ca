"""The numbers of the four models side by side: the content of ``comparison.json``, see comparison.py. findings.py writes the
sentences."""

from xft_core.recipe.checks import mixing_findings, preference_findings, recipe_findings, training_findings
from xft_core.recipe.labels import flat_names, path_labels, unique_labels
from xft_core.recipe.steps import (
    BASE_MODEL,
    DPO,
    FACTS,
    MERGED_MODEL,
    MIXED,
    MODELS,
    MOE_MODEL,
    PAIRS,
    PREPARED,
    SFT_MODEL,
    TUNED,
    exports,
    measuring_role,
)
from xft_core.reporting.partial_credit import TITLES, partial_credit
from xft_core.reporting.pass_rates import counts, pair, pass_rate
from xft_core.reporting.run.comparison import (
    Comparison,
    Decontamination,
    Difference,
    Domain,
    DroppedRow,
    Further,
    Group,
    LayerMix,
    LayerRouting,
    Measure,
    Mixing,
    MixingOptions,
    PassAtK,
    Row,
    Score,
)
from xft_core.reporting.run.domains import domain_routing, domains, source_counts
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.run.multilingual import Average, averages
from xft_core.reporting.run.row_comparisons import row_comparisons
from xft_core.reporting.run.token_classes import router_file, token_classes
from xft_core.reporting.statistics import measured_interval
from xft_core.store.results.evaluate import EvaluateMetrics, EvaluationFile
from xft_core.store.results.export import ExportMetrics
from xft_core.store.results.generate import GenerateMetrics
from xft_core.store.results.lm_eval import LmEvalFile, TaskResults
from xft_core.store.results.mix import CoefficientsFile, HeadroomFile, MixMetrics
from xft_core.store.results.nll import NllMetrics
from xft_core.store.results.prepare import DecontaminationFile
from xft_core.store.results.row_losses import RowLossesMetrics

ROW_CHARACTERS = 200


def compare(evidence: Evidence) -> Comparison:
    """Put the numbers of all artifacts side by side."""
    prepare, prepared = evidence.manifests.get(PREPARED), evidence.prepare()
    of_domains = domains(evidence)
    rows = [row for model in evidence.measured_models() if (row := _row(evidence, model, of_domains))]
    return Comparison(
        recipe=evidence.recipe.name, seed=evidence.recipe.seed, benchmarks=evidence.benchmarks(),
        skipped=_skipped(evidence), rows=rows, multilingual=_multilingual(rows), differences=_differences(evidence),
        training_compute_ratio=_training_compute_ratio(evidence), mixing=_mixing(evidence), routing=_routing(evidence),
        expert_delta_cosine=moe.expert_delta_cosine if (moe := evidence.sft(MOE_MODEL)) else None,
        choices=recipe_findings(evidence.recipe), went_wrong=_went_wrong(evidence),
        data=dict(sorted(prepared.flat().items())) if prepared else {},
        held_out=next((entry.sha256 for entry in prepare.files if entry.path == "held_out.safetensors"), None)
        if prepare else None,
        decontamination=_decontamination(evidence), row_comparisons=row_comparisons(evidence), domains=of_domains,
        sources=source_counts(evidence), domain_routing=domain_routing(evidence),
        token_classes=token_classes(evidence), further=_further(evidence))


def metric_endings(benchmarks: list[str]) -> dict[str, str]:
    """The suffix of each benchmark's metric names: empty for the first benchmark, the title for any other."""
    names = flat_names(benchmarks)
    return {benchmark: f"_{names[benchmark]}" if place else "" for place, benchmark in enumerate(benchmarks)}


def _row(evidence: Evidence, model: str, of_domains: list[Domain]) -> Row | None:
    total, active = _parameters(evidence, model)
    scores = [
        score for index, benchmark in enumerate(evidence.benchmarks())
        if (score := _score(evidence, model, index, benchmark))]
    nll = _held_out_nll(evidence, model)
    measures = [
        Measure(title=f"NLL on {domain.name}", value=loss.nll, interval=loss.interval, higher_is_better=False)
        for domain in of_domains if (loss := domain.loss(model))]
    measures += _partial_credit(evidence, model)
    measures += _held_out_measures(evidence, model) + _lm_eval_measures(evidence, model)
    if nll is None and not scores and not measures:
        return None
    return Row(
        model=model, name=evidence.model_name(model), held_out_nll=nll, scores=scores, measures=measures,
        parameters_total=total, parameters_active=active)


def _parameters(evidence: Evidence, model: str) -> tuple[int | None, int | None]:
    """A model's parameters in total, and active per token."""
    if model == MERGED_MODEL:
        merged = evidence.merge()
        return (merged.parameters, merged.parameters) if merged else (None, None)
    sizes = evidence.upcycle()
    if sizes is None:
        return None, None
    if model == MOE_MODEL:
        return sizes.parameters_total, sizes.parameters_active
    return sizes.parameters_dense, sizes.parameters_dense


def _held_out_nll(evidence: Evidence, model: str) -> float | None:
    if model == MERGED_MODEL:
        merged = evidence.merge()
        return merged.held_out_nll if merged else None
    if model in exports(evidence.recipe):
        exported = evidence.metrics(f"export_{model}", ExportMetrics)
        return exported.held_out_nll if exported else None
    if model == BASE_MODEL:
        dense, moe = evidence.sft(SFT_MODEL), evidence.sft(MOE_MODEL)
        before = dense.held_out_nll_before if dense else None
        # Without a baseline, the untuned MoE stands in for the base model if upcycling is the identity.
        if before is None and moe and evidence.recipe.upcycle.is_identity:
            before = moe.held_out_nll_before
        return before
    chosen = model == MOE_MODEL and evidence.recipe.sft.merge_at == "best"  # maybe not the last step
    tuned = evidence.sft(model) if model in TUNED and not chosen else None
    if tuned:
        return tuned.held_out_nll if model == SFT_MODEL or evidence.recipe.sft.average == "none" else tuned.held_out_nll_average
    measured = evidence.metrics(measuring_role("row_losses", model), RowLossesMetrics)
    return measured.nll if measured else None


def _score(evidence: Evidence, model: str, index: int, benchmark: str) -> Score | None:
    role = measuring_role("evaluate", model, index)
    results, graded = evidence.file(role, EvaluationFile), evidence.metrics(role, EvaluateMetrics)
    if graded is None or graded.plus_pass_at_1 is None or results is None:
        return None
    generated = evidence.metrics(measuring_role("generate", model, index), GenerateMetrics)
    rates = []
    for tests in ("base", "plus"):
        of_problems = counts(results, tests)
        rates += [
            PassAtK(tests=tests, k=k, rate=rate) for k in sorted(graded.plus_pass_at) if (rate := pass_rate(of_problems, k))]
    return Score(
        benchmark=benchmark, language=results.benchmark.language, extended_tests=results.benchmark.extended_tests,
        problems=graded.problems, samples=graded.samples or 0, pass_at_k=rates, groups=_groups(results),
        truncated=generated.truncated if generated else None, infrastructure_errors=graded.infrastructure_errors or 0)


def _groups(results: EvaluationFile) -> list[Group]:
    of_problems = counts(results, "plus")
    members: dict[tuple[str, str], list[str]] = {}
    for problem in results.problems:
        for group in problem.groups.items():
            members.setdefault(group, []).append(problem.task_id)
    found = []
    for (criterion, name), task_ids in sorted(members.items()):
        graded = {task_id: of_problems[task_id] for task_id in task_ids if task_id in of_problems}
        if rate := pass_rate(graded, 1):
            found.append(Group(criterion=criterion, name=name, problems=len(graded), rate=rate))
    return found


def _partial_credit(evidence: Evidence, model: str) -> list[Measure]:
    found = []
    for index, benchmark in enumerate(evidence.benchmarks()):
        results = evidence.file(measuring_role("evaluate", model, index), EvaluationFile)
        found += [
            Measure(title=f"{benchmark} {TITLES.get(item.name, item.name)}", value=item.value, interval=item.interval,
                    higher_is_better=True)
            for item in (partial_credit(results) if results else [])]
    return found


def _held_out_measures(evidence: Evidence, model: str) -> list[Measure]:
    labels = path_labels(evidence.recipe.evaluate.held_out_data)
    return [
        Measure(title=f"NLL on {label}", value=found.nll, higher_is_better=False,
                interval=measured_interval(found.nll, found.nll_standard_error))
        for index, label in enumerate(labels)
        if (found := evidence.metrics(measuring_role("nll", model, index), NllMetrics)) and found.nll is not None]


def _lm_eval_measures(evidence: Evidence, model: str) -> list[Measure]:
    names = evidence.recipe.evaluate.lm_eval_tasks
    # A task may be listed alongside a group that contains it. Labels cover all models' tasks, because they name rows.
    parts = list(dict.fromkeys(
        (index, part) for index, name in enumerate(names) for other in evidence.measured_models()
        for part in _lm_eval_tasks(evidence, other, index, name)))
    labels = dict(zip(parts, unique_labels([[part, f"{names[index]}/{part}"] for index, part in parts]), strict=True))
    found = []
    for index, name in enumerate(names):
        for part, task in _lm_eval_tasks(evidence, model, index, name).items():
            found += [
                Measure(title=f"{labels[index, part]} {score.metric}", value=score.value,
                        interval=measured_interval(score.value, score.standard_error, task.questions),
                        higher_is_better=score.higher_is_better)
                for score in task.scores()]
    return found


def _lm_eval_tasks(evidence: Evidence, model: str, index: int, name: str) -> dict[str, TaskResults]:
    """The aggregate of a group, or its parts if it has no aggregate."""
    results = evidence.file(measuring_role("lm_eval", model, index), LmEvalFile)
    tasks = {part: task for part, task in results.tasks.items() if task.metrics} if results else {}
    return {name: tasks[name]} if name in tasks else tasks


def _skipped(evidence: Evidence) -> dict[str, str]:
    reasons = {}
    for index, benchmark in enumerate(evidence.benchmarks()):
        for model in evidence.measured_models():
            results = evidence.file(measuring_role("evaluate", model, index), EvaluationFile)
            if results and results.skipped is not None:
                reasons[benchmark] = results.skipped
    return reasons


def _multilingual(rows: list[Row]) -> list[Average]:
    """Averages over languages. If two benchmarks have the same language, the first counts, for all models."""
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
    models = evidence.measured_models()
    pairs = [*PAIRS, *((MERGED_MODEL, model) for model in models if model not in MODELS)]
    for index, benchmark in enumerate(evidence.benchmarks()):
        results = {
            model: content for model in models
            if (content := evidence.file(measuring_role("evaluate", model, index), EvaluationFile))}
        for tests in ("base", "plus"):
            of_models = {model: counts(content, tests) for model, content in results.items()}
            for model, against in pairs:
                compared = pair(of_models.get(model, {}), of_models.get(against, {}))
                if compared:
                    found.append(
                        Difference(benchmark=benchmark, tests=tests, model=model, against=against, pair=compared))
    return found


def _training_compute_ratio(evidence: Evidence) -> float | None:
    """Computation of the MoE's training over the baseline's: steps (of equal batches) times active parameters."""
    sizes, moe, dense = evidence.upcycle(), evidence.sft(MOE_MODEL), evidence.sft(SFT_MODEL)
    if not (sizes and moe and dense and sizes.parameters_active and sizes.parameters_dense and moe.steps and dense.steps):
        return None
    return moe.steps * sizes.parameters_active / (dense.steps * sizes.parameters_dense)


def _mixing(evidence: Evidence) -> Mixing | None:
    content, measured = evidence.file(MIXED, CoefficientsFile), evidence.metrics(MIXED, MixMetrics)
    if content is None or measured is None:
        return None
    first_routed = 1 if content.shared_expert else 0
    return Mixing(
        method=content.method, held_out_nll_merged=measured.held_out_nll_merged,
        held_out_nll_uniform=measured.held_out_nll_uniform, movement_max=measured.movement_max,
        movement_mean=measured.movement_mean,
        layers=[
            LayerMix(
                shared=layer.weights[0] if first_routed else None, routed=layer.weights[first_routed:],
                movement=layer.movement)
            for layer in content.layers],
        options=_mixing_options(evidence, content, measured))


def _mixing_options(evidence: Evidence, content: CoefficientsFile, measured: MixMetrics) -> MixingOptions | None:
    merge, headroom = evidence.recipe.merge, evidence.file(MIXED, HeadroomFile)
    best = headroom.best if headroom else None
    found = MixingOptions(
        delta_scale_mean=measured.delta_scale_mean, delta_scale_learned=merge.delta_scale is None,
        held_out_nll_unscaled=measured.held_out_nll_unscaled, headroom=measured.headroom,
        headroom_threshold=measured.headroom_threshold, best_probe=best.name if best else None,
        best_probe_gain=headroom.uniform - best.loss if headroom and best else None,
        best_probe_learnable=best.learnable if best else None, kept_uniform=bool(measured.kept_uniform),
        predicted=content.method == "learned" and merge.generator_from is not None, uniform_penalty=measured.uniform_penalty,
        granularity=content.granularity)
    plain = (found.delta_scale_mean, found.headroom, found.uniform_penalty) == (None, None, None)
    return None if plain and not found.kept_uniform and not found.predicted and found.granularity == "layer" else found


def _went_wrong(evidence: Evidence) -> dict[str, list[str]]:
    """Sentences on each training and on mixing, by model, from the same limits that would have stopped the run."""
    checks = evidence.recipe.checks
    found: dict[str, list[str]] = {}
    for model in TUNED:
        if training := evidence.sft(model):
            found[model] = [*training_findings(training, checks)]
    if mixing := evidence.metrics(MIXED, MixMetrics):
        found[MERGED_MODEL] = [*mixing_findings(mixing, evidence.recipe.merge.method, checks)]
    if preferring := evidence.dpo():
        found[DPO] = [*preference_findings(preferring, checks)]
    return found


def _routing(evidence: Evidence) -> list[LayerRouting]:
    content = router_file(evidence)
    return [
        LayerRouting(load=layer.load, entropy=layer.entropy, mean_shared_weight=layer.mean_shared_weight)
        for layer in (content.layers if content else [])]


def _further(evidence: Evidence) -> list[Further]:
    return [
        Further(role=role, metrics=dict(sorted(manifest.metrics.items()))) for role, manifest in evidence.manifests.items()
        if not FACTS[manifest.stage].own_section]


def _decontamination(evidence: Evidence) -> Decontamination | None:
    content = evidence.file(PREPARED, DecontaminationFile)
    if content is None:
        return None
    return Decontamination(
        benchmarks=content.benchmarks, rows_checked=content.rows_checked,
        dropped=[
            DroppedRow(
                benchmark=item.benchmark, task_id=item.task_id, kind=item.kind, excerpt=item.excerpt,
                row="\n".join(item.row)[:ROW_CHARACTERS])
            for item in content.dropped])
