"""``xft plan RECIPE.yaml --grid ...``: show what a comparison needs, counting shared stages once. Runs nothing."""

from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tasks.settings import settings
from xft_core.planning.estimate import Estimate, together
from xft_core.planning.fit import check_fits
from xft_core.planning.machine import Machine, store_size
from xft_core.planning.shape import Shape
from xft_core.planning.stage_plan import StagePlan
from xft_core.planning.text import between
from xft_core.recipe.grid import Variant, expand
from xft_core.recipe.sections import Recipe
from xft_core.recipe.steps import pipeline_steps, planned_roles
from xft_core.runtime.quantities import size
from xft_core.runtime.terminal import columns
from xft_core.stages.configs import STAGES
from xft_core.stages.run import stage_key

HEADER = ("variant", "stages", "new", "memory", "disk", "time of the new")

Planner = Callable[[Recipe], tuple[list[StagePlan], Mapping[str, Estimate | None]]]


@dataclass(frozen=True)
class VariantPlan:
    """One variant: its ``stages``, the ``new`` ones that no earlier variant has, and the times of the new ones by role."""

    variant: Variant
    stages: list[StagePlan]
    new: list[StagePlan]
    times: Mapping[str, Estimate | None]

    @property
    def time(self) -> Estimate | None:
        """The time of the new stages, one after the other; None if no time is known."""
        return together([self.times.get(stage.role) for stage in self.new])


def symbolic_keys(recipe: Recipe) -> dict[str, str]:
    """Return keys by role, for planned steps and the steps they need. Steps of two recipes on the same model and data have
    equal keys if they produce the same artifact. Reads no file: neither benchmarks nor their graders."""
    wanted = {step.role for step in planned_roles(recipe).values()}
    steps = pipeline_steps(recipe)
    for step in reversed(steps):
        wanted |= set(step.needs) if step.role in wanted else set()
    keys: dict[str, str] = {}
    for step in (step for step in steps if step.role in wanted):
        fields = step.fields("base", keys.__getitem__)
        config = STAGES[step.stage](output=Path(step.role), **fields)
        keys[step.role] = stage_key(config, {role: keys[role] for role in step.needs})
    return keys


def plan_variants(recipe: Recipe, grid: list[str], planner: Planner) -> list[VariantPlan]:
    """Plan the variants in order, each with the stages it adds to earlier ones. Raises RecipeError for an invalid grid."""
    seen: set[str] = set()
    found = []
    for variant in expand(recipe, grid):
        stages, times = planner(variant.recipe)
        keys, steps = symbolic_keys(variant.recipe), planned_roles(variant.recipe)
        new = [stage for stage in stages if keys[steps[stage.role].role] not in seen]
        seen |= {keys[steps[stage.role].role] for stage in stages}
        found.append(VariantPlan(variant, stages, new, times))
    return found


def text(plans: list[VariantPlan], machine: Machine) -> str:
    """Return a table of the variants, and the total of all of them."""
    rows = [(
        plan.variant.name, str(len(plan.stages)), str(len(plan.new)),
        size(max(stage.peak(machine) for stage in plan.stages)), size(sum(stage.kept for stage in plan.new)),
        between(plan.time) if plan.time else "?" if plan.new else "-") for plan in plans]
    stages, new = (sum(len(part) for part in parts) for parts in (
        [plan.stages for plan in plans], [plan.new for plan in plans]))
    disk = sum(stage.kept for plan in plans for stage in plan.new)
    scratch = max(stage.scratch for plan in plans for stage in plan.stages)
    known = together([plan.time for plan in plans])
    lines = [
        f"{len(plans)} variants: {stages} stages, {new} to run, the others shared",
        f"{'disk':12} {size(disk + scratch)} for all, {size(machine.disk)} free"]
    if known:
        lines.append(f"{'time':12} {between(known)} for all, one after the other")
    return "\n".join([columns(HEADER, rows, right=range(1, len(HEADER))), "", *lines])


def check_all_fit(plans: list[VariantPlan], shape: Shape, machine: Machine) -> None:
    """Raise DoesNotFit, with the variant's name, for a variant that certainly does not fit the machine."""
    for plan in plans:
        if plan.variant.recipe.check_fit:
            check_fits(plan.variant.recipe, shape, machine, store_size(settings().artifacts))


def planned(options: Namespace, recipe: Recipe, shape: Shape, machine: Machine, planner: Planner) -> None:
    """Print the plan of the comparison."""
    plans = plan_variants(recipe, options.grid, planner)
    print(text(plans, machine))
    print("Times are ranges (see the plan of one recipe). Preparing, grading and the report are not included.", flush=True)
    check_all_fit(plans, shape, machine)
