"""Results of the report and compare stages: the headline numbers of a run and of a comparison. All that they tell is in
comparison.json, whose models are reporting/run/summary.py and reporting/variants/summary.py."""

from typing import Annotated, ClassVar

from pydantic import Field

from xft_core.store.results.base import Flat, Metrics, ResultFile

# Names of a model's numbers, after its own name: nats per response token; shares of problems solved at the first attempt, by
# the benchmark's own tests and by the extended ones too.
HELD_OUT_NLL, PASSED_BASE, PASSED_PLUS = "held_out_nll", "base_pass_at_1", "plus_pass_at_1"


def merged_over(model: str) -> str:
    """What the difference between the merged model and another goes by."""
    return f"merged_over_{model}"


class ReportMetrics(Metrics):
    """The numbers that runs are compared by."""

    numbers: Annotated[dict[str, float], Flat("")] = Field(description=(
        "Each model's numbers under names made by stages/report.headline, such as merged_plus_pass_at_1 "
        "[pass@k: fraction, 0 to 1; nll: nats per response token; others: count]"))
    warnings: int | None = Field(description="Warnings of the report [count]")


class CompareMetrics(Metrics):
    """The numbers of the best group of variants."""

    numbers: Annotated[dict[str, float], Flat("")] = Field(description=(
        "Means over seeds, named as those of one run, and standard deviations as NAME_spread "
        "[pass@k: fraction, 0 to 1; nll: nats per response token; others: count]"))
    variants: int | None = Field(description="Variants with a report [count]")
    missing: int | None = Field(description="Variants without one [count]")
    groups: int | None = Field(description="Groups of variants that differ in the seed alone [count]")


class RunRowsFile(ResultFile):
    """row_losses.json of a report: the loss of every held-out row under every model, where rows were compared."""

    file_name: ClassVar[str] = "row_losses.json"
    indent: ClassVar[int | None] = None
    ending: ClassVar[str] = "\n"
    tokens: list[int] = Field(description="Response tokens of each row, of those that have any [count]")
    losses: dict[str, list[float]] = Field(description="By model, the loss of each row, summed over its response [nats]")
    domains: list[str] = Field([], description="Domain of each row, of a mixture of sources; none without one [text]")
    reserved_nll: dict[str, float] = Field({}, description=(
        "By model, the loss over the rows that are reserved for choices; none where no rows are [nats per response token]"))
    training_flops: dict[str, float] = Field({}, description="By model, floating-point operations of its training [count]")
