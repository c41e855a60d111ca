"""What a recipe names, looked for before anything starts. Neither Prefect nor MLflow here."""

from pathlib import Path

from tasks import remote_models
from xft_core.benchmarks.kinds import kind_of
from xft_core.config import Recipe
from xft_core.errors import DataError, RecipeError
from xft_core.locations import find_benchmark, find_file, find_model, is_there, local_path
from xft_core.stages import lm_eval_version


def base_model(recipe: Recipe) -> str:
    """The dense model's name as stages take it: ``owner/model@revision`` when a revision is given."""
    return f"{recipe.model.path}@{recipe.model.revision}" if recipe.model.revision else recipe.model.path


def check_inputs(recipe: Recipe, has_moe: bool = True) -> None:
    """Look for what the recipe names (files, the environment of DS-1000, lm-eval), so that a mistyped or forgotten one costs
    seconds and not hours.

    What only the Hub knows is not asked for. ``has_moe``: an upcycled model is among those that answer. Raises XftError
    for what is missing, or cannot be.
    """
    if has_moe and recipe.generate.backend == "vllm":
        raise RecipeError(
            "generate.backend is vllm, but a pipeline run also has the upcycled Mixture-of-Experts answer, whose "
            "architecture vLLM does not know. Set generate.backend: transformers; docs/evaluation.md says how vLLM answers "
            "for the base, the tuned dense and the merged model.")
    if remote_models.is_address(recipe.model.path):
        if recipe.model.revision:
            raise RecipeError(f"model.revision ({recipe.model.revision!r}) is for a Hub name, not for an S3 address.")
        remote_models.check(recipe.model.path)
    elif not _is_hub_name(recipe.model.path):
        find_model(recipe.model.path)
    for rows in (recipe.data.path, recipe.data.held_out_path):
        if rows is not None and not _is_hub_name(rows):
            find_file(rows)
    for benchmark in recipe.evaluate.benchmarks:
        path = find_benchmark(benchmark)
        kind_of(path).versions(path, recipe.evaluate)
    for data in recipe.evaluate.held_out_data:
        if not _is_hub_name(data):
            find_file(data)
    if recipe.evaluate.lm_eval_tasks:
        lm_eval_version()
    directory = recipe.evaluate.lm_eval_directory
    if directory is not None and not local_path(directory).is_dir():
        raise DataError(f"evaluate.lm_eval_directory: there is no directory {directory!r}.")


def _is_hub_name(name: str) -> bool:
    is_local = name.startswith(("/", ".", "~", "demo:")) or Path(name).suffix in (".json", ".jsonl", ".parquet")
    return not is_local and name.count("/") <= 1 and not is_there(name)
