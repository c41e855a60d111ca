"""Results of the cluster_rows stage."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, ResultFile


class ClusterRowsMetrics(Metrics):
    """The distribution of the training rows over clusters."""

    rows: int | None = Field(description="Training rows [count]")
    smallest_cluster: int | None = Field(description="Rows of the smallest cluster [count]")
    largest_cluster: int | None = Field(description="Rows of the largest cluster [count]")
    explained: float | None = Field(description=(
        "Share of the variance of the rows' embeddings that is between clusters [fraction, 0 to 1]"))


class ClustersFile(ResultFile):
    """clusters.json: the cluster of each training row."""

    file_name: ClassVar[str] = "clusters.json"
    indent: ClassVar[int | None] = None
    ending: ClassVar[str] = "\n"
    sizes: list[int] = Field(description="Rows of each cluster [count]")
    train: list[int] = Field(description=(
        "For each training row, its cluster, numbered from 0 in the order of their first rows [no unit]"))
