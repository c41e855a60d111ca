"""Losses of a run's models row by row, as its report carries them: what a study is made of."""

from typing import Annotated, ClassVar

from pydantic import Field, Strict

from xft_core.store.results.base import Result, ResultFile

RowLoss = Annotated[tuple[float, int], Strict(False)]


class LossesOfModel(Result):
    """One model on every row."""

    held_out: list[RowLoss] = Field(description=(
        "For each held-out row its loss, summed over its response, and its response tokens [nats, count]"))
    reserved: list[RowLoss] = Field([], description="The same for each row that is reserved for choices [nats, count]")
    training_tokens: float | None = Field(None, description="Tokens that its training saw [count]")
    training_flops: float | None = Field(None, description="Floating-point operations of its training [count]")


class ModelLossesFile(ResultFile):
    """model_losses.json of a report; only where rows are compared."""

    file_name: ClassVar[str] = "model_losses.json"
    indent: ClassVar[int | None] = None
    ending: ClassVar[str] = "\n"
    models: dict[str, LossesOfModel] = Field(description="The run's models by name: base, sft, its rivals, moe, merged")
