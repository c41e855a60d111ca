"""Read recipes and stage configurations from YAML, with errors that name the field and its closest known match."""

import difflib
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from xft_core.errors import RecipeError
from xft_core.files.parsing import LONGEST_YAML, parse_yaml
from xft_core.recipe.sections import Recipe

ModelT = TypeVar("ModelT", bound=BaseModel)


def load_recipe(path: Path, overrides: list[str] | None = None) -> Recipe:
    """Load the recipe from a YAML file and apply ``section.field=value`` overrides. Raises RecipeError."""
    return parse(Recipe, read_yaml(path), overrides, where=str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file. Raises RecipeError if the file is missing, not YAML or not a mapping."""
    try:
        if not path.is_file():
            raise FileNotFoundError
        with path.open(encoding="utf-8") as stream:
            content = parse_yaml(stream.read(LONGEST_YAML + 1))
    except FileNotFoundError:
        raise RecipeError(f"There is no file {_short(str(path))}. Give the path of a YAML file.") from None
    except OSError as error:
        raise RecipeError(f"The file {_short(str(path))} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise RecipeError(f"{_short(str(path))} is not usable YAML: {error}.") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(f"{str(path)!r} contains a {type(content).__name__} instead of fields with values.")
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
    """Return ``values`` with ``section.field=value`` items set. Override values are read as YAML (``null`` empties a field).
    List items are addressed by their index, starting at 0: ``data.sources.0.weight=2``."""
    result = dict(values)
    for item in overrides:
        name, separator, text = item.partition("=")
        if not separator or not name.strip():
            raise RecipeError(f"Override {_short(item)} is not of the form section.field=value.")
        *sections, field = name.strip().split(".")
        place: Any = result
        for section in sections:
            key = _key(place, section, item)
            inner = place[key] if isinstance(place, list) else place.get(key)
            if isinstance(inner, BaseModel):
                inner = inner.model_dump()
            place[key] = inner.copy() if isinstance(inner, dict | list) else {}
            place = place[key]
        try:
            place[_key(place, field, item)] = parse_yaml(text)
        except ValueError as error:
            raise RecipeError(f"Override {_short(item)}: the value is not usable YAML: {error}.") from None
    return result


def _key(place: dict[str, Any] | list[Any], name: str, item: str) -> Any:
    """The key of ``name`` in ``place``; in a list, an index starting at 0. Raises RecipeError if the list has no such index."""
    if not isinstance(place, list):
        return name
    if not name.isdecimal() or int(name) >= len(place):
        raise RecipeError(f"Override {_short(item)}: {name[:50]!r} is not an index of the list, which has {len(place)} "
                          f"{'item' if len(place) == 1 else 'items'}. Indexes start at 0.")
    return int(name)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with sections as mappings, so that overrides can set single fields."""
    return {name: value.model_dump() if isinstance(value, BaseModel) else value for name, value in values.items()}


def flatten(model: BaseModel) -> dict[str, Any]:
    """Return every field by its ``section.field`` name, which overrides and MLflow parameters use."""
    flat: dict[str, Any] = {}
    for name in type(model).model_fields:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            flat |= {f"{name}.{inner}": item for inner, item in flatten(value).items()}
        else:
            flat[name] = value
    return flat


def _explain(model: type[BaseModel], error: dict[str, Any]) -> str:
    place = ".".join(str(part)[:100] for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}."
        return f"{place}: there is no such field; {hint}"
    if error["type"] == "missing":
        return f"{place}: this field must be given."
    message = error["msg"].removeprefix("Value error, ")
    shown = "" if isinstance(error.get("input"), dict) else f" (it is {_short(error.get('input'))})"
    return f"{place}: {message}{shown}" if place else message


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _fields_at(model: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: type[BaseModel] = model
    for part in location:
        field = current.model_fields.get(str(part))
        inner = model_of(field.annotation) if field else None
        if inner is None:
            return []
        current = inner
    return list(current.model_fields)


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The configuration class of a field of this type, optional or not; None for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next((found for item in get_args(annotation) if (found := model_of(item))), None)
    return None
