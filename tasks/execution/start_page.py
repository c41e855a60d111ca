"""The start page of a run in Prefect: where its numbers are, the recipe in force, the plan and how long it may take. It is
created before any work, so that failed and cancelled runs have it too."""

from tasks import mlflow_pages
from tasks.execution.durations import remembered
from tasks.prefect_log import Logger, reason
from tasks.prefect_page import show_markdown
from tasks.references import PipelineRun, base_model
from tasks.settings import settings
from tasks.tracking.charts import view_key
from tasks.tracking.runs import recipe_text
from xft_core.errors import XftError
from xft_core.planning.memory import PROCESS
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import find_config, read_shape
from xft_core.reporting.tables import table
from xft_core.runtime.quantities import duration, size

KEY = "start-here"


def show_start(run: PipelineRun, kind: str, sections: frozenset[str] | None, has_variants: bool, logger: Logger) -> None:
    """Show the start page, without values that are unknown. Nothing here fails a run."""
    try:
        text = start_page(run, kind, sections, has_variants)
    except Exception as error:  # most likely in the plan, which the run does not need
        logger.warning("The start page cannot be created; the run continues. %s", reason(error))
        return
    what = f"Start here: where {run.recipe.name} is, what it does, how long it takes"
    show_markdown(run.flow_run_id, KEY, text, what, logger)


def start_page(run: PipelineRun, kind: str, sections: frozenset[str] | None = None, has_variants: bool = False) -> str:
    """Return the start page's Markdown. ``kind``: of the run, as in its MLflow tag. ``sections``: those of the recipe that
    apply, None for all. ``has_variants``: whether fields vary below it."""
    parts = [f"# {run.recipe.name}", *_places(run, has_variants)]
    if kind == "pipeline":
        parts += ["## Plan", *_plan(run)]
    parts += ["## Recipe in force", "All fields. If a recipe file is given, those of the form play no part.",
              f"```yaml\n{recipe_text(run.recipe, sections)}```"]
    return "\n\n".join(parts) + "\n"


def _places(run: PipelineRun, has_variants: bool) -> list[str]:
    pages, experiment = settings().mlflow_links, run.run_experiment_id
    if pages is None:
        found = [f"MLflow: run `{run.mlflow_run_id}` in `{settings().tracking_shown}` (`xft ui` shows it)"]
    else:
        found = ["[Numbers, curves and files of this run in MLflow]"
                 f"({mlflow_pages.run_page(pages, experiment, run.mlflow_run_id)})",
                 f"[All runs of the experiment]({mlflow_pages.experiment_page(pages, experiment)})",
                 f"[All its models, ranked]({mlflow_pages.models_page(pages, experiment)})"]
        if has_variants:
            view = mlflow_pages.charts_page(pages, experiment, view_key(run.mlflow_run_id))
            found.insert(1, f"[Losses of the variants side by side, as they train]({view})")
    if store := settings().store:
        found.append(f"Object store: `{store}`")
    found.append(f"Artifacts on the machine of the run: `{settings().artifacts}`")
    return ["\n".join(f"- {item}" for item in found)]


def _plan(run: PipelineRun) -> list[str]:
    """Return the stages with their memory and the time that similar stages took here before, if there were any."""
    recipe = run.recipe
    try:
        path = find_config(base_model(recipe))
    except XftError:
        path = None
    if path is None:
        return ["Unknown: the model's config.json is not on this machine."]
    shape = read_shape(path)
    earlier = remembered(recipe, shape)
    took = {role: timings[-1].seconds for role, timings in earlier.items() if timings}
    plan = make_plan(recipe, shape)
    rows = [[stage.role.replace("_", " "), size(stage.memory.total + PROCESS),
             duration(took[stage.role]) if stage.role in took else "-"] for stage in plan]
    unknown = sum(stage.role not in took for stage in plan)
    estimate = (f"**About {duration(sum(took.values()))}** if nothing is in the store yet, one stage after the other" if took
                else "The duration is not known yet")
    rest = f"; {unknown} of {len(plan)} stages have not run here with such settings (`xft plan` probes them)"
    return [f"{estimate}{rest if unknown else ''}. Stages that are in the store take no time.",
            table(["stage", "memory", "took here before"], rows)]
