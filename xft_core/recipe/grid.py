"""The variants of a comparison: a recipe and a grid of fields, each with a list of values.

    upcycle.num_experts=[2,4,8]                                              one field
    upcycle.num_experts,upcycle.num_experts_per_tok=[[2,2],[4,3],[8,3]]      fields that change together
    seed=[0,1]                                                               repeats: variants that differ in it are a group
"""

import difflib
import itertools
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from xft_core.errors import RecipeError
from xft_core.files.parsing import parse_yaml
from xft_core.recipe.load import flatten, parse
from xft_core.recipe.sections import Recipe, SourceConfig

MOST_VARIANTS = 500
LONGEST_VALUE = 40
# Short names of common fields in run names; any other field is shown by its last part.
SHORT_NAMES = {
    "upcycle.num_experts": "experts", "upcycle.num_experts_per_tok": "active", "upcycle.normalization": "norm",
    "upcycle.shared_expert": "shared", "merge.method": "merge", "merge.shared_expert_weight": "lambda"}
SEED = "seed"
_OF_SOURCE = re.compile(r"data\.sources\.[0-9]{1,4}\.(\w+)")  # a field of one source of a mixture
# All runs of a comparison belong to one experiment.
FIXED = "experiment"


@dataclass(frozen=True)
class Axis:
    """Fields that change together. ``values`` has one tuple for each step, with one value for each of ``fields``."""

    fields: tuple[str, ...]
    values: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Variant:
    """One recipe of a comparison. ``name`` lists the varying fields (``experts=4 norm=none seed=1``); ``group`` is the name
    without the seed; ``settings`` has the varying fields with their values in this variant's recipe."""

    name: str
    group: str
    settings: dict[str, Any]
    recipe: Recipe


def parse_grid(grid: Iterable[str]) -> list[Axis]:
    """Parse the axes from ``section.field=[value, ...]`` entries. Raises RecipeError, which names the invalid entry."""
    axes: list[Axis] = []
    for entry in grid:
        axis = _axis(entry)
        for field in axis.fields:
            if any(field in other.fields for other in axes) or axis.fields.count(field) > 1:
                raise RecipeError(f"Grid: {field} is given twice. Give all its values in one entry.")
        axes.append(axis)
    if not axes:
        raise RecipeError("The grid is empty. Give at least one field with its values: upcycle.num_experts=[2,4,8].")
    return axes


def expand(recipe: Recipe, grid: Iterable[str]) -> list[Variant]:
    """Apply every combination of the grid's values to ``recipe``; the first entry varies slowest.

    Raises RecipeError for an invalid grid, a combination that is not a valid recipe, or two equal combinations.
    """
    axes = parse_grid(grid)
    count = math.prod(len(axis.values) for axis in axes)
    if count > MOST_VARIANTS:
        raise RecipeError(f"The grid has {count} variants, more than {MOST_VARIANTS}. Compare fewer at a time.")
    fields = [field for axis in axes for field in axis.fields]
    labels = _labels(fields)
    texts = {field: _texts(field, axis) for axis in axes for field in axis.fields}
    variants: list[Variant] = []
    for steps in itertools.product(*(range(len(axis.values)) for axis in axes)):
        settings, parts = {}, {}
        for axis, step in zip(axes, steps, strict=True):
            for field, value in zip(axis.fields, axis.values[step], strict=True):
                settings[field] = value
                parts[field] = f"{labels[field]}={texts[field][step]}"
        name = " ".join(parts.values())
        group = " ".join(part for field, part in parts.items() if field != SEED) or recipe.name
        changed = parse(Recipe, _with(recipe, settings), where=f"Variant {name!r}")
        variants.append(Variant(name, group, {field: _value(changed, field) for field in fields}, changed))
    _check_all_differ(variants)
    return variants


def field_labels(grid: Iterable[str]) -> dict[str, str]:
    """The short name of every varying field, as used in the variants' names."""
    return _labels([field for axis in parse_grid(grid) for field in axis.fields])


def _axis(entry: str) -> Axis:
    names, separator, text = entry.partition("=")
    fields = tuple(name.strip() for name in names.split(","))
    if not separator or not all(fields):
        raise RecipeError(f"Grid entry {entry!r} is not of the form section.field=[value, value].")
    for field in fields:
        _check_known(field)
    try:
        values = parse_yaml(text)
    except ValueError:
        raise RecipeError(f"Grid entry {entry!r}: the values are not YAML. Give a list: {names}=[value, value].") from None
    if not isinstance(values, list):
        raise RecipeError(f"Grid entry {entry!r}: the values must be a list, for example {names}=[{text.strip() or 'value'}].")
    if not values:
        raise RecipeError(f"Grid entry {entry!r}: the list is empty. Give at least one value, or leave the entry out.")
    if len(fields) == 1:
        return Axis(fields, tuple((value,) for value in values))
    for value in values:
        if not isinstance(value, list) or len(value) != len(fields):
            raise RecipeError(
                f"Grid entry {entry!r}: {len(fields)} fields change together, so each step is a list of {len(fields)} "
                f"values; {_shown(value)} is not.")
    return Axis(fields, tuple(map(tuple, values)))


def _check_known(field: str) -> None:
    known = list(flatten(Recipe()))
    if field == FIXED:
        raise RecipeError("Grid: experiment cannot vary, because a comparison is one experiment. Set it for the comparison.")
    in_source = _OF_SOURCE.fullmatch(field)
    if field in known or (in_source and in_source[1] in SourceConfig.model_fields):
        return
    inside = [name for name in known if name.startswith(f"{field}.")]
    if inside:
        raise RecipeError(f"Grid: {field} is a section. Give one of its fields, for example {inside[0]}.")
    near = difflib.get_close_matches(field, known, n=1, cutoff=0.4)
    # A name without a section means the field with exactly that name.
    near = [name for name in known if name.rpartition(".")[2] == field][:1] or near
    hint = f"did you mean {near[0]!r}?" if near else "see xft_core/recipe/sections/ for all fields of a recipe."
    raise RecipeError(f"Grid: {field}: there is no such field; {hint}")


def _labels(fields: list[str]) -> dict[str, str]:
    short = {field: SHORT_NAMES.get(field, field.rpartition(".")[2]) for field in fields}
    names = list(short.values())
    return {field: label if names.count(label) == 1 else field for field, label in short.items()}


def _texts(field: str, axis: Axis) -> list[str]:
    """A text for the field's value in each step, in the shortest format that distinguishes different values."""
    values = [step[axis.fields.index(field)] for step in axis.values]
    different = len(set(map(_exact, values)))
    kinds = ([write(value).replace(" ", "_") for value in values] for write in (_short, _shown, _exact))
    return next((texts for texts in kinds if len(set(texts)) == different), list(map(_exact, values)))


def _short(value: Any) -> str:
    if isinstance(value, str) and "/" in value:
        value = PurePath(value).name
    text = "+".join(map(_short, value)) if isinstance(value, list) else _shown(value)
    return text if len(text) <= LONGEST_VALUE else text[:LONGEST_VALUE - 1] + "…"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else _exact(value)


def _exact(value: Any) -> str:
    return json.dumps(value, default=str, ensure_ascii=False)


def _with(recipe: Recipe, settings: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = recipe.model_dump()
    for name, value in settings.items():
        *sections, field = name.split(".")
        place: Any = values
        for section in sections:
            if isinstance(place, list) and int(section) >= len(place):
                raise RecipeError(f"Grid: {name}: the recipe has {len(place)} sources, numbered from 0.")
            place = place[int(section)] if isinstance(place, list) else place[section]
        place[field] = value
    return values


def _value(recipe: Recipe, field: str) -> Any:
    """The value of a field in the recipe."""
    value: Any = recipe
    for name in field.split("."):
        value = value[int(name)] if isinstance(value, list) else getattr(value, name)
    return value


def _check_all_differ(variants: list[Variant]) -> None:
    seen: dict[str, Variant] = {}
    for variant in variants:
        key = variant.recipe.model_dump_json()
        if key in seen:
            raise RecipeError(
                f"Variants {seen[key].name!r} and {variant.name!r} are the same recipe. Give each value once.")
        seen[key] = variant
