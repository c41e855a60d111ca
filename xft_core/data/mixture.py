"""The number of training rows from each source of a mixture, and their choice.

    share of source i = r_i^(1/T) / sum_j r_j^(1/T),    r_i: its weight, or its number of rows

T is the temperature of T5 (arXiv 1910.10683, section 3.5.2). A source's rows are already in random order. To take k of n rows,
all n are taken floor(k / n) times, then the first of them for the rest. A larger share therefore only adds rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xft_core.errors import DataError


@dataclass(frozen=True)
class Source:
    """A source: its number of rows that can be trained on, and its settings in the recipe (see SourceConfig)."""

    name: str
    available: int
    trained: bool = True
    weight: float | None = None
    rows: int | None = None
    replay: bool = False


def rows_of_sources(
    sources: Sequence[Source], temperature: float, replay: float, max_rows: int | None,
) -> list[int]:
    """Return the number of training rows from each source.

    Without ``max_rows``, the sources without replay together give as many rows as they have, or as their ``rows`` say, and
    replayed rows are added. Raises DataError if a trained source has no rows, or if the sources' ``rows`` do not fit max_rows.
    """
    for source in sources:
        if source.trained and not source.available:
            raise DataError(
                f"No row of the source {source.name} is left to train on: all are held out, reserved, or also in another "
                "source. Give the source more rows or weight 0, or remove it.")
    places = [place for place, source in enumerate(sources) if source.trained]
    main = [place for place in places if not sources[place].replay]
    replayed = [place for place in places if sources[place].replay]
    named = {place: rows for place in main if (rows := sources[place].rows) is not None}
    shared = [place for place in main if place not in named]
    if max_rows is None:
        of_shared = sum(sources[place].available for place in shared)
        of_replay = round((sum(named.values()) + of_shared) * replay / (1 - replay)) if main else 0
    else:
        of_replay = round(max_rows * replay)
        of_shared = max_rows - of_replay - sum(named.values())
    if not main:
        raise DataError("All sources are replay: none is left to train on.")
    if of_shared < 0 or (not shared and max_rows is not None and of_shared):
        raise DataError(
            f"The sources' rows sum to {sum(named.values())}, but data.max_rows leaves {max_rows} less {of_replay} of "
            "replay: leave max_rows empty, or give one source a weight instead of rows.")
    found = [0] * len(sources)
    for place, rows in named.items():
        found[place] = rows
    for several, rows in ((shared, of_shared), (replayed, of_replay)):
        rates = [(sources[place].weight or sources[place].available) ** (1 / temperature) for place in several]
        for place, part in zip(several, apportioned(rates, rows), strict=True):
            found[place] = part
    return found


def apportioned(rates: Sequence[float], total: int) -> list[int]:
    """Divide ``total`` into integers in proportion to ``rates``, by largest remainders; ties go to the first."""
    whole = math.fsum(rates)
    exact = [total * rate / whole for rate in rates]
    parts = [math.floor(part) for part in exact]
    largest = sorted(range(len(rates)), key=lambda place: (parts[place] - exact[place], place))
    for place in largest[:total - sum(parts)]:
        parts[place] += 1
    return parts


def taken(available: np.ndarray, number: int) -> np.ndarray:
    """Return ``number`` rows of the given indices: all of them as often as they fit, then the first ones for the rest."""
    if not number:
        return available[:0]
    return np.concatenate([np.tile(available, number // len(available)), available[:number % len(available)]])
