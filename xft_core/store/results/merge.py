"""Results of the merge stage."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class MergeMetrics(Metrics):
    """Size and quality of the merged model."""

    parameters: int | None = Field(description="Parameters of the merged model [count]")
    held_out_nll: float | None = Field(description=(
        "Held-out loss of the merged model; absent if no data was given [nats per response token]"))
