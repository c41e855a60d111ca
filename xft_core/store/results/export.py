"""Results of the export stage."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class ExportMetrics(Metrics):
    """Size of the export, and how it compares with the model that it was made of."""

    size_mb: float | None = Field(description="Weights of the export [MiB]")
    held_out_nll: float | None = Field(description=(
        "Held-out loss of the export, loaded again; absent where no data was given [nats per response token]"))
    held_out_nll_source: float | None = Field(description=(
        "The same of the model that it was made of [nats per response token]"))
    same_tokens: float | None = Field(description=(
        "Response tokens of held-out rows for which both have the same most likely token [fraction, 0 to 1]"))
    largest_difference: float | None = Field(description=(
        "Largest difference of a logit between both, on fixed random tokens; absent for form code, which is never loaded here "
        "[nats]"))
