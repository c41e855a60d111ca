"""Where a stage works before its artifact is published: output and checkpoints, resumed only for the same key."""

import shutil
from pathlib import Path

from xft_core.errors import ArtifactError
from xft_core.files.disk import write_whole

KEY_MARKER = "key"  # first file of a workspace: which work the progress is of


class Workspace:
    """Where a stage works before it is published: ``checkpoints``, ``metrics_path`` and ``output`` (see above)."""

    def __init__(self, output: Path) -> None:
        self.root = output.absolute().with_name(output.absolute().name + ".partial")
        self.checkpoints = self.root / "checkpoints"
        self.metrics_path = self.root / "metrics.jsonl"
        self.output = self.root / "output"

    def keep_only_progress_of(self, key: str) -> None:
        """Make the directory, and empty it if its progress is that of other work: it must not be resumed.

        Raises ArtifactError when the directory holds something that no stage left.
        """
        marker = self.root / KEY_MARKER
        cut_short = marker.with_name(f"{KEY_MARKER}.tmp")  # see write_whole
        foreign = self.root.is_symlink() or (self.root.exists() and not self.root.is_dir())
        if foreign or (self.root.exists() and not marker.is_file() and set(self.root.iterdir()) - {cut_short}):
            raise ArtifactError(
                f"{str(self.root)!r} is where work in progress is kept, and holds something that no stage left there. Nothing "
                "was changed. Choose another output, or move it away.")
        if marker.is_file() and marker.read_bytes() != key.encode():
            shutil.rmtree(self.root)
        self.root.mkdir(parents=True, exist_ok=True)
        write_whole(marker, key)

    def prepare(self) -> None:
        """Make the directories. Half-written output of an earlier attempt goes, its checkpoints stay."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)
        self.checkpoints.mkdir(exist_ok=True)
