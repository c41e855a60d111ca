"""Reading recipes and stage configurations from YAML, with errors that name the field and the nearest known one."""

import difflib
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from xft_core.config import Recipe
from xft_core.errors import RecipeError

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """The recipe in a YAML file with ``section.field=value`` overrides applied. Raises RecipeError."""
    return parse(Recipe, read_yaml(path), overrides, where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping. Raises RecipeError when it is missing, not YAML or not a mapping."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise RecipeError(f"There is no file {str(path)!r}. Give the path of a YAML file.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{str(path)!r} holds a {type(content).__name__} instead of fields with values.")
    return content


def parse(model: type[ModelT], values: dict[str, Any], overrides: list[str] | None = None, where: str = "recipe") -> ModelT:
    """Validate ``values`` as ``model``. Raises RecipeError with one line per wrong field."""
    values = apply_overrides(values, overrides or [])
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [_explain(model, dict(item)) for item in error.errors()]
        raise RecipeError(f"{where} cannot be used:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def apply_overrides(values: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """``values`` with ``section.field=value`` items set; values are read as YAML (``null`` empties a field)."""
    result = dict(values)
    for item in overrides:
        name, separator, text = item.partition("=")
        if not separator or not name.strip():
            raise RecipeError(f"Override {item!r} is not of the form section.field=value.")
        *sections, field = name.strip().split(".")
        place = result
        for section in sections:
            inner = place.get(section)
            place[section] = dict(inner) if isinstance(inner, dict) else {}
            place = place[section]
        try:
            place[field] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise RecipeError(f"Override {item!r}: the value is not YAML.") from None
    return result


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """``values`` with sections as mappings, so that single fields in them can be overridden."""
    return {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in values.items()}


def flatten(model: BaseModel) -> dict[str, Any]:
    """Every field as ``section.field`` (the names that overrides and MLflow parameters use)."""
    flat: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            flat |= {f"{name}.{inner}": item for inner, item in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _explain(model: type[BaseModel], error: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        return f"{place}: there is no such field; {hint}"
    if error["type"] == "missing":
        return f"{place}: this field must be given."
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error.get("input"), dict) else f" (it is {error.get('input')!r})"
    return f"{place}: {message}{shown}" if place else message


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: type[BaseModel] = model
    for part in location:
        field = current.model_fields.get(str(part))
        inner = _model_of(field.annotation) if field else None
        if inner is None:
            return []
        current = inner
    return list(current.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next((found for item in get_args(annotation) if (found := _model_of(item))), None)
    return None
