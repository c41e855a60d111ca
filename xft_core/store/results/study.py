"""Results of the study stage. Its numbers are in study.json, see reporting/study/ladder.py."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Metrics, ResultFile


class StudyMetrics(Metrics):
    """The progress of a study."""

    arms: int = Field(description="Arms measured for at least one seed [count]")
    runs: int = Field(description="Runs whose results are in the study [count]")
    missing: int = Field(description="Runs that failed or were not found [count]")
    claims: int = Field(description="Claims of the ladder [count]")
    claims_shown: int = Field(description="Claims before the first that is not shown [count]")


class RawLossesFile(ResultFile):
    """losses.json: all data from which the statistics of a study are computed."""

    file_name: ClassVar[str] = "losses.json"
    indent: ClassVar[int | None] = None
    ending: ClassVar[str] = "\n"
    tokens: list[int] = Field(description="Response tokens of each reported row [count]")
    losses: dict[str, dict[str, list[float]]] = Field(description=(
        "Loss of each reported row, summed over its response, by arm and seed [nats]"))
