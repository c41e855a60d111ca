"""A comparison: variants of one recipe, from a grid of its fields, side by side in MLflow and in one report.

    each variant: the pipeline, shared stages run once ─ compare (table, plots, findings) ─ publish
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from flows.options import RUNS_AT_ONCE
from flows.pipeline import chosen_recipe, raise_for_failures
from flows.recipe_form import with_recipe_fields
from flows.variant_runs import run_by_deployment, run_here
from tasks.execution import pipeline_run
from tasks.preflight import check_inputs
from tasks.publishing import variant_results
from tasks.publishing.comparison import ComparisonResult, announce, publish_comparison
from tasks.stages import submit
from xft_core.errors import XftError
from xft_core.recipe.grid import expand, field_labels
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import compare_step

DEFAULT_GRID = ["upcycle.normalization=[xft,none]", "seed=[0,1]"]


class ComparisonIncomplete(XftError):
    """Some variants failed. ``result`` is the result of the others, None if there are none."""

    def __init__(self, message: str, result: ComparisonResult | None = None) -> None:
        super().__init__(message)
        self.result = result


def run_name() -> str:
    """Name a run after its recipe and the fields that vary: ``demo by experts, norm, seed``."""
    given = dict(flow_run.parameters)
    try:
        grid = given.pop("grid")
        for name in ("run_in", "at_once"):
            given.pop(name)
        return f"{comparison_recipe(**given).name} by {', '.join(field_labels(grid).values())}"
    except XftError:  # the run itself reports the error
        return "refused"


@flow(name="compare", persist_result=False, flow_run_name=run_name, validate_parameters=False)  # see pipeline
@with_recipe_fields
def compare(
    recipe_file: str = "",
    overrides: list[str] = [],  # noqa: B006  (never changed, and the form shows it)
    grid: list[str] = DEFAULT_GRID,
    run_in: Literal["this_process", "deployment"] = "this_process",
    at_once: Annotated[int, Field(ge=1, le=16)] = RUNS_AT_ONCE,
    experiment: Annotated[str, Field(max_length=200)] = "",
    **fields: Any,
) -> ComparisonResult:
    """Run variants of one recipe and compare them: by expert count, normalization, seed, or any other field.

    Work that variants share runs once. If a variant fails, the others are kept. Repeating a finished comparison does no work.
    MLflow has one run for the comparison with a child for each variant.

    Args:
        recipe_file: A recipe file (YAML) to use instead of all fields from name on, which are then ignored. Change
            it with essentials and overrides. Relative to the code, for example deployments/recipes/demo.yaml. Empty: the
            fields apply.
        overrides: Single fields to set for all variants, in the recipe file or in the fields below: section.field=value,
            for example sft.epochs=2. The grid overrides them, and essentials.
        grid: What varies: section.field=[value, value]. Every combination is a variant. Write fields that change together
            as one item: upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3],[8,3]]. With seed=[0,1,2] the report
            shows means and spreads over seeds.
        run_in: this_process runs the variants here; deployment starts them as runs of pipeline/pipeline, which other
            workers and machines can pick up.
        at_once: Number of variants to run at once in this process. Heavy stages share the machine's compute slots anyway.
        experiment: MLflow experiment of the comparison. Empty: the recipe's name with -comparison.
    """
    recipe = comparison_recipe(recipe_file, overrides, experiment, **fields)
    variants = expand(recipe, grid)
    check_inputs(*(variant.recipe for variant in variants))
    get_run_logger().info("%d variants in experiment %r", len(variants), recipe.experiment)
    with pipeline_run.opened(recipe, kind="comparison", without=frozenset(variants[0].settings)) as run:
        announce(run, grid)
        failures = run_here(variants, at_once) if run_in == "this_process" else run_by_deployment(variants)
        found = variant_results.collect(run)
        failures |= {
            variant.name: "its results are not in MLflow" for variant in variants
            if variant.name not in found and variant.name not in failures}
        found = {variant.name: found[variant.name] for variant in variants if variant.name not in failures}
        result = None
        if found:
            reports = {variant: item.report for variant, item in found.items()}
            step = compare_step(recipe, grid, reports)
            futures = submit(run, [step], base="")
            raise_for_failures(run, futures)
            compared: Any = futures[step.role]
            result = publish_comparison.submit(run, compared, found, failures).result()
        if failures:
            raise ComparisonIncomplete(_failed(failures, len(variants)), result)
        assert result is not None
        return result


def comparison_recipe(
    recipe_file: str = "", overrides: list[str] | None = None, experiment: str | None = None, **fields: Any,
) -> Recipe:
    """Return the recipe that all variants start from. Its experiment is the one given here or in ``overrides``, else it is
    named after the recipe. Raises RecipeError as ``chosen_recipe`` does."""
    recipe = chosen_recipe(recipe_file, overrides, **fields)
    if any(item.partition("=")[0].strip() == "experiment" for item in overrides or ()) and not experiment:
        return recipe
    return recipe.model_copy(update={"experiment": experiment or f"{recipe.name}-comparison"})


def save_report(report: Path, directory: Path, name: str = "comparison.md") -> Path:
    """Copy the Markdown file ``name``, its data (JSON) and its plots to ``directory``; returns the Markdown file's new path.

    Raises XftError if it cannot be written.
    """
    target = directory / name
    try:
        (directory / "plots").mkdir(parents=True, exist_ok=True)
        for path in sorted([report / name, *report.glob("*.json"), *report.glob("plots/*.png")]):
            (directory / path.relative_to(report)).write_bytes(path.read_bytes())
    except OSError as error:
        raise XftError(f"The report cannot be written to {str(directory)!r}: {error.strerror}. It is in {str(report)!r}."
                       ) from None
    return target


def _failed(failures: dict[str, str], planned: int) -> str:
    lines = [f"{len(failures)} of {planned} variants failed; the others are compared. To continue, start the comparison again."]
    if len(failures) == planned:
        lines = [f"All {planned} variants failed."]
    for reason in dict.fromkeys(failures.values()):
        lines.append(f"{', '.join(name for name, own in failures.items() if own == reason)}: {reason}")
    return "\n".join(lines)
