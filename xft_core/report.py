"""The report stage: comparison, plots and model card, from manifests and small JSON files alone.

Written: ``comparison.json`` and ``comparison.md``, ``README.md`` (the merged model's card), ``plots/*.png``. The same
artifacts give the same bytes: nothing here looks at a clock.
"""

import json

from xft_core.artifacts import Workspace
from xft_core.reporting.comparison import Comparison, compare, metric_ending
from xft_core.reporting.evidence import Evidence
from xft_core.reporting.findings import warnings
from xft_core.reporting.markdown import comparison_markdown
from xft_core.reporting.model_card import model_card
from xft_core.reporting.plots import draw_all
from xft_core.stages import ReportStage


def run(config: ReportStage, workspace: Workspace) -> dict[str, float]:
    """The report stage. Metrics: the headline numbers, see ``headline``. Raises ArtifactError for a broken artifact."""
    evidence = Evidence.read(config.recipe, config.artifacts)
    comparison = compare(evidence)
    content = comparison.model_dump() | {"warnings": warnings(comparison)}
    files = {
        "comparison.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
        "comparison.md": comparison_markdown(comparison, evidence),
        "README.md": model_card(comparison, evidence),
    }
    for name, text in files.items():
        (workspace.output / name).write_text(text, encoding="utf-8")
    draw_all(comparison, evidence, workspace.output / "plots")
    return headline(comparison)


def headline(comparison: Comparison) -> dict[str, float]:
    """The numbers runs are compared by, flat: ``merged_plus_pass_at_1``, ``sft_held_out_nll`` and so on.

    The first benchmark has the plain names; those of any other end in its title (``merged_plus_pass_at_1_mbpp``).
    """
    first = next((score.benchmark for row in comparison.rows for score in row.scores), None)
    found: dict[str, float | None] = {}
    for row in comparison.rows:
        found[f"{row.model}_held_out_nll"] = row.held_out_nll
        found[f"{row.model}_parameters"] = row.parameters_total
        for score in row.scores:
            ending = metric_ending(score.benchmark, first)
            found[f"{row.model}_base_pass_at_1{ending}"] = score.base_pass_at_1
            found[f"{row.model}_plus_pass_at_1{ending}"] = score.plus_pass_at_1
            found[f"{row.model}_plus_standard_error{ending}"] = score.plus_standard_error
    for item in comparison.differences:
        if (item.model, item.against, item.tests) == ("merged", "sft", "plus"):
            found[f"merged_over_sft_plus_pass_at_1{metric_ending(item.benchmark, first)}"] = item.difference
    if comparison.mixing:
        found["uniform_held_out_nll"] = comparison.mixing.held_out_nll_uniform
        found["mixing_movement_max"] = comparison.mixing.movement_max
    found["warnings"] = len(warnings(comparison))
    return {name: value for name, value in found.items() if value is not None}
