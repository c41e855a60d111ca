"""Readable, unique labels for listed items: rows of tables, metrics, directories and files.

An item keeps its shortest label as long as no other item has the same one, whatever else is listed. Items that share a label
get longer ones (more of their path), and items that are identical in all of their path are numbered.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import PurePath

from xft_core.files.digests import digest_of

LONGEST_NAME = 120  # bytes; only part of a full name, for which MLflow allows 250 (metrics) and file systems 255
DIGEST_LENGTH = 6


def short_name(model: str) -> str:
    """A run or recipe name from a model's path or Hub name: its last part, with letters, digits, dots, dashes, underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", PurePath(model).name).strip("-._")[:80] or "model"


def looks(label: str) -> str:
    """Normalize a label so that texts that differ only in the encoding of accents are equal."""
    return unicodedata.normalize("NFC", label)


def unique_labels(forms: Sequence[Sequence[str]], alike: Callable[[str], str] = looks) -> list[str]:
    """Return one label per item. ``forms``: the possible labels of each item, shortest first; ``alike``: labels with the same
    result count as equal."""
    lengths = [0] * len(forms)
    while True:
        labels = [of_one[length] for of_one, length in zip(forms, lengths, strict=True)]
        shared = _shared(map(alike, labels))
        growing = [index for index, label in enumerate(labels)
                   if alike(label) in shared and lengths[index] + 1 < len(forms[index])]
        if not growing:
            return _numbered(labels, alike)
        for index in growing:
            lengths[index] += 1


def path_forms(name: str) -> list[str]:
    """Possible labels of a file, directory or Hub name: its last part, then successively more of its parents."""
    parts = [part for part in PurePath(name.removeprefix("demo:")).parts if part != "/"] or [name]
    return ["/".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]


def path_labels(names: Sequence[str]) -> list[str]:
    """Labels of files: ``h.jsonl``, or ``d2/h.jsonl`` and ``d3/h.jsonl`` if both are listed."""
    return unique_labels([path_forms(name) for name in names])


def flat(label: str) -> str:
    """A label as part of a metric or file name: lowercase letters and digits of any script, and underscores."""
    return re.sub(r"[\W_]+", "_", looks(label).casefold()).strip("_")


def flat_names(labels: Iterable[str], taken: Collection[str] = ()) -> dict[str, str]:
    """``flat`` of each label, by label. A name that is empty, too long, ``taken`` or shared with another label gets digits of
    the label's digest as a suffix, so that it does not depend on the other labels."""
    names = {label: flat(label) for label in labels}
    shared = _shared(names.values()) | set(taken)
    return {
        label: name if name and name not in shared and len(name.encode()) <= LONGEST_NAME
        else f"{_cut(name)}_{digest_of(label)[:DIGEST_LENGTH]}".strip("_")
        for label, name in names.items()}


def _cut(name: str) -> str:
    return name.encode()[:LONGEST_NAME].decode(errors="ignore")


def group_names(groups: Iterable[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """Metric names for groups of problems, each given as a criterion (``library``) and a name: the lowercase name, prefixed
    with the criterion if another criterion has a group of the same name."""
    def written(label: str) -> str:
        return re.sub(r"[^\w.-]+", "_", looks(label))

    known = list(dict.fromkeys(groups))
    labels = unique_labels([[name.lower(), f"{criterion} {name}".lower()] for criterion, name in known], alike=written)
    return {group: written(label) for group, label in zip(known, labels, strict=True)}


def _shared(labels: Iterable[str]) -> set[str]:
    return {label for label, count in Counter(labels).items() if count > 1}


def _numbered(labels: list[str], alike: Callable[[str], str]) -> list[str]:
    shared = _shared(map(alike, labels))
    seen: Counter[str] = Counter()
    given = {alike(label) for label in labels}
    for index, label in enumerate(labels):
        key = alike(label)
        if key in shared:
            seen[key] += 1
            while alike(f"{label} ({seen[key]})") in given:
                seen[key] += 1
            labels[index] = f"{label} ({seen[key]})"
            given.add(alike(labels[index]))
    return labels
