"""Results of the dpo stage."""

from pydantic import Field

from xft_core.store.results.sft import TrainingMetrics


class DpoMetrics(TrainingMetrics):
    """Numbers of tuning on preferences. The training loss is per pair, and is ln 2 before any preference is learned. Without
    pairs, there is no training, and the model is the merged one."""

    pairs: int = Field(description="Pairs of a passing and a failing answer [count]")
    problems_with_pairs: int = Field(description="Problems with both a passing and a failing answer [count]")
    problems_without_pairs: int = Field(description="Problems where all answers pass or all fail [count]")
    answers_passing: int | None = Field(description="Distinct passing answers of all problems [count]")
    answers_failing: int | None = Field(description="Distinct failing answers of all problems [count]")
    preferred: float | None = Field(description=(
        "Share of the pairs in which the passing answer gained more log-probability than the failing one; absent without "
        "pairs [fraction, 0 to 1]"))
    held_out_nll_before: float | None = Field(description="Held-out loss of the merged model [nats per response token]")
    held_out_nll: float | None = Field(description="Held-out loss after DPO [nats per response token]")
    parameters: int = Field(description="Parameters of the model [count]")
