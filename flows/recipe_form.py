"""The recipe's fields as parameters of a flow: Prefect builds its form from the flow function's signature and docstring."""

import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar, get_type_hints

from pydantic import Field, create_model

from xft_core.recipe.sections import Recipe
from xft_core.recipe.sections.base import Section

P = ParamSpec("P")
R = TypeVar("R")

DEFAULTS = Recipe()
ESSENTIAL = (
    "model.path", "data.path", "data.max_length", "upcycle.num_experts", "upcycle.num_experts_per_tok",
    "upcycle.normalization", "sft.epochs", "sft.learning_rate", "sft.batch_size", "merge.method",
    "merge.shared_expert_weight", "evaluate.benchmarks")


def _essentials() -> type[Section]:
    fields: Any = {}
    for name in ESSENTIAL:
        section, _, field = name.partition(".")
        info = type(getattr(DEFAULTS, section)).model_fields[field]
        kind: Any = Annotated[(info.annotation, *info.metadata)] if info.metadata else info.annotation
        fields[name.replace(".", "_")] = (kind | None, Field(None, description=info.description))
    return create_model("Essentials", __base__=Section, __doc__="Fields of the recipe's sections.", **fields)


Essentials: Any = _essentials()


def as_overrides(essentials: Any) -> list[str]:
    """Return the fields that are filled in, as ``section.field=value`` items. ``essentials``: Essentials, or its mapping."""
    given = essentials if isinstance(essentials, dict) else essentials.model_dump(mode="json")
    names = {name.replace(".", "_"): name for name in ESSENTIAL}
    return [f"{names.get(field, field)}={json.dumps(value)}" for field, value in given.items() if value not in (None, [])]


def with_recipe_fields(function: Callable[P, R]) -> Callable[P, R]:
    """Decorate a flow function that takes ``recipe_file`` first, then other parameters and ``**fields``.

    Its signature gets ``essentials`` after the first parameter and, at the end, a parameter for each field of the recipe, in
    the recipe's order. Its docstring, which must end with ``Args``, gets their help texts. All are keyword-only.

    A field that is already a parameter of the function is unchanged. Apply the decorator below ``@flow``.
    """
    given = inspect.signature(function).parameters.values()
    own = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in given
           if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    # Its default is what the form shows: nothing filled in.
    own.insert(1, inspect.Parameter("essentials", inspect.Parameter.KEYWORD_ONLY, default={}, annotation=Essentials))
    types = get_type_hints(Recipe, include_extras=True)
    fields = [name for name in Recipe.model_fields if name not in {parameter.name for parameter in own}]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(DEFAULTS, name), annotation=types[name])
        for name in fields]
    # Not the class's docstring: a description that is the same in both is omitted from the schema.
    helps = ["    essentials: The dozen fields that runs most often change. Filled-in fields override the recipe file and the "
             "sections below; empty fields keep their values."]
    helps += [f"    {name}: {Recipe.model_fields[name].description}" for name in fields]
    changed: Any = function
    changed.__signature__ = inspect.signature(function).replace(parameters=[*own, *shared])
    changed.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), *helps])
    return function
