"""The two forms of results: numbers in a manifest (Metrics), and JSON files next to it (ResultFile)."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict

from xft_core.errors import ArtifactError, first_line
from xft_core.files.parsing import parse_json

REBUILD = "Delete its directory to rebuild it."


class Result(BaseModel):
    """Base class of all results. Results are immutable, and values are not converted. Writers may not add fields; readers
    ignore fields that another version added."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ResultFile(Result):
    """A JSON file of an artifact, called ``file_name``. Fields with a default may be missing from the file."""

    file_name: ClassVar[str]
    indent: ClassVar[int | None] = 1
    ending: ClassVar[str] = ""  # after the last bracket

    @classmethod
    def parse(cls, content: bytes) -> Self:
        """Parse the content of such a file. Raises ValueError if it is damaged."""
        return cls.model_validate(parse_json(content), extra="ignore")

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Read the file in an artifact's directory; None if there is none. Raises ArtifactError if it is damaged."""
        path = directory / cls.file_name
        try:
            return cls.parse(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ArtifactError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
        except ValueError as error:
            raise ArtifactError(f"{str(path)!r} is damaged: {first_line(error)}. {REBUILD}") from None

    def write(self, directory: Path) -> None:
        """Write the file into ``directory``, with the fields that were given a value, in the order of the model."""
        content = json.dumps(self.model_dump(exclude_unset=True), indent=self.indent, ensure_ascii=False)
        (directory / self.file_name).write_text(content + self.ending, encoding="utf-8")


@dataclass(frozen=True)
class Flat:
    """Marks a dictionary field of Metrics: each of its items is a separate number in the manifest, named ``prefix`` plus the
    item's key. ``key``: converts the rest of a name into the key, and raises ValueError if it is not one."""

    prefix: str
    key: Callable[[str], Any] = str


class HasMetrics(Protocol):
    """A published artifact: a manifest, or a reference to one."""

    @property
    def stage(self) -> str:
        """The stage that made it."""

    @property
    def metrics(self) -> dict[str, Any]:
        """Its numbers, by the names that MLflow shows."""


class Metrics(Result):
    """The numbers that a stage measured. In a manifest and in MLflow they are flat: see ``flat`` and its inverse, ``of``."""

    @classmethod
    def of(cls, artifact: HasMetrics) -> Self:
        """The numbers of an artifact. Numbers missing from an artifact of an earlier version are None or empty.

        Raises ArtifactError if a number is invalid.
        """
        try:
            return cls.from_flat(artifact.metrics)
        except ValueError as error:
            raise ArtifactError(f"A number of the {artifact.stage} artifact is wrong: {first_line(error)}. {REBUILD}") from None

    @classmethod
    def from_flat(cls, numbers: Mapping[str, Any]) -> Self:
        """Create the metrics from ``numbers`` with flat names. Raises ValueError."""
        flat = cls._flat_fields()
        found: dict[str, Any] = {name: {} if name in flat else None for name in cls.model_fields}
        for name, value in numbers.items():
            if name in found and name not in flat:
                found[name] = value
            elif field := next((field for field, mark in flat.items() if name.startswith(mark.prefix)), None):
                try:
                    found[field][flat[field].key(name.removeprefix(flat[field].prefix))] = value
                except ValueError:
                    continue  # another version's number
        return cls.model_validate(found)

    def flat(self) -> dict[str, Any]:
        """The existing numbers, by their names in a manifest and in MLflow."""
        marks = self._flat_fields()
        found: dict[str, Any] = {}
        for name, value in self:
            if name in marks:
                found |= {f"{marks[name].prefix}{key}": item for key, item in value.items()}
            elif value is not None:
                found[name] = value
        return found

    def finite(self) -> Self:
        """These metrics without infinite and NaN values."""
        return self.from_flat({
            name: value for name, value in self.flat().items() if not isinstance(value, float) or math.isfinite(value)})

    @classmethod
    def _flat_fields(cls) -> dict[str, Flat]:
        """The dictionary fields, the longest prefix first."""
        marks = {name: mark for name, field in cls.model_fields.items() for mark in field.metadata if isinstance(mark, Flat)}
        return dict(sorted(marks.items(), key=lambda item: -len(item[1].prefix)))
