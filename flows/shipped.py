"""Files that ship with the code, in a checkout and in an installed package: recipes, studies and deployments."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

CODE = Path(__file__).parents[1]  # the checkout, or where the package is installed
DEPLOYMENTS = CODE / "deployments"


def shipped_or_file(kind: str) -> Callable[[str], Path]:
    """Return a reader of an option that names a YAML file, or by a bare name a shipped one of ``kind`` (recipes, studies).

    A file of that name in the current directory comes first. The reader raises ArgumentTypeError for a bare name that is
    neither.
    """
    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix or path.name != text or path.exists():
            return path
        shipped = {file.stem: file for file in (DEPLOYMENTS / kind).glob("*.yaml")}
        if text not in shipped:
            raise ArgumentTypeError(
                f"there is no file {text!r}, and none of the {kind} that ship has this name. Give the path of a YAML file, or "
                f"one of {', '.join(sorted(shipped))}")
        return shipped[text]

    return read
