"""Helpers that several stage configurations share: a field's help text, preconditions, settings without some fields."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator

from xft_core.files.locate import is_data_file
from xft_core.recipe.sections import DataConfig, Section
from xft_core.stages.preconditions import NOT_YET, check_data, check_model

ARTIFACT_HELP = "Directory that an earlier stage published"


# A past bug: selected rows lost their prompts after the first pass over them. This setting changes the keys of stages that pass
# over selected rows, so that no result of the bug is reused.
PROMPTS_KEPT = {"prompts_kept": True}


class OwnRows(Section):
    """The subset of the training rows to train on; all rows if nothing is given. See stages/own_rows.py."""

    part: tuple[int, int] | None = Field(None, description=(
        "Part i of n disjoint random parts of the rows: [i, n], with i from 1; empty for all rows."))
    sources: list[int] | None = Field(None, description=(
        "Only the rows of these sources of a mixture, by their positions in data.sources, from 0; empty for all."))
    cluster: int | None = Field(None, ge=0, description="Only the rows of this cluster, from 0; empty for all.")

    @model_validator(mode="after")
    def _is_one(self) -> "OwnRows":
        if self.part and not 1 <= self.part[0] <= self.part[1]:
            raise ValueError(f"part is {list(self.part)}: give [i, n] with i from 1 to n")
        given = [name for name in OwnRows.model_fields if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} both choose rows: give only one")
        return self


def without(settings: dict[str, Any], section: str, fields: Iterable[str]) -> dict[str, Any]:
    """Return ``settings`` without some fields of a section."""
    left_out = set(fields)
    return settings | {section: {name: value for name, value in settings[section].items() if name not in left_out}}


def model_needed(name: str) -> dict[str, Callable[[], object]]:
    """Return the precondition that a model exists, unless an earlier stage creates it."""
    return {} if name == NOT_YET else {f"model {name}": partial(check_model, name)}


def of_one_source(data: DataConfig) -> DataConfig:
    """Return the data, for a stage that reads one source. Raises ValueError for a mixture."""
    if data.sources:
        raise ValueError("sources is a mixture, but this stage reads one path: prepare each source separately, and pass the "
                         "results to mix_data (a pipeline run does this)")
    return data


OneSource = Annotated[DataConfig, AfterValidator(of_one_source)]


def data_needed(data: DataConfig, *paths: str | None) -> dict[str, Callable[[], object]]:
    """Return the preconditions that the files or Hub data sets of the data exist."""
    return {f"data {path}": partial(check_data, path, is_data_file(path), data.split) for path in paths if path is not None}
