"""What all sections have in common, and the types of their fields."""

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
PROCESS_FIELDS = ("num_processes", "num_nodes")  # of the section sft; they change no result
LARGEST_NUMBER, LONGEST_TEXT = 10**12, 100_000  # of any field: nothing that is meant comes near


def rule(condition: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """JSON schema of a section's rule: where the fields of ``condition`` are as it says, those of ``then`` must be so too."""
    return {"if": {"properties": condition, "required": list(condition)}, "then": {"properties": then}}


def _for_forms(schema: dict[str, Any], section: type["Section"]) -> None:
    """What a form needs beside what pydantic writes: a field that may be empty has one type, so that the page shows a plain
    field instead of a choice between it and None (without a default the form takes null for empty); and ``form_rules``."""
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
    """Base of all sections: immutable; unknown fields, infinite numbers and NaN, NUL characters and text that is not valid
    Unicode are errors."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=False, allow_inf_nan=False,
        json_schema_extra=_for_forms)  # type: ignore[typeddict-item]

    form_rules: ClassVar[tuple[dict[str, Any], ...]] = ()
    """Those of the validators' rules that a JSON schema can say (``rule``): a form refuses what breaks them before there is
    a run. The validators are complete, and have the better words."""

    @field_validator("*")
    @classmethod
    def _can_be_meant(cls, value: Any) -> Any:
        _check_can_be_meant(value)
        return value

    added: ClassVar[frozenset[str]] = frozenset()
    """Fields that came after runs had been made. At its default such a field means what the code did before it came, so
    it is not recorded then: keys, and the files that stages write, stay as they were."""

    def recorded(self, exclude: frozenset[str] = frozenset()) -> dict[str, Any]:
        """The fields as JSON values, for keys and for files: those of ``added`` only where they differ from their default,
        those in ``exclude`` not at all."""
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
        raise ValueError("it holds a NUL character")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value[:LONGEST_TEXT]):
        raise ValueError("it holds half of a surrogate pair, which is not Unicode")
    if isinstance(value, str) and len(value) > LONGEST_TEXT:
        raise ValueError(f"it has {len(value):,} characters, more than {LONGEST_TEXT:,}")
    if isinstance(value, int) and abs(value) > LARGEST_NUMBER:
        raise ValueError(f"it is beyond {LARGEST_NUMBER:,}")
    if isinstance(value, dict | list):
        for item in [*value, *value.values()] if isinstance(value, dict) else value:
            _check_can_be_meant(item)
