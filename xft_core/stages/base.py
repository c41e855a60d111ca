"""What every stage's configuration has in common."""

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from xft_core.recipe.sections import Section
from xft_core.stages.preconditions import Preconditions
from xft_core.store.artifacts import input_digest


class StageConfig(Section):
    """The fields that every stage has, beside its own."""

    stage: ClassVar[str]
    summary: ClassVar[str]  # one sentence, for people; a docstring is gone under PYTHONOPTIMIZE=2
    version: ClassVar[int]
    implementation: ClassVar[str]
    needs_torch: ClassVar[bool] = True  # else a process of the stage's own does without: it starts sooner

    output: Path = Field(description="Directory to make. Work in progress is kept beside it as <output>.partial.")
    provenance: dict[str, str] = Field({}, description="Noted in the manifest as it is (run ids and the like).")

    def processes(self) -> tuple[int, int]:
        """Processes on each machine that share the work, and machines. They change results by rounding only."""
        return 1, 1

    def preconditions(self) -> Preconditions:
        """Checks of what the stage needs, apart from what earlier stages make, each by the name of what it looks for. None by
        default."""
        return {}

    @abstractmethod
    def inputs(self) -> dict[str, Path]:
        """Local path of every input, by name. Raises XftError for what does not exist."""

    def input_digests(self) -> dict[str, str]:
        """Digest of every input, by name."""
        return {name: input_digest(path) for name, path in self.inputs().items()}

    def settings(self) -> dict[str, Any]:
        """The fields that change the result, as JSON values."""
        return self.recorded(frozenset({"output", "provenance"}) | self.path_fields)

    path_fields: ClassVar[frozenset[str]] = frozenset({"model", "data", "samples", "benchmark"})
