"""Watch data: check it every few minutes. If it has changed, an event starts the pipeline (the trigger in prefect.yaml)."""

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.variables import Variable

from tasks import events
from tasks.watching import data_digest
from xft_core.files.digests import digest_of
from xft_core.recipe.load import load_recipe


def run_name() -> str:
    """Name a run after what it checks."""
    given = flow_run.parameters
    return f"watch {given.get('path') or given.get('recipe_file')}"


@flow(name="watch", persist_result=False, flow_run_name=run_name)
def watch(
    recipe_file: str = "deployments/recipes/demo.yaml",
    overrides: list[str] = [],  # noqa: B006  (never changed, and the form shows it)
    path: str = "",
) -> str:
    """Check whether data has changed since the last check. If it has, run the pipeline with this recipe.

    The first check only records the data's state, in a Prefect variable, so that any worker can do the next check. With
    model.path: models:/NAME@champion in the recipe or the overrides, the run starts from the champion.

    Args:
        recipe_file: The recipe to run when the data has changed, relative to the code.
        overrides: Fields of that recipe to set last: section.field=value, for example model.path=models:/demo@champion.
        path: What to watch: a file, a directory, or s3://bucket/prefix. Empty: the recipe's data.
    """
    logger = get_run_logger()
    recipe = load_recipe(Path(recipe_file), overrides)
    watched = ", ".join(paths := [path] if path else recipe.data.paths)
    digest = digest_of([data_digest(item) for item in paths])
    remembered = f"xft_watch_{digest_of([recipe_file, overrides, watched])[:16]}"
    before = Variable.get(remembered)
    if before == digest:
        return f"{watched} has not changed."
    if before is not None:
        logger.info("%s has changed.", watched)
        payload = {"path": watched, "digest": digest, "before": before, "recipe_file": recipe_file, "overrides": overrides}
        events.emit(events.DATA_CHANGED, "data", watched, payload, logger, recipe=recipe.name)
    Variable.set(remembered, digest, overwrite=True)
    return f"{watched} has changed." if before is not None else f"The state of {watched} is recorded."
