"""Results of the mix_data stage, beside those that it has in common with prepare."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Result, ResultFile


class SourceRows(Result):
    """What became of one source's rows. Rows read = dropped + held out + reserved + available; of the available ones
    ``used`` different ones are among ``taken``, some perhaps several times."""

    rows_read: int = Field(description="Rows of the source [count]")
    dropped: int = Field(description="Rows that prepare dropped, or that another source has too [count]")
    held_out: int = Field(description="Rows held out [count]")
    reserved: int = Field(description="Rows reserved for choices [count]")
    available: int = Field(description="Rows that can be trained on [count]")
    used: int = Field(description="Rows that are trained on [count]")
    taken: int = Field(description="Training rows of the mixture, each as often as it is taken [count]")
    taken_tokens: int = Field(description="Their tokens [count]")


class MixtureFile(ResultFile):
    """mixture.json: what each source gave, and which source each row is of."""

    file_name: ClassVar[str] = "mixture.json"
    sources: list[SourceRows] = Field(description="The sources, in the recipe's order")
    held_out: list[int] = Field(description="For each held-out row the place of its source, from 0 [no unit]")
    train: list[int] = Field([], description="For each training row the place of its source, from 0 [no unit]")
