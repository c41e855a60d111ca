"""``xft init``: write a commented recipe for a model and data, with its fields checked against both."""

from argparse import Namespace
from pathlib import Path

from flows.commands.model_directory import model_directory
from tasks.preflight import check_inputs
from tasks.settings import settings
from xft_core.errors import RecipeError, XftError
from xft_core.planning.draft import draft
from xft_core.planning.machine import this_machine
from xft_core.recipe.commented import commented
from xft_core.recipe.labels import short_name
from xft_core.recipe.load import load_recipe
from xft_core.runtime.exit_codes import ExitCode

HEADING = (
    "A recipe for {model} and {data}, written by `xft init`. All other fields have the paper's values; `xft init --all` "
    "writes them too, as comments. `xft plan {file}` shows what it needs, `xft run {file}` runs it.")


def run(options: Namespace) -> int:
    """Write the recipe; returns the exit status. Raises XftError for an unusable model or data, and for a file that already
    exists."""
    name = short_name(options.model)
    path: Path = options.recipe or Path(f"{name}.yaml")
    if path.exists():
        raise RecipeError(f"{str(path)!r} already exists and is not overwritten. Name another file, or remove it.")
    made = draft(
        name, options.model, model_directory(options.model), options.data, options.benchmark,
        this_machine(settings().artifacts))
    text = commented(
        made.values, made.reasons, HEADING.format(model=options.model, data=options.data, file=path), options.all)
    with path.open("x", encoding="utf-8") as stream:
        stream.write(text)
    recipe = load_recipe(path)  # as `xft run` will read it
    print(f"{path}: {recipe.name}, {len(made.values)} fields")
    for field, reason in made.reasons.items():
        print(f"  {field}: {made.values[field]}: {reason}")
    try:
        check_inputs(recipe)
    except XftError as error:
        print(f"\nTo do before it can run: {error}")
    print(f"\n  xft plan {path}   memory, disk and time of every stage\n  xft run {path}")
    return ExitCode.DONE
