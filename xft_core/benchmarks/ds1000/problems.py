"""The problems of DS-1000 (Lai et al. 2022, arXiv 2211.11501), from its file with one JSON object per line:

    prompt            the question, and code up to where the answer begins
    reference_code    a right answer
    code_context      Python that defines ``test_execution(code)``, in some problems also ``test_string(code)``
    metadata          problem_id, library, perturbation_type, and more that is not used
"""

from dataclasses import dataclass
from typing import Any

from xft_core.errors import DataError

TEXT_FIELDS = ("prompt", "reference_code", "code_context")


@dataclass(frozen=True)
class Problem:
    """One problem. ``perturbation``: how it was derived from a question on Stack Overflow (Origin, Surface, Semantic,
    Difficult-Rewrite)."""

    task_id: str
    prompt: str
    reference_code: str
    code_context: str
    library: str
    perturbation: str


def parse_problem(row: dict[str, Any], where: str) -> Problem:
    """Parse one row into a problem. Raises a DataError that begins with ``where`` and names the wrong field."""
    for name in TEXT_FIELDS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            raise DataError(f"{where}: {name} must be a non-empty text. A problem of DS-1000 needs it.")
    if "def test_execution(" not in row["code_context"]:
        raise DataError(f"{where}: code_context defines no test_execution(code), which grades a program.")
    metadata = row.get("metadata")
    if not isinstance(metadata, dict):
        raise DataError(f"{where}: metadata must be an object with problem_id, library and perturbation_type.")
    number = metadata.get("problem_id")
    if isinstance(number, bool) or not isinstance(number, int):
        raise DataError(f"{where}: metadata.problem_id must be a whole number.")
    for name in ("library", "perturbation_type"):
        if not isinstance(metadata.get(name), str) or not metadata[name].strip():
            raise DataError(f"{where}: metadata.{name} must be a non-empty text.")
    return Problem(
        task_id=f"DS-1000/{number}", **{name: row[name] for name in TEXT_FIELDS}, library=metadata["library"],
        perturbation=metadata["perturbation_type"])
