"""What a recipe names, looked for before anything starts. Neither Prefect nor MLflow here."""

from pathlib import Path

from xft_core.config import Recipe
from xft_core.errors import RecipeError
from xft_core.locations import find_benchmark, find_file, find_model


def base_model(recipe: Recipe) -> str:
    """The dense model's name as stages take it: ``owner/model@revision`` when a revision is given."""
    return f"{recipe.model.path}@{recipe.model.revision}" if recipe.model.revision else recipe.model.path


def check_inputs(recipe: Recipe, has_moe: bool = True) -> None:
    """Look for the files that the recipe names, so that a mistyped one costs seconds and not hours.

    What only the Hub knows is not asked for. ``has_moe``: an upcycled model is among those that answer. Raises XftError
    for what is missing, or cannot be.
    """
    if has_moe and recipe.generate.backend == "vllm":
        raise RecipeError(
            "generate.backend is vllm, but a pipeline run also has the upcycled Mixture-of-Experts answer, whose "
            "architecture vLLM does not know. Set generate.backend: transformers; docs/evaluation.md says how vLLM answers "
            "for the base, the tuned dense and the merged model.")
    if not _is_hub_name(recipe.model.path):
        find_model(recipe.model.path)
    if not _is_hub_name(recipe.data.path):
        find_file(recipe.data.path)
    for benchmark in recipe.evaluate.benchmarks:
        find_benchmark(benchmark)


def _is_hub_name(name: str) -> bool:
    is_local = name.startswith(("/", ".", "~", "demo:")) or Path(name).suffix in (".json", ".jsonl", ".parquet")
    return not is_local and name.count("/") <= 1 and not Path(name).exists()
