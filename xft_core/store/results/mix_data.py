"""Results of the mix_data stage, besides those that it shares with prepare."""

from typing import ClassVar

from pydantic import Field

from xft_core.store.results.base import Result, ResultFile


class SourceRows(Result):
    """What happened to one source's rows. Rows read = dropped + held out + reserved + available. ``taken`` rows contain
    ``used`` distinct available rows, some possibly several times."""

    rows_read: int = Field(description="Rows of the source [count]")
    dropped: int = Field(description="Rows that prepare dropped, or that another source also has [count]")
    held_out: int = Field(description="Rows held out [count]")
    reserved: int = Field(description="Rows reserved for choices [count]")
    available: int = Field(description="Rows available for training [count]")
    used: int = Field(description="Distinct rows used for training [count]")
    taken: int = Field(description="Training rows of the mixture, counting repetitions [count]")
    taken_tokens: int = Field(description="Tokens of these rows [count]")


class MixtureFile(ResultFile):
    """mixture.json: the contribution of each source, and the source of each row."""

    file_name: ClassVar[str] = "mixture.json"
    sources: list[SourceRows] = Field(description="The sources, in the recipe's order")
    held_out: list[int] = Field(description="For each held-out row, the index of its source, from 0 [no unit]")
    train: list[int] = Field([], description="For each training row, the index of its source, from 0 [no unit]")
