"""The pipeline as a flow: the steps of xft_core/recipe/steps.py, each as soon as its inputs exist; then publish."""

from datetime import date
from pathlib import Path
from typing import Any

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import deployment, flow_run
from prefect.states import Cancelled

from flows.approval import approved
from flows.recipe_form import DEFAULTS, as_overrides, with_recipe_fields
from tasks import preflight
from tasks.execution import finished, pipeline_run
from tasks.prefect_page import reason_of
from tasks.preflight import check_inputs
from tasks.publishing.announcing import announce_completed
from tasks.publishing.pipeline import PipelineResult, publish
from tasks.references import PipelineRun, base_model
from tasks.stages import local_base_model, submit
from tasks.stopping import RunStopped, stop_event
from tasks.variant_tags import variant_of
from xft_core.errors import RecipeError, XftError
from xft_core.recipe.checks import recipe_findings
from xft_core.recipe.load import load_recipe, parse, plain
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import pipeline_steps


class PipelineFailed(XftError):
    """One or more stages failed. Finished stages are kept, and the next run reuses them."""


def run_name() -> str:
    """Name a run after its recipe and the fields that distinguish it: ``demo-4x3-xft-learned``. A variant of a comparison is
    named after what varies: ``demo experts=4 norm=none seed=1``."""
    try:
        recipe = chosen_recipe(**flow_run.parameters)
    except XftError:  # the run itself reports the error
        return "refused"
    if variant := variant_of(flow_run.tags or ()):
        return f"{recipe.name} {variant.name}"
    moe = recipe.upcycle
    return f"{recipe.name}-{moe.num_experts}x{moe.num_experts_per_tok}-{moe.normalization}-{recipe.merge.method}"


# Not validated by Prefect, whose messages are for programmers: chosen_recipe validates, and says what to do.
@flow(name="pipeline", persist_result=False, flow_run_name=run_name, validate_parameters=False)
@with_recipe_fields
def pipeline(
    recipe_file: str = "",  # not None: the form would show a choice of types instead of a text field
    overrides: list[str] = [],  # noqa: B006  (never changed, and the form shows it)
    seed_by_date: bool = False,
    **fields: Any,
) -> PipelineResult | State[Any]:
    """Turn a dense code model into a better one through a Mixture-of-Experts, and measure it against plain SFT.

    The store keeps every stage's result: repeating a recipe does no work, and a changed recipe reruns only what changed.

    Args:
        recipe_file: A recipe file (YAML) to use instead of all fields below, which are then ignored. Change it with
            essentials and overrides. Relative to the code, for example deployments/recipes/demo.yaml. Empty: the fields
            below apply.
        overrides: Single fields to set last, in the recipe file or in the fields below: section.field=value, for example
            merge.shared_expert_weight=0.5.
        seed_by_date: Use the day that the run is for as seed and data.split_seed (UTC, 20261128), so that everything that
            depends on them is recomputed every day.
    """
    recipe = chosen_recipe(recipe_file, overrides, seed_by_date=seed_by_date, **fields)
    _check_meant(recipe, recipe_file)
    if recipe_file:
        get_run_logger().info("The recipe is %s; the fields of the form are not used.", recipe_file)
    check_inputs(recipe)
    fitting = preflight.check_fit(recipe, base_model(recipe))
    for warning in [*recipe_findings(recipe), *([fitting] if fitting else [])]:
        get_run_logger().warning("%s", warning)
    try:
        with pipeline_run.opened(recipe) as run:
            futures = submit(run, pipeline_steps(recipe), local_base_model(run))
            futures["publish"] = publish.submit(run, dict(futures))  # type: ignore[arg-type]
            raise_for_failures(run, futures)
            result: PipelineResult = futures["publish"].result()
    except RunStopped as stopped:
        return Cancelled(message=str(stopped))
    result = approved(run, result)
    announce_completed(recipe, result, get_run_logger())
    if run.variant is None:
        finished.remember(run, result)
    return result


def chosen_recipe(
    recipe_file: str = "", overrides: list[str] | None = None, essentials: Any = None, seed_by_date: bool = False,
    **fields: Any,
) -> Recipe:
    """Return the recipe of a run's parameters: the named file, else ``fields``. ``essentials``, the day's seeds and then
    ``overrides`` apply to either.

    Raises RecipeError naming the file, or each invalid field.
    """
    given = [*as_overrides(essentials or {}), *(seeds_of(flow_run.scheduled_start_time) if seed_by_date else ()),
             *(overrides or [])]
    if recipe_file:
        return load_recipe(Path(recipe_file), given)
    return parse(Recipe, plain(fields), given)


def seeds_of(day: date) -> list[str]:
    """Return overrides that make the day the seed of everything random. A restarted run keeps its original day."""
    number = f"{day:%Y%m%d}"
    return [f"seed={number}", f"data.split_seed={number}"]


def _check_meant(recipe: Recipe, recipe_file: str) -> None:
    """Raise RecipeError for a form that was submitted unchanged: it would train the demo's model for hours with the paper's
    settings, which are not meant for it."""
    if deployment.id is None or recipe_file or recipe.model != DEFAULTS.model or recipe.sft != DEFAULTS.sft:
        return
    raise RecipeError(
        "No model and no training settings are chosen: this would train the demo's tiny model with the paper's settings, which "
        "are for 1.3 billion parameters. Name a model (essentials: Model Path) or a recipe file, or run the deployment demo.")


def raise_for_failures(run: PipelineRun, futures: dict[str, PrefectFuture[Any]]) -> None:
    """Wait for all stages. Stages that do not depend on a failed one finish, so that their work is kept.

    Raises PipelineFailed naming each failed stage with its reason, RunStopped if the run was stopped.
    """
    reasons, finished = dict[str, list[str]](), 0
    for role, future in futures.items():
        future.wait()
        state = future.state
        if state.is_completed():
            finished += 1
        elif state.is_final():
            reasons.setdefault(reason_of(state), []).append(role.replace("_", "-"))
    if reasons and stop_event(run.flow_run_id).is_set():
        raise RunStopped(f"Stopped. {finished} of {len(futures)} stages are finished; start the same run again to continue.")
    if reasons:
        failed = "\n".join(f"{', '.join(roles)}: {reason}" for reason, roles in reasons.items())
        raise PipelineFailed(
            f"{failed}\n{finished} of {len(futures)} stages are finished; the same command continues from there.")


