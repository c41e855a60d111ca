"""Results of the stages that make a Mixture-of-Experts: upcycle, and the import of the reference's checkpoints."""

from pydantic import Field

from xft_core.store.results.base import Metrics


class UpcycleMetrics(Metrics):
    """Sizes of the dense and of the upcycled model."""

    parameters_dense: int | None = Field(description="Parameters of the dense model [count]")
    parameters_total: int | None = Field(description="Parameters of the Mixture-of-Experts [count]")
    parameters_active: int | None = Field(description="Parameters of the Mixture-of-Experts that a token uses [count]")
    router_start_rows: int | None = Field(None, description="Rows that the router starts from; absent where at random [count]")
    router_start_rows_min: int | None = Field(None, description=(
        "The fewest of them that one expert has; absent where the router starts at random [count]"))


class ImportReferenceMetrics(Metrics):
    """Size of the imported model."""

    parameters_total: int | None = Field(description="Parameters of the Mixture-of-Experts [count]")
