"""Checks before a run: that all inputs of its stages are available, and that it fits this machine. Does not use Prefect."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tasks.execution import base_model as base_models
from tasks.object_store import data
from tasks.references import base_model
from tasks.settings import settings
from xft_core.errors import CheckpointError, RecipeError
from xft_core.models.safetensors_index import weight_files
from xft_core.planning.fit import advice, check_fits
from xft_core.planning.machine import Machine, store_size, this_machine
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import Shape, find_config, read_shape
from xft_core.recipe.sections import MergeConfig, Recipe
from xft_core.recipe.steps import MOE_MODEL, Step, pipeline_steps
from xft_core.runtime.quantities import size
from xft_core.stages.configs import STAGES
from xft_core.stages.preconditions import NOT_YET, raise_if_unmet

Steps = Callable[[Recipe], list[Step]]


def check_inputs(*recipes: Recipe, steps: Steps = pipeline_steps) -> None:
    """Check everything that the stages of these recipes need (models, data, benchmarks and their graders, a working sandbox),
    so that a missing input is found in seconds, not after hours.

    ``steps``: returns the steps of a run of one recipe. Raises RecipeError for an impossible recipe, the XftError of a missing
    input, and NotReady, which names all of them, if several are missing.
    """
    raise_if_unmet(preconditions(recipes, steps))


def preconditions(recipes: Sequence[Recipe], steps: Steps = pipeline_steps) -> dict[str, Callable[[], object]]:
    """Return the checks of the recipes' steps, by the name of the input that each checks. Raises RecipeError for an impossible
    recipe."""
    found: dict[str, Callable[[], object]] = {}
    for recipe in recipes:
        of_run = steps(recipe)
        _check_recipe(recipe, of_run)
        model = base_model(recipe)
        if any(step.stage == "mix" for step in of_run):
            found[f"merge of {model} by {recipe.merge.recorded()}"] = partial(_check_merge, recipe.merge, model)
        if any(step.stage == "export" for step in of_run):
            found[f"GGUF file of {model}, {recipe.data.template}"] = partial(_check_gguf, model, recipe.data.template)
        for step in of_run:
            fields = step.fields(base_model(recipe), lambda role: NOT_YET)
            found |= STAGES[step.stage](output=Path(NOT_YET), **fields).preconditions()
        if base_models.is_elsewhere(recipe.model.path):  # it is fetched to a directory, which stages then get
            found[f"model {recipe.model.path}"] = partial(base_models.check, recipe.model.path)
        found |= data.checks(filter(None, [
            *recipe.data.paths, recipe.data.held_out_path, recipe.data.reserved_path, *recipe.evaluate.held_out_data]))
    return found


def _check_recipe(recipe: Recipe, steps: list[Step]) -> None:
    answering = {step.model for step in steps if step.stage == "generate"}
    if MOE_MODEL in answering and recipe.generate.backend == "vllm":
        raise RecipeError(
            "generate.backend is vllm, but in a pipeline run the upcycled Mixture-of-Experts answers too, and vLLM does not "
            "support its architecture. Set generate.backend: transformers. docs/how-to/vllm.md shows how to use vLLM for the "
            "base, the tuned dense and the merged model.")
    if base_models.is_elsewhere(recipe.model.path) and recipe.model.revision:
        raise RecipeError(f"model.revision ({recipe.model.revision!r}) is for a Hub name, not for {recipe.model.path!r}.")


def _check_merge(merge: MergeConfig, model: str) -> None:
    """Check that the merge fits the model's sizes, if they are known here. Raises RecipeError."""
    shape = _shape(model)
    if shape and (conflict := merge.conflict_with(shape.num_layers, shape.ffn_size)):
        raise RecipeError(f"{conflict}.")


def _check_gguf(model: str, template: str) -> None:
    """Check that the resulting model can be written as a GGUF file, if the model is here. Raises CheckpointError."""
    path = find_config(model) if _shape(model) else None
    if path is None or not weight_files(path.parent):  # not here, or another check reports it
        return
    from xft_core.exports.gguf.describe import check_directory

    check_directory(path.parent, template)


def _shape(model: str) -> Shape | None:
    try:
        path = find_config(model)
        return read_shape(path) if path else None
    except CheckpointError:  # the upcycle stage reports any error in it
        return None


def check_fit(recipe: Recipe, model: str) -> str | None:
    """Raise DoesNotFit for a recipe that certainly does not fit this machine, unless its ``check_fit`` is off.

    Returns a warning if the predicted peak exceeds the memory; the real peak may be lower. Models of unknown size are not
    checked: a Hub model whose config.json is not in the Hub's cache, a config.json that leaves sizes to their defaults, a model
    that must be fetched first.
    """
    shape = _shape(model)
    if shape is None:
        return None
    store = settings().artifacts
    machine = this_machine(store)
    if recipe.check_fit:
        check_fits(recipe, shape, machine, store_size(store))
    return warning(recipe, shape, machine)


def warning(recipe: Recipe, shape: Shape, machine: Machine) -> str | None:
    """Return a warning for a recipe whose predicted peak exceeds the machine's memory, else None."""
    largest = max(make_plan(recipe, shape), key=lambda stage: stage.peak(machine))
    if largest.peak(machine) <= machine.for_models:
        return None
    return (
        f"{largest.role} may not fit: it is expected to take {size(largest.peak(machine))} with rows of "
        f"data.max_length tokens, and this machine has {size(machine.for_models)}. {advice(recipe, shape, machine)}")
