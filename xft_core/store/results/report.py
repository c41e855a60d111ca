"""Results of the report and compare stages: the headline numbers of a run and of a comparison. The complete results are in
comparison.json, with the models in reporting/run/summary.py and reporting/variants/summary.py."""

from typing import Annotated, ClassVar

from pydantic import Field

from xft_core.store.results.base import Flat, Metrics, ResultFile

# Names of a model's numbers, after the model's name: nats per response token; shares of problems solved at the first attempt,
# by the benchmark's own tests, and by these and the extended ones.
HELD_OUT_NLL, PASSED_BASE, PASSED_PLUS = "held_out_nll", "base_pass_at_1", "plus_pass_at_1"


def merged_over(model: str) -> str:
    """The name of the difference between the merged model and another model."""
    return f"merged_over_{model}"


class ReportMetrics(Metrics):
    """The numbers that runs are compared by."""

    numbers: Annotated[dict[str, float], Flat("")] = Field(description=(
        "Each model's numbers, named by stages/report.headline, such as merged_plus_pass_at_1 [pass@k: fraction, 0 to 1; "
        "nll: nats per response token; others: count]"))
    warnings: int | None = Field(description="Warnings of the report [count]")


class CompareMetrics(Metrics):
    """The numbers of the best group of variants."""

    numbers: Annotated[dict[str, float], Flat("")] = Field(description=(
        "Means over seeds, named as for a single run, and standard deviations as NAME_spread [pass@k: fraction, 0 to 1; nll: "
        "nats per response token; others: count]"))
    variants: int | None = Field(description="Variants with a report [count]")
    missing: int | None = Field(description="Variants without a report [count]")
    groups: int | None = Field(description="Groups of variants that differ only in the seed [count]")


class RunRowsFile(ResultFile):
    """row_losses.json of a report: the loss of every held-out row under every model, if rows were compared."""

    file_name: ClassVar[str] = "row_losses.json"
    indent: ClassVar[int | None] = None
    ending: ClassVar[str] = "\n"
    tokens: list[int] = Field(description="Response tokens of each row that has any [count]")
    losses: dict[str, list[float]] = Field(description="By model, the loss of each row, summed over its response [nats]")
    domains: list[str] = Field([], description="Domain of each row, for a mixture of sources; empty otherwise [text]")
    reserved_nll: dict[str, float] = Field({}, description=(
        "By model, the loss over the reserved rows; empty if none are reserved [nats per response token]"))
    training_flops: dict[str, float] = Field({}, description="By model, floating-point operations of its training [count]")
