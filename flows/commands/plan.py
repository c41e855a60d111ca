"""``xft plan RECIPE.yaml``: show each stage's memory, disk and time, and whether this machine has enough. Runs nothing."""

import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flows.commands import plan_comparison
from tasks.execution.durations import remembered, threads_of_a_stage
from tasks.preflight import check_inputs, preconditions, warning
from tasks.references import base_model
from tasks.settings import settings
from xft_core.errors import CheckpointError
from xft_core.planning import text
from xft_core.planning.estimate import Estimate, estimate
from xft_core.planning.fit import check_fits
from xft_core.planning.inputs import data_size, problem_count
from xft_core.planning.machine import Machine, slowdown, store_size, this_machine
from xft_core.planning.plan import make_plan
from xft_core.planning.shape import Shape, find_config, read_shape
from xft_core.planning.stage_plan import DataSize, Rates, StagePlan
from xft_core.recipe.checks import recipe_findings
from xft_core.recipe.load import load_recipe
from xft_core.recipe.sections import Recipe
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.quantities import parameters
from xft_core.stages.preconditions import listed, unmet


def run(options: Namespace) -> int:
    """Print the plan; returns the exit status. Raises XftError, most often DoesNotFit."""
    recipe = load_recipe(options.recipe, options.set)
    try:
        path = options.model_config or find_config(base_model(recipe))
    except CheckpointError:
        check_inputs(recipe)  # names what else is missing
        raise
    if path is None:
        raise CheckpointError(
            f"{recipe.model.path!r} is not in the Hub's cache, and `xft plan` downloads nothing. Give its config.json with "
            "--model-config FILE, or download the model first.")
    shape, machine = read_shape(path), _machine(options)
    times_of = StageTimes(shape, options).of

    def planner(recipe: Recipe) -> tuple[list[StagePlan], dict[str, Estimate | None]]:
        plan = make_plan(recipe, shape, data_of(recipe, path, options), problem_count(recipe))
        return plan, times_of(plan, recipe)

    if options.grid:
        plan_comparison.planned(options, recipe, shape, machine, planner)
        return ExitCode.DONE
    plan, times = planner(recipe)
    print(f"{recipe.name}: {parameters(shape.parameters)} parameters, {parameters(shape.moe_parameters(recipe.upcycle))} as a "
          f"Mixture-of-Experts of {recipe.upcycle.num_experts} experts\n")
    print(text.table(plan, times))
    print("\n" + "\n".join(text.summary(plan, machine, times)))
    print("Times are ranges (by: their basis). Most stages end within their range, some do not. Preparing, grading and the "
          "report are not included.")
    sys.stdout.flush()
    if recipe.check_fit:
        check_fits(recipe, shape, machine, store_size(settings().artifacts))
    fit = warning(recipe, shape, machine)
    for found in [*recipe_findings(recipe), *([fit] if fit else [])]:
        print(f"\nwarning: {found}")
    if lacking := unmet(preconditions([recipe])):
        print(f"\nwarning: {listed(lacking)}")
    return ExitCode.DONE


def _machine(options: Namespace) -> Machine:
    machine = this_machine(settings().artifacts)
    if options.memory is not None:
        machine = replace(machine, memory=options.memory * 1e9)
    if options.device_memory is not None:
        machine = replace(machine, device_memory=options.device_memory * 1e9 or None)
    return machine if options.disk is None else replace(machine, disk=options.disk * 1e9)


def data_of(recipe: Recipe, config: Path, options: Namespace) -> DataSize | None:
    """Return the size of the recipe's data, or the size that the options give."""
    size = data_size(recipe, config.parent)
    if options.rows is None and options.tokens_per_row is None:
        return size
    rows = options.rows or (size.train_rows if size else None)
    tokens = options.tokens_per_row or (size.tokens_per_row if size else None)
    if not rows or not tokens:
        return None
    return DataSize(rows, size.held_out_rows if size else recipe.data.held_out_rows, tokens)


class StageTimes:
    """This machine's rates, probed once for all recipes that train the same layers."""

    def __init__(self, shape: Shape, options: Namespace) -> None:
        self._shape, self._flops = shape, options.flops
        self._known: dict[str, Rates] = {}
        self._slowdown: float | None = None

    def of(self, plan: list[StagePlan], recipe: Recipe) -> dict[str, Estimate | None]:
        """Return the time range of every stage by role: from earlier runs here if there are any, else from probes."""
        from xft_core.planning.rates import given_rates, measured_rates

        if self._flops:
            rates = self._once("given", lambda: given_rates(self._flops * 1e12, settings().artifacts))
            return {stage.role: estimate(stage, rates, given=True) for stage in plan}
        if self._slowdown is None:
            self._slowdown = slowdown(more=threads_of_a_stage())  # before the probes, which load the machine themselves
        probed = "\n".join([
            recipe.upcycle.model_dump_json(), str(recipe.data.max_length), str(recipe.sft.micro_batch_size),
            recipe.sft.precision, str(recipe.generate.batch_size), recipe.generate.precision])
        rates = self._once(
            probed, lambda: measured_rates(self._shape, recipe, threads_of_a_stage(), settings().artifacts))
        earlier = remembered(recipe, self._shape)
        return {stage.role: estimate(stage, rates, earlier[stage.role], slowdown=self._slowdown) for stage in plan}

    def _once(self, what: str, measure: Callable[[], Rates]) -> Rates:
        if what not in self._known:
            self._known[what] = measure()
        return self._known[what]
