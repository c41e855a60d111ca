"""What every stage's configuration has in common."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xft_core.recipe.sections import Section
from xft_core.stages.preconditions import Preconditions
from xft_core.store.artifacts import input_digest


class StageConfig(Section):
    """What every stage is given beside its own fields."""

    stage: ClassVar[str]
    summary: ClassVar[str]  # one sentence, for people; a docstring is gone under PYTHONOPTIMIZE=2
    version: ClassVar[int]
    implementation: ClassVar[str]
    needs_torch: ClassVar[bool] = True  # else a process of the stage's own does without: it starts sooner

    output: Path = Field(description="Directory to make. Work in progress is kept beside it as <output>.partial.")
    provenance: dict[str, str] = Field({}, description="Noted in the manifest as it is (run ids and the like).")

    def processes(self) -> tuple[int, int]:
        """Processes on each machine that do the work together, and machines. They change no result but for rounding."""
        return 1, 1

    def preconditions(self) -> Preconditions:
        """What must be there before the stage can do its work, other than what earlier stages make: a check by what it
        looks for. Nothing by default."""
        return {}

    @abstractmethod
    def inputs(self) -> dict[str, Path]:
        """Local path of every input, by name. Raises XftError for what does not exist."""

    def input_digests(self) -> dict[str, str]:
        """Digest of every input, by name."""
        return {name: input_digest(path) for name, path in self.inputs().items()}

    def settings(self) -> dict[str, Any]:
        """The fields that change the result."""
        return self.recorded(frozenset({"output", "provenance"}) | self.path_fields)

    path_fields: ClassVar[frozenset[str]] = frozenset({"model", "data", "samples", "benchmark"})
