"""The environment settings that stages read. The settings for where runs store files are in tasks/settings.py.

    XFT_RENDEZVOUS           host:port of this machine for sft.num_nodes (docs/how-to/several-gpus.md)
    XFT_BENCHMARKS           directory with the files of MultiPL-E and DS-1000
    XFT_DS1000_ENVIRONMENT   directory of the environment that DS-1000 is graded in
    XDG_CACHE_HOME           caches; default: ~/.cache

Each function raises RecipeError for an invalid value.
"""

import os
import re
from pathlib import Path

from xft_core.errors import RecipeError

HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?):([1-9][0-9]{0,4})")
SHOWN = 200  # characters of a value that a message repeats


def rendezvous() -> str | None:
    """XFT_RENDEZVOUS as host:port; None if it is not set."""
    address = os.environ.get("XFT_RENDEZVOUS", "").strip()
    if not address:
        return None
    found = HOST_AND_PORT.fullmatch(address)
    if not found or int(found[3]) > 65535:
        raise RecipeError(
            f"XFT_RENDEZVOUS is {address[:SHOWN]!r}: set it to host:port, with an address of this machine that the others can "
            "reach and a free port, or leave it unset.")
    return address


def benchmarks_directory() -> Path | None:
    """XFT_BENCHMARKS; None if it is not set."""
    return path_setting("XFT_BENCHMARKS")


def ds1000_directory() -> Path:
    """The directory of the pinned environment of DS-1000, which may not exist yet."""
    return path_setting("XFT_DS1000_ENVIRONMENT") or cache_directory() / "xft" / "ds1000"


def cache_directory() -> Path:
    """The directory for caches: XDG_CACHE_HOME, or .cache in the user's home directory."""
    if (given := path_setting("XDG_CACHE_HOME")) is not None:
        return given
    try:
        return Path.home() / ".cache"
    except RuntimeError:  # a container whose user id has no name
        raise RecipeError("This user has no home directory (HOME is not set): set XDG_CACHE_HOME to a directory for caches."
                          ) from None


def path_setting(name: str, default: str = "") -> Path | None:
    """The absolute path of a directory, existing or not, from a variable; ``default``, or None, if it is unset or empty."""
    value = os.environ.get(name) or default
    if not value:
        return None
    try:
        value.encode()
        path = Path(value).expanduser().absolute()
        is_something_else = path.exists() and not path.is_dir()
        blocked = any(parent.exists() and not parent.is_dir() for parent in path.parents)
    except UnicodeEncodeError:
        raise RecipeError(f"{name} is {value[:SHOWN]!r}, whose bytes are not UTF-8. Give another directory.") from None
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise RecipeError(f"{name} is {value[:SHOWN]!r}, which cannot be a directory: {reason}.") from None
    if is_something_else or blocked:
        raise RecipeError(f"{name} is {value[:SHOWN]!r}, which {'is' if is_something_else else 'is below'} a file. Give a "
                          "directory.")
    return path
