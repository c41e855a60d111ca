"""The work directory of a stage until its artifact is published: output and checkpoints, resumed only for the same key."""

import shutil
from pathlib import Path

from xft_core.errors import ArtifactError
from xft_core.files.disk import write_whole

KEY_MARKER = "key"  # first file of a workspace, with the key of the work in progress


class Workspace:
    """The work directory of a stage: ``checkpoints``, ``metrics_path`` and ``output`` (see store/artifacts.py)."""

    def __init__(self, output: Path) -> None:
        self.root = output.absolute().with_name(output.absolute().name + ".partial")
        self.checkpoints = self.root / "checkpoints"
        self.metrics_path = self.root / "metrics.jsonl"
        self.output = self.root / "output"

    def keep_only_progress_of(self, key: str) -> None:
        """Create the directory, and empty it if its progress belongs to other work, which must not be resumed.

        Raises ArtifactError if the directory contains something that no stage wrote.
        """
        marker = self.root / KEY_MARKER
        cut_short = marker.with_name(f"{KEY_MARKER}.tmp")  # see write_whole
        foreign = self.root.is_symlink() or (self.root.exists() and not self.root.is_dir())
        if foreign or (self.root.exists() and not marker.is_file() and set(self.root.iterdir()) - {cut_short}):
            raise ArtifactError(
                f"{str(self.root)!r} is reserved for work in progress, but contains something that no stage wrote. Nothing "
                "was changed. Choose another output, or move this directory away.")
        if marker.is_file() and marker.read_bytes() != key.encode():
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(marker, key)

    def prepare(self) -> None:
        """Create the directories. Partial output of an earlier attempt is removed, its checkpoints are kept."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        self.checkpoints.mkdir(exist_ok=True)
