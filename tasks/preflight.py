"""What the stages of a run need, looked for before anything starts. Neither Prefect nor MLflow here."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tasks.object_store import models
from xft_core.errors import RecipeError
from xft_core.recipe.sections import Recipe
from xft_core.stages.configs import EvaluateStage, GenerateStage, LmEvalStage, NllStage, PrepareStage, UpcycleStage
from xft_core.stages.preconditions import raise_if_unmet
from xft_core.stages.run import StageConfig

NOT_YET = Path("/")  # in the place of what another stage makes


def base_model(recipe: Recipe) -> str:
    """The dense model's name as stages take it: ``owner/model@revision`` when a revision is given."""
    return f"{recipe.model.path}@{recipe.model.revision}" if recipe.model.revision else recipe.model.path


def check_inputs(*recipes: Recipe, has_moe: bool = True) -> None:
    """Look for all that the stages of these recipes need before they can work (models, data, benchmarks, what these are
    graded with, a sandbox that works), so that what is missing costs seconds and not hours.

    ``has_moe``: they run the whole pipeline; else only one model is evaluated. Raises RecipeError for a recipe that cannot
    be, the XftError of what is missing, and NotReady, which names everything, where several things are.
    """
    raise_if_unmet(preconditions(recipes, has_moe))


def preconditions(recipes: Sequence[Recipe], has_moe: bool = True) -> dict[str, Callable[[], object]]:
    """The checks of the recipes' stages, each by what it looks for. Raises RecipeError for a recipe that cannot be."""
    found: dict[str, Callable[[], object]] = {}
    for recipe in recipes:
        _check_recipe(recipe, has_moe)
        for stage in _first_stages(recipe, has_moe):
            found |= stage.preconditions()
        if models.is_address(recipe.model.path):  # stages are given the directory that it is fetched to
            found[f"model {recipe.model.path}"] = partial(models.check, recipe.model.path)
    return found


def _check_recipe(recipe: Recipe, has_moe: bool) -> None:
    if has_moe and recipe.generate.backend == "vllm":
        raise RecipeError(
            "generate.backend is vllm, but a pipeline run also has the upcycled Mixture-of-Experts answer, whose "
            "architecture vLLM does not know. Set generate.backend: transformers; docs/evaluation.md says how vLLM answers "
            "for the base, the tuned dense and the merged model.")
    if models.is_address(recipe.model.path) and recipe.model.revision:
        raise RecipeError(f"model.revision ({recipe.model.revision!r}) is for a Hub name, not for an S3 address.")


def _first_stages(recipe: Recipe, has_moe: bool) -> list[StageConfig]:
    """The stages that are given something from outside. The others (sft, mix, merge, report) are given what these and the
    others make, and the base model, which is here already."""
    model, evaluate = base_model(recipe), recipe.evaluate
    stages: list[StageConfig] = []
    if has_moe:
        stages += [
            PrepareStage(output=NOT_YET, model=model, data=recipe.data, benchmarks=evaluate.benchmarks),
            UpcycleStage(output=NOT_YET, model=model)]
    for benchmark in evaluate.benchmarks:
        stages += [
            GenerateStage(output=NOT_YET, model=model, benchmark=benchmark),
            EvaluateStage(output=NOT_YET, samples=NOT_YET, benchmark=benchmark, evaluate=evaluate)]
    for path in evaluate.held_out_data:
        stages.append(NllStage(output=NOT_YET, model=model, data=recipe.data.model_copy(update={"path": path})))
    directory = Path(evaluate.lm_eval_directory) if evaluate.lm_eval_directory is not None else None
    for task in evaluate.lm_eval_tasks:
        stages.append(LmEvalStage(output=NOT_YET, model=model, task=task, directory=directory))
    return stages
