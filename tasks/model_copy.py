"""A copy of a model's files at a place that others read from."""

import re
import shutil
import threading
from pathlib import Path

from tasks.execution import base_model
from tasks.prefect_log import Logger
from tasks.settings import settings
from xft_core.errors import XftError
from xft_core.files.digests import directory_digest, model_files
from xft_core.files.disk import disk_full_is_an_error, locked
from xft_core.files.locate import find_model
from xft_core.files.temporary import temporary_directory


def copy_model(name: str, target: Path | None, stop: threading.Event, logger: Logger) -> Path:
    """Have the files of the model called ``name`` in ``target``, in place of what was there; returns the directory.

    They are copied beside it, compared with their source, and then take its place. Raises XftError when there is no such
    model, or the place cannot be used.
    """
    source = base_model.fetch(name, stop, logger) if base_model.is_elsewhere(name) else find_model(name)
    if target is None:
        words = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"^models:/|@.*$", "", name)).strip("-")
        target = settings().home / "published" / words
        target.parent.mkdir(exist_ok=True)
    if target.exists() and not (target / "config.json").is_file():
        raise XftError(f"{str(target)!r} exists and is not a model: it is not replaced. Name another directory.")
    try:
        with locked(target), disk_full_is_an_error(target), temporary_directory("transfer", output=target) as directory:
            arriving, left = directory / "arriving", directory / "left"
            arriving.mkdir(parents=True)
            for path in model_files(source):
                shutil.copyfile(path, arriving / path.name)
            if directory_digest(arriving) != directory_digest(source, model_files(source)):
                raise XftError(f"The copy of {name} differs from {str(source)!r}: is it being changed? Try again.")
            if target.exists():
                target.rename(left)
            arriving.rename(target)
    except OSError as error:
        raise XftError(f"{name} cannot be copied to {str(target)!r}: {error.strerror}.") from None
    logger.info("%s is in %s", name, target)
    return target
