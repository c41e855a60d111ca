"""``xft plan RECIPE.yaml``: memory, disk and time of every stage, and whether this machine has them. Runs nothing."""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from tasks.fit import warning
from tasks.inputs import base_model
from tasks.settings import settings
from xft_core.config import Recipe
from xft_core.errors import CheckpointError
from xft_core.planning import text
from xft_core.planning.inputs import data_size, problem_count
from xft_core.planning.machine import Machine, store_size, this_machine
from xft_core.planning.plan import DataSize, Rates, check_fits, make_plan
from xft_core.planning.shape import Shape, find_config, read_shape
from xft_core.quantities import parameters
from xft_core.recipe import load_recipe

EXIT_DONE = 0


def add_options(parser: ArgumentParser) -> None:
    """The options of ``xft plan``."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one field")
    parser.add_argument("--model-config", type=Path, metavar="FILE", help="config.json of the model, where it is not here")
    parser.add_argument("--memory", type=float, metavar="GB", help="plan for this much memory (default: this machine's)")
    parser.add_argument("--device-memory", type=float, metavar="GB", help="accelerator memory; 0 for none (default: as here)")
    parser.add_argument("--disk", type=float, metavar="GB", help="free disk (default: this machine's)")
    parser.add_argument("--flops", type=float, metavar="TFLOP/s", help="sustained rate (default: a matrix product, measured)")
    parser.add_argument("--rows", type=int, metavar="N", help="training rows, where the data is not here")
    parser.add_argument("--tokens-per-row", type=float, metavar="N", help="tokens of a row in the mean")


def run(options: Namespace) -> int:
    """Print the plan; returns the exit status. Raises XftError, DoesNotFit above all."""
    recipe = load_recipe(options.recipe, options.set)
    path = options.model_config or find_config(base_model(recipe))
    if path is None:
        raise CheckpointError(
            f"{recipe.model.path!r} is not in the Hub's cache, and a plan downloads nothing. Give its config.json with "
            "--model-config FILE, or download the model first.")
    shape, machine = read_shape(path), _machine(options)
    plan = make_plan(recipe, shape, _data(recipe, path, options), problem_count(recipe))
    rates = _rates(recipe, shape, options)
    print(f"{recipe.name}: {parameters(shape.parameters)} parameters, {parameters(shape.moe_parameters(recipe.upcycle))} as a "
          f"Mixture-of-Experts of {recipe.upcycle.num_experts} experts\n")
    print(text.table(plan, rates))
    print("\n" + "\n".join(text.summary(plan, machine, rates)))
    print("Training times are lower bounds: no step is faster than a matrix product alone. Answers are as long as allowed.")
    sys.stdout.flush()
    if recipe.check_fit:
        check_fits(recipe, shape, machine, store_size(settings().artifacts))
    if found := warning(recipe, shape, machine):
        print(f"\nwarning: {found}")
    return EXIT_DONE


def _machine(options: Namespace) -> Machine:
    machine = this_machine(settings().artifacts)
    if options.memory is not None:
        machine = replace(machine, memory=options.memory * 1e9)
    if options.device_memory is not None:
        machine = replace(machine, device_memory=options.device_memory * 1e9 or None)
    return machine if options.disk is None else replace(machine, disk=options.disk * 1e9)


def _data(recipe: Recipe, config: Path, options: Namespace) -> DataSize | None:
    size = data_size(recipe, config.parent)
    if options.rows is None and options.tokens_per_row is None:
        return size
    rows = options.rows or (size.train_rows if size else None)
    tokens = options.tokens_per_row or (size.tokens_per_row if size else None)
    if not rows or not tokens:
        return None
    return DataSize(rows, size.held_out_rows if size else recipe.data.held_out_rows, tokens)


def _rates(recipe: Recipe, shape: Shape, options: Namespace) -> Rates:
    from xft_core.planning.rates import measured_rates

    measured = measured_rates(
        shape, recipe.sft.micro_batch_size * recipe.data.max_length, recipe.sft.precision, settings().artifacts)
    return replace(measured, flops=options.flops * 1e12) if options.flops else measured
