"""The base class of all recipe sections, and the types of their fields."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Normalization = Literal["xft", "renormalize", "none", "granite", "qwen2_moe"]
MergeMethod = Literal[
    "learned", "uniform", "routing", "ewa", "shared_only", "regmean", "fisher", "task_arithmetic", "ties", "dare", "della",
    "model_stock"]
Search = Literal["none", "golden", "tpe", "cmaes"]
Precision = Literal["fp32", "bf16", "bf16_mixed"]
PromptStyle = Literal["magicoder", "chat", "completion"]
Reaction = Literal["report", "stop"]
WeightAverage = Literal["none", "last_k", "ema"]
RecipeName = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
ExperimentName = Annotated[str, Field(min_length=1, max_length=200)]
PROCESS_FIELDS = ("num_processes", "num_nodes")  # fields of the section sft that change no result
LARGEST_NUMBER, LONGEST_TEXT = 10**12, 100_000  # limits for any field, far above any sensible value


def rule(condition: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a section's rule: if the fields match ``condition``, they must also match ``then``."""
    return {"if": {"properties": condition, "required": list(condition)}, "then": {"properties": then}}


def _for_forms(schema: dict[str, Any], section: type["Section"]) -> None:
    """Adapt pydantic's schema to forms. An optional field gets a single type, so that the page shows a plain field instead of
    a choice between a value and None (without a default the form sends null for empty). Also adds ``form_rules``."""
    for field in schema.get("properties", {}).values():
        kinds = [item for item in field.get("anyOf", ()) if item != {"type": "null"}]
        if len(kinds) == 1 and len(field["anyOf"]) == 2 and "type" in kinds[0]:
            del field["anyOf"], field["default"]
            field |= {name: value for name, value in kinds[0].items() if name not in field}
            if "enum" in field:
                field["enum"] = [*field["enum"], None]
    if section.form_rules:
        schema |= {"if": True, "then": {"allOf": list(section.form_rules)}}  # pages would show allOf itself otherwise


class Section(BaseModel):
    """Base class of all sections. Sections are immutable, and reject unknown fields, infinite numbers, NaN, NUL characters and
    invalid Unicode."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=False, allow_inf_nan=False,
        json_schema_extra=_for_forms)  # type: ignore[typeddict-item]

    form_rules: ClassVar[tuple[dict[str, Any], ...]] = ()
    """The validator rules that a JSON schema can express (``rule``). A form enforces them before a run starts. The validators
    cover every rule and have better messages."""

    @field_validator("*")
    @classmethod
    def _can_be_meant(cls, value: Any) -> Any:
        _check_can_be_meant(value)
        return value

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields added after runs already existed. At its default, such a field reproduces the code's earlier behaviour and is not
    recorded, so that keys and the files that stages write do not change."""

    def recorded(self, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
        """Return the fields as JSON values for keys and files. Fields in ``added`` are included only if they differ from their
        default, fields in ``exclude`` never."""
        found = self.model_dump(mode="json", exclude=set(exclude))
        for name in [*found]:
            value = getattr(self, name)
            if name in self.added and value == type(self).model_fields[name].get_default(call_default_factory=True):
                del found[name]
            elif isinstance(value, Section):
                found[name] = value.recorded()
            elif isinstance(value, list):
                found[name] = [item.recorded() if isinstance(item, Section) else plain
                               for item, plain in zip(value, found[name], strict=True)]
        return found


def _check_can_be_meant(value: Any) -> None:
    if isinstance(value, str | Path) and "\0" in str(value):
        raise ValueError("the value contains a NUL character")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value[:LONGEST_TEXT]):
        raise ValueError("the value contains half of a surrogate pair, which is not valid Unicode")
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"the value has {len(value):,} characters, more than the limit of {LONGEST_TEXT:,}")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"the absolute value exceeds {LARGEST_NUMBER:,}")
    if isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_can_be_meant(item)
