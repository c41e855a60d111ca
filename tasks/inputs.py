"""What a recipe names, looked for before anything starts. Neither Prefect nor MLflow here."""

from pathlib import Path

from tasks import remote_models
from xft_core.config import Recipe
from xft_core.errors import RecipeError
from xft_core.locations import find_benchmark, find_file, find_model


def base_model(recipe: Recipe) -> str:
    """The dense model's name as stages take it: ``owner/model@revision`` when a revision is given."""
    return f"{recipe.model.path}@{recipe.model.revision}" if recipe.model.revision else recipe.model.path


def check_inputs(recipe: Recipe) -> None:
    """Look for the files that the recipe names, so that a mistyped one costs seconds and not hours.

    What only the Hub knows is not asked for. Raises XftError for what is missing.
    """
    if remote_models.is_address(recipe.model.path):
        if recipe.model.revision:
            raise RecipeError(f"model.revision ({recipe.model.revision!r}) is for a Hub name, not for an S3 address.")
        remote_models.check(recipe.model.path)
    elif not _is_hub_name(recipe.model.path):
        find_model(recipe.model.path)
    if not _is_hub_name(recipe.data.path):
        find_file(recipe.data.path)
    for benchmark in recipe.evaluate.benchmarks:
        find_benchmark(benchmark)


def _is_hub_name(name: str) -> bool:
    is_local = name.startswith(("/", ".", "~", "demo:")) or Path(name).suffix in (".json", ".jsonl", ".parquet")
    return not is_local and name.count("/") <= 1 and not Path(name).exists()
