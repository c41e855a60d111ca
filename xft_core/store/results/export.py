"""Results of the export stage."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class ExportMetrics(Metrics):
    """Size of the export, and its comparison with the source model."""

    size_mb: float | None = Field(description="Size of the exported weights [MiB]")
    held_out_nll: float | None = Field(description=(
        "Held-out loss of the export after loading it again; absent if no data was given [nats per response token]"))
    held_out_nll_source: float | None = Field(description="Held-out loss of the source model [nats per response token]")
    same_tokens: float | None = Field(description=(
        "Response tokens of held-out rows for which both have the same most likely token [fraction, 0 to 1]"))
    largest_difference: float | None = Field(description=(
        "Largest difference between the logits of both, on fixed random tokens; absent for form code, which is never loaded "
        "here [nats]"))
