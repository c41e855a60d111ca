"""Whether a recipe fits this machine, asked before anything starts. Neither Prefect nor MLflow here."""

from tasks.settings import settings
from xft_core.errors import CheckpointError
from xft_core.planning.machine import Machine, store_size, this_machine
from xft_core.planning.plan import advice, check_fits, make_plan
from xft_core.planning.shape import Shape, find_config, read_shape
from xft_core.recipe.sections import Recipe
from xft_core.runtime.quantities import size


def check_fit(recipe: Recipe, model: str) -> str | None:
    """Raise DoesNotFit for a recipe that surely does not fit this machine, unless its ``check_fit`` is off.

    Returns a warning where the predicted peak exceeds the memory, though it may be less. What cannot be known is not
    checked: a Hub model whose config.json is not in the Hub's cache, a config.json that leaves sizes to their defaults.
    """
    try:
        path = find_config(model)
        shape = read_shape(path) if path else None
    except CheckpointError:  # the upcycle stage says what is wrong with it, if anything is
        return None
    if shape is None:
        return None
    store = settings().artifacts
    machine = this_machine(store)
    if recipe.check_fit:
        check_fits(recipe, shape, machine, store_size(store))
    return warning(recipe, shape, machine)


def warning(recipe: Recipe, shape: Shape, machine: Machine) -> str | None:
    """What to tell of a recipe whose predicted peak exceeds the machine's memory; None where it does not."""
    largest = max(make_plan(recipe, shape), key=lambda stage: stage.peak(machine))
    if largest.peak(machine) <= machine.for_models:
        return None
    return (
        f"{largest.role} may not fit: it is expected to take {size(largest.peak(machine))} with rows of "
        f"data.max_length tokens, this machine has {size(machine.for_models)}. {advice(recipe, shape, machine)}")
