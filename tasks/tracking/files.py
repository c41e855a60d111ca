"""Files of a run in MLflow: hard links if MLflow keeps files on the same disk, copies otherwise.

A link costs nothing, whatever the model's size, so every run shows its model, reused or not. An artifact store elsewhere gets
copies of directories up to XFT_MLFLOW_COPY_LIMIT_MB. For a larger directory, it gets all files except the weights, and a tag
with their place.
"""

import os
import shutil
from pathlib import Path
from urllib.parse import unquote, urlparse

from tasks.settings import settings
from tasks.tracking.client import client

WEIGHTS = ".safetensors"


def log_directory(
    run_id: str, directory: Path, name: str, suffixes: tuple[str, ...] | None = None, without: tuple[str, ...] = (),
) -> bool:
    """Show the files of ``directory`` (only those with ``suffixes``, if given; none whose name is in ``without``) as ``name``
    in the run's artifacts. Returns whether all are there, including weights."""
    files = [path for path in sorted(directory.rglob("*"))
             if path.is_file() and path.name not in without and (suffixes is None or path.name.endswith(suffixes))]
    root = _local_root(run_id)
    if root is not None:
        for path in files:
            _link(path, root / name / path.relative_to(directory))
        return True
    whole = True
    if sum(path.stat().st_size for path in files) > settings().copy_limit_mb * 1_000_000:
        whole = not any(path.name.endswith(WEIGHTS) for path in files)
        files = [path for path in files if not path.name.endswith(WEIGHTS)]
        client().set_tag(run_id, f"xft.{name}.path", str(directory))
    for path in files:
        inside = (Path(name) / path.relative_to(directory)).parent.as_posix()
        client().log_artifact(run_id, str(path), None if inside == "." else inside)
    return whole


def log_text(run_id: str, text: str, name: str) -> None:
    """Show ``text`` as the file ``name``."""
    client().log_text(run_id, text, name)


def _local_root(run_id: str) -> Path | None:
    """Return the directory of a run's files if it is on a disk of this machine, else None."""
    parts = urlparse(client().get_run(run_id).info.artifact_uri)
    return Path(unquote(parts.path)) if parts.scheme in ("", "file") else None


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(source, target)
