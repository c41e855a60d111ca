"""Short answers, compared as text: without white space around, in any case, however many spaces are inside.

Field of a row: ``answer``, a text or a list of texts, each of which is right.
"""

from typing import Any


def judge(problem: dict[str, Any], output: Any) -> Any:
    """Whether the answer is one of the right ones."""
    right = problem["answer"] if isinstance(problem["answer"], list) else [problem["answer"]]
    passed = plain(output) in {plain(answer) for answer in right}
    return {"base": passed, "detail": "" if passed else f"answered {output.strip()[:200]!r}"}


def plain(text: Any) -> Any:
    """A text as it is compared."""
    return " ".join(str(text).split()).casefold()
