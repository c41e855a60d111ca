"""The recipe's fields as parameters of a flow: Prefect makes its form from a flow function's signature and docstring."""

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

from xft_core.recipe.sections import Recipe

P = ParamSpec("P")
R = TypeVar("R")

DEFAULTS = Recipe()


def with_recipe_fields(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator of a flow function that takes ``**fields``: in their place its signature gets a parameter for each field of
    the recipe, in the recipe's order, and its docstring, which must end with ``Args``, gets their help texts.

    A field that the function has as a parameter of its own stays as it is there. To be applied below ``@flow``.
    """
    own = [parameter for parameter in inspect.signature(function).parameters.values()
           if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    types = get_type_hints(Recipe, include_extras=True)
    fields = [name for name in Recipe.model_fields if name not in {parameter.name for parameter in own}]
    shared = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=getattr(DEFAULTS, name), annotation=types[name])
        for name in fields]
    helps = [f"    {name}: {Recipe.model_fields[name].description}" for name in fields]
    changed: Any = function
    changed.__signature__ = inspect.signature(function).replace(parameters=[*own, *shared])
    changed.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), *helps])
    return function
