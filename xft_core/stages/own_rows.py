"""The rows that a training of the sft stage uses: all rows, a random part, or the rows of some sources or a cluster."""

from pathlib import Path

from xft_core.data.rows import Rows, load_rows
from xft_core.errors import DataError
from xft_core.stages.configs.parts import OwnRows
from xft_core.store.results.cluster_rows import ClustersFile
from xft_core.store.results.mix_data import MixtureFile


def own_rows(data: Path, own: OwnRows, seed: int, clusters: Path | None = None) -> Rows:
    """Return the training rows of prepared ``data`` that ``own`` selects. ``seed``: the seed of the training. ``clusters``: the
    output of cluster_rows, needed to select a cluster.

    Raises DataError for sources or a cluster without rows, and for data that does not record the source or cluster of its rows.
    """
    rows = load_rows(data, "train")
    if own.part:
        return rows.part(own.part[0], own.part[1], seed)
    if own.sources is not None:
        return rows.select(_of_sources(data, len(rows), own.sources))
    if own.cluster is not None:
        return rows.select(_of_cluster(clusters, len(rows), own.cluster))
    return rows


def _of_sources(data: Path, number: int, sources: list[int]) -> list[int]:
    mixture = MixtureFile.read(data)
    if mixture is None or len(mixture.train) != number:
        raise DataError(
            f"{str(data)!r} does not record the source of each training row, so rows of the sources {sources} cannot be "
            "chosen. Mix the sources again (mix_data).")
    wanted = set(sources)
    chosen = [index for index, source in enumerate(mixture.train) if source in wanted]
    if not chosen:
        raise DataError(
            f"The sources {sources} give no training rows to the mixture {str(data)!r}. Give them a larger weight or more "
            "rows.")
    return chosen


def _of_cluster(clusters: Path | None, number: int, cluster: int) -> list[int]:
    found = None if clusters is None else ClustersFile.read(clusters)
    if found is None or len(found.train) != number:
        raise DataError(
            f"{str(clusters)!r} does not record the cluster of each of the {number} training rows. Give the output of "
            "cluster_rows for the same data.")
    chosen = [index for index, of_row in enumerate(found.train) if of_row == cluster]
    if not chosen:
        raise DataError(f"There is no cluster {cluster} in {str(clusters)!r}: its clusters are 0 to {max(found.train)}.")
    return chosen
