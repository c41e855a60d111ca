"""The compare stage: compare variants of one recipe, using only their published reports.

Writes ``comparison.json``, ``comparison.md`` and ``plots/*.png``. The same reports give the same bytes.
"""

from xft_core.errors import RecipeError
from xft_core.recipe.grid import expand, field_labels, parse_grid
from xft_core.reporting.run.summary import metric_endings
from xft_core.reporting.variants.contributions import contributions
from xft_core.reporting.variants.findings import best_group
from xft_core.reporting.variants.markdown import variants_markdown
from xft_core.reporting.variants.plots import draw_variants
from xft_core.reporting.variants.rivals import rival_differences
from xft_core.reporting.variants.summary import Variants, put_together
from xft_core.stages.configs import CompareStage
from xft_core.store.results.report import HELD_OUT_NLL, CompareMetrics, merged_over
from xft_core.store.workspace import Workspace


def run(config: CompareStage, workspace: Workspace) -> CompareMetrics:
    """Run the stage.

    Raises RecipeError for a report of a variant that is not in the grid, ArtifactError for a broken report.
    """
    variants = expand(config.recipe, config.grid)
    unknown = config.reports.keys() - {variant.name for variant in variants}
    if unknown:
        raise RecipeError(f"The grid has no variant {sorted(unknown)[0]!r}.")
    result = put_together(config.recipe.name, parse_grid(config.grid), variants, config.reports)
    result = result.model_copy(update={
        "rivals": rival_differences(result.runs, config.reports), "contributions": contributions(result.runs, config.reports)})
    (workspace.output / Variants.file_name).write_text(result.text(), encoding="utf-8")
    labels = field_labels(config.grid)
    plots = draw_variants(result, labels, workspace.output / "plots")
    text = variants_markdown(result, labels, variants, plots)
    (workspace.output / "comparison.md").write_text(text, encoding="utf-8")
    return CompareMetrics(
        numbers=headline(result), variants=len(result.runs), missing=len(result.missing), groups=len(result.groups))


def headline(result: Variants) -> dict[str, float]:
    """Means over seeds in the best group, named as the report stage names one run's numbers; spreads end in ``_spread``."""
    group = best_group(result)
    endings = metric_endings(result.titles)
    found: dict[str, float] = {}
    for key, value in (group.numbers if group else {}).items():
        model, name, *benchmark = key.split("/", 2)
        metric = f"{model}_{name}" + (endings[benchmark[0]] if benchmark else "")
        found[metric] = value.mean
        if value.spread is not None:
            found[f"{metric}_spread"] = value.spread
    for rival in result.rivals:
        if group and rival.group == group.name:
            name = f"{merged_over(rival.model)}_{HELD_OUT_NLL}"
            found[f"{name}_low"], found[f"{name}_high"] = rival.interval
    return found
