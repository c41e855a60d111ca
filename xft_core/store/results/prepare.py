"""Results of the prepare stage."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xft_core.store.results.base import Flat, Metrics, Result, ResultFile


class PrepareMetrics(Metrics):
    """What became of the rows. Rows read = dropped + not used + to train on + reserved + held out, where the held-out rows
    are not of a file of their own."""

    rows_read: int | None = Field(description="Rows of the data [count]")
    dropped_empty_response: int | None = Field(description="Rows without a response [count]")
    dropped_unusable: int | None = Field(description=(
        "Rows that cannot be used, where data.unusable_rows is drop; absent for none [count]"))
    dropped_duplicate: int | None = Field(description="Rows that the data holds already [count]")
    dropped_contaminated: int | None = Field(description="Rows with a problem of a benchmark [count]")
    dropped_held_out: int | None = Field(description=(
        "Rows that the held-out file holds too; absent without such a file [count]"))
    dropped_reserved: int | None = Field(description=(
        "Rows that the file of reserved rows holds too; absent without such a file [count]"))
    dropped_no_room: int | None = Field(description="Rows whose prompt leaves no room for any response [count]")
    not_used: int | None = Field(description="Rows left out since there are more than data.max_rows [count]")
    truncated: int | None = Field(description="Responses cut off at data.max_length [count]")
    earlier_turns_unused: int | None = Field(description=(
        "Earlier answers of conversations, which are given and not learned; absent for none [count]"))
    control_token_text: int | None = Field(description=(
        "Rows whose text spells a control token and stays text; absent for none [count]"))
    control_tokens_from_text: int | None = Field(description=(
        "Rows in which text became a control token; absent for none [count]"))
    turn_marker_text: int | None = Field(description=(
        "Rows whose text spells what the chat template begins an answer with; absent for none [count]"))
    end_token_added: int | None = Field(description=(
        "Responses that got the end-of-sequence token, as the chat template has none; absent for none [count]"))
    boundary_forced: int | None = Field(description=(
        "Rows whose prompt and response were tokenised apart; absent for none [count]"))
    held_out_rows: int | None = Field(description="Held-out rows [count]")
    held_out_tokens: int | None = Field(description="Tokens of the held-out rows [count]")
    held_out_response_tokens: int | None = Field(description="Response tokens of the held-out rows [count]")
    train_rows: int | None = Field(description="Rows to train on [count]")
    train_tokens: int | None = Field(description="Tokens of the rows to train on [count]")
    train_response_tokens: int | None = Field(description="Response tokens of the rows to train on [count]")
    reserved_rows: int | None = Field(description="Rows that no model trains on; absent for none [count]")
    reserved_tokens: int | None = Field(description="Tokens of the reserved rows; absent for none [count]")
    reserved_response_tokens: int | None = Field(description="Response tokens of the reserved rows; absent for none [count]")
    repeated_rows: int | None = Field(description=(
        "Of a mixture, rows to train on beyond the first of each: taken again, as a weight or rows asks; absent for none "
        "[count]"))
    held_out_file: Annotated[dict[str, int], Flat("held_out_")] = Field({}, description=(
        "Of the held-out file, where there is one: rows_read, dropped_empty_response and so on, as above [count]"))
    reserved_file: Annotated[dict[str, int], Flat("reserved_")] = Field({}, description=(
        "Of the file of reserved rows, where there is one: rows_read, dropped_held_out and so on, as above [count]"))
    others: Annotated[dict[str, int], Flat("")] = Field({}, description="What other versions count, by name [count]")


class DroppedRow(Result):
    """A row that holds a benchmark's problem."""

    task_id: str = Field(description="The problem [text]")
    benchmark: str = Field(description="Name of the benchmark's file [text]")
    kind: Literal["substring", "n_gram"] = Field(description=(
        "Whether a whole wording or solution was found, or a run of words [text]"))
    excerpt: str = Field(description="The words that were found [text]")
    row: list[str] = Field(description="The messages of the row [text]")


class DecontaminationFile(ResultFile):
    """decontamination.json: what was looked for in the rows, and what was dropped."""

    file_name: ClassVar[str] = "decontamination.json"
    benchmarks: list[str] = Field(description="Names of the benchmarks' files [text]")
    rows_checked: int = Field(description="Rows that were searched [count]")
    dropped: list[DroppedRow] = Field(description="The rows that were dropped")


class RefusedFile(ResultFile):
    """refused.json: examples of the rows that cannot be used, where data.unusable_rows is drop."""

    file_name: ClassVar[str] = "refused.json"
    rows: list[str] = Field(description="For each where it is and what is wrong with it [text]")


class ResponseEndFile(ResultFile):
    """response_end.json: every token that ends a whole response, so that generation stops where training taught it."""

    file_name: ClassVar[str] = "response_end.json"
    indent: ClassVar[int | None] = None
    token_ids: list[int] = Field(description="The tokens' numbers; none where all responses are cut [token ids]")
    tokens: list[str] = Field([], description="The same tokens as the tokenizer writes them [text]")
