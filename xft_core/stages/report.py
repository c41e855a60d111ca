"""The report stage: comparison, plots and model card, using only manifests and small JSON files.

Writes ``comparison.json`` and ``comparison.md``, ``problems.html`` (every answer with its verdict), ``README.md`` (the merged
model's card), ``plots/*.png``, and ``row_losses.json`` if rows are compared. The same artifacts give the same bytes: nothing
here reads a clock.
"""

from xft_core.recipe.labels import flat_names, group_names
from xft_core.recipe.steps import MERGED_MODEL, SFT_MODEL
from xft_core.reporting.page import PAGE, Answers, write_page
from xft_core.reporting.run.comparison import Comparison, ComparisonFile
from xft_core.reporting.run.evidence import Evidence
from xft_core.reporting.run.findings import warnings
from xft_core.reporting.run.markdown import comparison_markdown
from xft_core.reporting.run.model_card import model_card
from xft_core.reporting.run.plots import draw_all
from xft_core.reporting.run.row_comparisons import measured_rows
from xft_core.reporting.run.summary import compare, metric_endings
from xft_core.stages.configs import ReportStage
from xft_core.store.results.report import HELD_OUT_NLL, PASSED_PLUS, ReportMetrics, merged_over
from xft_core.store.workspace import Workspace


def run(config: ReportStage, workspace: Workspace) -> ReportMetrics:
    """Run the stage. Raises ArtifactError for a broken artifact."""
    evidence = Evidence.read(config.recipe, config.artifacts)
    comparison = compare(evidence)
    found = warnings(comparison)
    content = ComparisonFile(**dict(comparison), warnings=found)
    plots = draw_all(comparison, evidence, workspace.output / "plots")
    files = {
        ComparisonFile.file_name: content.text(),
        "comparison.md": comparison_markdown(comparison, evidence, plots),
        "README.md": model_card(comparison, evidence, plots),
    }
    for name, text in files.items():
        (workspace.output / name).write_text(text, encoding="utf-8")
    if rows := measured_rows(evidence):
        rows.write(workspace.output)
    write_page(f"{config.recipe.name}: answers and verdicts", _answers(evidence), workspace.output / PAGE)
    return ReportMetrics(numbers=headline(comparison), warnings=len(found))


def _answers(evidence: Evidence) -> list[Answers]:
    return [
        Answers(evidence.model_name(model), benchmark, evaluation, evidence.directories.get(f"generate_{model}_{index}"))
        for index, benchmark in enumerate(evidence.benchmarks()) for model in evidence.measured_models()
        if (evaluation := evidence.directories.get(f"evaluate_{model}_{index}"))]


def headline(comparison: Comparison) -> dict[str, float]:
    """Return the numbers that runs are compared by, flat: ``merged_plus_pass_at_1``, ``sft_held_out_nll`` and so on.

    Metrics of the first benchmark have plain names; those of any other end in its title (``merged_plus_pass_at_1_mbpp``).
    The other names are:

    - 95% interval of plus_pass_at_1: ``merged_plus_interval_low`` and ``_high``
    - answers without a verdict, if there are any: ``merged_infrastructure_errors``
    - averages over the languages of MultiPL-E: ``merged_multipl_e_pass_at_1``; over the graded ones of the paper's six:
      ``merged_multipl_e_paper_pass_at_1``, with their number as ``multipl_e_paper_languages``
    - groups of problems: ``merged_pass_at_1/pandas``
    - other held-out data: ``merged_nll_on_other_jsonl``, and lm-eval: ``merged_mmlu_acc``, each with ``_low`` and ``_high``
    - if rows were compared: ``sft_soup_training_tokens``, ``sft_soup_training_flops``, and
      ``merged_over_sft_soup_held_out_nll`` with ``_low`` and ``_high``
    """
    endings = metric_endings(comparison.benchmarks)
    groups = group_names((group.criterion, group.name) for row in comparison.rows for score in row.scores
                         for group in score.groups)
    found: dict[str, float | None] = {}
    for row in comparison.rows:
        found[f"{row.model}_{HELD_OUT_NLL}"] = row.held_out_nll
        found[f"{row.model}_parameters"] = row.parameters_total
        for score in row.scores:
            ending = endings[score.benchmark]
            for item in score.pass_at_k:
                found[f"{row.model}_{item.tests}_pass_at_{item.k}{ending}"] = item.rate.value
            if rate := score.rate("plus"):
                found[f"{row.model}_plus_interval_low{ending}"] = rate.low
                found[f"{row.model}_plus_interval_high{ending}"] = rate.high
            found[f"{row.model}_infrastructure_errors{ending}"] = score.infrastructure_errors or None
            for group in score.groups:
                found[f"{row.model}_pass_at_1{ending}/{groups[group.criterion, group.name]}"] = group.rate.value
    for compared in comparison.differences:
        if (compared.model, compared.against, compared.tests) == (MERGED_MODEL, SFT_MODEL, "plus"):
            found[f"{merged_over(SFT_MODEL)}_{PASSED_PLUS}{endings[compared.benchmark]}"] = compared.pair.difference
    for beside in comparison.row_comparisons:
        if found.get(f"{beside.model}_{HELD_OUT_NLL}") is None:
            found[f"{beside.model}_{HELD_OUT_NLL}"] = beside.held_out_nll
        found[f"{beside.model}_training_tokens"] = beside.training_tokens
        found[f"{beside.model}_training_flops"] = beside.training_flops
        if beside.difference is not None and beside.interval is not None:
            name = f"{merged_over(beside.model)}_{HELD_OUT_NLL}"
            found[name], (found[f"{name}_low"], found[f"{name}_high"]) = beside.difference, beside.interval
    for average in comparison.multilingual:
        found |= {f"{model}_{average.metric}_pass_at_1": value for model, value in average.pass_at_1.items()}
        found[f"{average.metric}_languages"] = len(average.languages)
    if comparison.mixing:
        found[f"uniform_{HELD_OUT_NLL}"] = comparison.mixing.held_out_nll_uniform
        found["mixing_movement_max"] = comparison.mixing.movement_max
    found |= _measures(comparison, {name.partition("_")[2] for name in found})
    return {name: value for name, value in found.items() if value is not None}


def _measures(comparison: Comparison, taken: set[str]) -> dict[str, float | None]:
    names = flat_names(dict.fromkeys(measure.title for row in comparison.rows for measure in row.measures), taken)
    found: dict[str, float | None] = {}
    for row in comparison.rows:
        for measure in row.measures:
            name = f"{row.model}_{names[measure.title]}"
            found[name] = measure.value
            if measure.interval:
                found[f"{name}_low"], found[f"{name}_high"] = measure.interval
    return found
