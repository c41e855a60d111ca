"""Results of the stages that create a Mixture-of-Experts: upcycle, and the import of the reference's checkpoints."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class UpcycleMetrics(Metrics):
    """Sizes of the dense and the upcycled model."""

    parameters_dense: int | None = Field(description="Parameters of the dense model [count]")
    parameters_total: int | None = Field(description="Parameters of the Mixture-of-Experts [count]")
    parameters_active: int | None = Field(description="Parameters of the Mixture-of-Experts that a token uses [count]")
    router_start_rows: int | None = Field(None, description=(
        "Rows that initialize the router; absent if it starts at random [count]"))
    router_start_rows_min: int | None = Field(None, description=(
        "Smallest number of these rows for any expert; absent if the router starts at random [count]"))
    router_start_loss_first: float | None = Field(None, description=(
        "Half the response loss per token plus half the router's cross-entropy, on these rows, before its start is trained; "
        "absent unless router_start is trained [nats]"))
    router_start_loss_last: float | None = Field(None, description="The same, after its start is trained [nats]")
    router_start_accuracy: float | None = Field(None, description=(
        "Share of these rows' tokens whose label is the router's first choice, mean over layers, after its start is trained; "
        "absent unless router_start is trained [fraction, 0 to 1]"))


class ImportReferenceMetrics(Metrics):
    """Size of the imported model."""

    parameters_total: int | None = Field(description="Parameters of the Mixture-of-Experts [count]")
