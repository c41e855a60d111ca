"""What ships beside the code: recipes, studies and deployments, in a checkout as in an installed package."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

CODE = Path(__file__).parents[1]  # the checkout, or where the package is installed
DEPLOYMENTS = CODE / "deployments"


def shipped_or_file(kind: str) -> Callable[[str], Path]:
    """Reads an option that names a YAML file: the file, or by a bare name one of ``kind`` (recipes, studies) that ships.

    A file of that name here comes first. What is read raises ArgumentTypeError for a bare name that is neither.
    """
    def read(text: str) -> Path:
        path = Path(text)
        if path.suffix or path.name != text or path.exists():
            return path
        shipped = {file.stem: file for file in (DEPLOYMENTS / kind).glob("*.yaml")}
        if text not in shipped:
            raise ArgumentTypeError(
                f"there is no file {text!r}, and no {kind} of this name ship. Give the path of a YAML file, or one of "
                f"{', '.join(sorted(shipped))}")
        return shipped[text]

    return read
