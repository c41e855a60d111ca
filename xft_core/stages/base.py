"""The common base of all stage configurations."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xft_core.recipe.sections import Section
from xft_core.stages.preconditions import Preconditions
from xft_core.store.artifacts import input_digest


class StageConfig(Section):
    """The fields and methods that every stage configuration has."""

    stage: ClassVar[str]
    summary: ClassVar[str]  # one sentence for the user; PYTHONOPTIMIZE=2 removes docstrings
    version: ClassVar[int]
    implementation: ClassVar[str]
    needs_torch: ClassVar[bool] = True  # if not, the stage's own process starts sooner without it

    output: Path = Field(description="Directory to create. Work in progress is kept next to it as <output>.partial.")
    provenance: dict[str, str] = Field({}, description="Recorded unchanged in the manifest (for example run IDs).")

    def processes(self) -> tuple[int, int]:
        """Number of processes per machine and of machines that share the work. They change results by rounding only."""
        return 1, 1

    def preconditions(self) -> Preconditions:
        """Checks for everything that the stage needs and no earlier stage creates, each by the name of what it looks for. None
        by default."""
        return {}

    @abstractmethod
    def inputs(self) -> dict[str, Path]:
        """Local path of every input, by name. Raises XftError for a missing input."""

    def input_digests(self) -> dict[str, str]:
        """Digest of every input, by name."""
        return {name: input_digest(path) for name, path in self.inputs().items()}

    def settings(self) -> dict[str, Any]:
        """The fields that change the result, as JSON values."""
        return self.recorded(frozenset({"output", "provenance"}) | self.path_fields)

    path_fields: ClassVar[frozenset[str]] = frozenset({"model", "data", "samples", "benchmark"})
