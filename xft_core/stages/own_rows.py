"""The rows that a training of the sft stage is on: all of the data's, a random part, or those of some sources."""

from collections.abc import Sequence
from pathlib import Path

from xft_core.data.rows import Rows, load_rows
from xft_core.errors import DataError
from xft_core.store.results.mix_data import MixtureFile


def own_rows(data: Path, part: Sequence[int] | None, sources: Sequence[int] | None, seed: int) -> Rows:
    """The training rows of a training with these fields of SftStage. Raises DataError for sources without rows, and for data
    that is not a mixture but is chosen from by source."""
    rows = load_rows(data, "train")
    if part:
        return rows.part(part[0], part[1], seed)
    if sources is None:
        return rows
    mixture = MixtureFile.read(data)
    if mixture is None or len(mixture.train) != len(rows):
        raise DataError(
            f"{str(data)!r} does not say which source each training row is of, so rows of the sources "
            f"{list(sources)} cannot be chosen. Mix the sources again (mix_data).")
    wanted = set(sources)
    chosen = [index for index, source in enumerate(mixture.train) if source in wanted]
    if not chosen:
        raise DataError(
            f"The sources {list(sources)} give no training rows to the mixture {str(data)!r}. Give them a larger "
            "weight, or more rows.")
    return rows.select(chosen)
