"""Whether a recipe fits a machine, and which changes make it fit."""

from typing import Any

from xft_core.errors import XftError
from xft_core.planning.machine import Machine
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import Shape
from xft_core.planning.stage_plan import StagePlan
from xft_core.recipe.load import parse
from xft_core.recipe.sections import Recipe
from xft_core.runtime.quantities import size

# Changes that make a recipe smaller, the cheapest first. Each is tried in addition to those before it.
CHANGES: tuple[dict[str, Any], ...] = (
    {"sft.micro_batch_size": 1}, {"merge.micro_batch_size": 1}, {"sft.gradient_checkpointing": True},
    {"sft.optimizer": "adafactor"}, {"sft.precision": "bf16"}, {"merge.precision": "bf16"}, {"generate.precision": "bf16"},
    {"generate.batch_size": 1}, {"upcycle.num_experts_per_tok": 3, "upcycle.num_experts": 4})
DISK_CHANGES: tuple[dict[str, Any], ...] = (
    {"upcycle.store_experts": "once"}, {"sft.precision": "bf16"}, {"sft.optimizer": "adafactor"},
    {"upcycle.num_experts_per_tok": 3, "upcycle.num_experts": 4}, {"upcycle.num_experts_per_tok": 2, "upcycle.num_experts": 2})


class DoesNotFit(XftError):
    """A recipe that certainly needs more memory or disk than the machine has."""


def check_fits(recipe: Recipe, shape: Shape, machine: Machine, in_store: float = 0.0) -> None:
    """Raise DoesNotFit if the certain part of a recipe's needs exceeds the machine: weights, kept gradients and optimizer
    state of a stage, or the files of all stages. ``in_store``: bytes already stored, which may be this recipe's own."""
    plan = make_plan(recipe, shape)
    too_large = [stage for stage in plan if stage.certain(machine) > machine.for_models]
    if too_large:
        worst = max(too_large, key=lambda stage: stage.certain(machine))
        kind = "memory" if machine.device_memory is None else "accelerator memory"
        raise DoesNotFit(
            f"{worst.role} cannot fit: its weights, gradients and optimizer state take "
            f"{size(worst.certain(machine))} of {kind}, but this machine has {size(machine.for_models)}. "
            f"{advice(recipe, shape, machine)} To run it anyway (for example because that stage is already in the store), "
            "set check_fit: false.")
    needed, room = _written(plan), machine.disk + in_store
    if needed > room:
        raise DoesNotFit(
            f"The recipe writes {size(needed)}, but only {size(room)} are free or already in the store. "
            f"{_disk_advice(recipe, shape, room)} To run it anyway, set check_fit: false.")


def advice(recipe: Recipe, shape: Shape, machine: Machine) -> str:
    """The changes that bring every stage's predicted peak under the machine's memory: the first in the list that suffice,
    without those that turn out to be unnecessary. Empty if nothing needs to change."""
    values = recipe.model_dump()

    def peak(changes: list[str]) -> float:
        return max(stage.peak(machine) for stage in make_plan(parse(Recipe, values, changes), shape))

    made: list[str] = []
    for change in CHANGES:
        if peak(made) <= machine.for_models:
            break
        if recipe.upcycle.groups and "upcycle.num_experts" in change:
            continue  # other numbers of experts may not fit the groups
        made += [f"{name}={str(value).lower()}" for name, value in change.items() if _is_smaller(values, name, value)]
    if peak(made) > machine.for_models:
        return f"Even with {' '.join(made)} it takes {size(peak(made))}: use a larger machine or a smaller model."
    for item in list(made):
        fewer = [other for other in made if other != item]
        if not item.startswith("upcycle.") and peak(fewer) <= machine.for_models:
            made = fewer
    return f"To make it fit: {' '.join(made)} (then at most {size(peak(made))} at once)." if made else ""


def _disk_advice(recipe: Recipe, shape: Shape, room: float) -> str:
    """The changes that bring the bytes written below ``room``. Includes only changes that reduce them."""
    values = recipe.model_dump()

    def written(changes: dict[str, Any]) -> float:
        return _written(make_plan(parse(Recipe, values, _assignments(changes)), shape))

    made: dict[str, Any] = {}
    for change in DISK_CHANGES:
        if written(made) <= room:
            break
        if recipe.upcycle.groups and "upcycle.num_experts" in change:
            continue
        more = made | {name: value for name, value in change.items() if _is_smaller(values, name, value)}
        if written(more) < written(made):
            made = more
    shown, free = " ".join(_assignments(made)), "Free some space, or put XFT_HOME on a larger disk"
    if not made:
        return f"{free}: no setting reduces this."
    if written(made) > room:
        return f"{free}: even with {shown} it is {size(written(made))}."
    return f"{free}, or choose {shown} (then {size(written(made))})."


def _assignments(changes: dict[str, Any]) -> list[str]:
    return [f"{name}={value}" for name, value in changes.items()]


def _written(plan: list[StagePlan]) -> float:
    """Bytes on disk when all stages are done, plus the largest temporary space of any stage."""
    return sum(stage.kept for stage in plan) + max(stage.scratch for stage in plan)


def _is_smaller(values: dict[str, Any], name: str, value: Any) -> bool:
    section, field = name.split(".")
    now = values[section][field]
    return bool(value < now if isinstance(value, int) and not isinstance(value, bool) else value != now)
