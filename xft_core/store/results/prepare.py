"""Results of the prepare stage."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from xft_core.store.results.base import Flat, Metrics, Result, ResultFile


class PrepareMetrics(Metrics):
    """What happened to the rows. Rows read = dropped + not used + training + reserved + held out, unless the held-out rows
    come from a separate file."""

    rows_read: int | None = Field(description="Rows of the data [count]")
    dropped_empty_response: int | None = Field(description="Rows without a response [count]")
    dropped_unusable: int | None = Field(description="Unusable rows, if data.unusable_rows is drop; absent for none [count]")
    dropped_duplicate: int | None = Field(description="Rows that the data already contains [count]")
    dropped_contaminated: int | None = Field(description="Rows that contain a problem of a benchmark [count]")
    dropped_held_out: int | None = Field(description=(
        "Rows that are also in the held-out file; absent without such a file [count]"))
    dropped_reserved: int | None = Field(description=(
        "Rows that are also in the file of reserved rows; absent without such a file [count]"))
    dropped_no_room: int | None = Field(description="Rows whose prompt leaves no room for any response [count]")
    not_used: int | None = Field(description="Rows left out because there are more than data.max_rows [count]")
    truncated: int | None = Field(description="Responses cut at data.max_length [count]")
    earlier_turns_unused: int | None = Field(description=(
        "Conversations with earlier answers, which are context and not learned; absent for none [count]"))
    control_token_text: int | None = Field(description=(
        "Rows with text that spells a control token and remains text; absent for none [count]"))
    control_tokens_from_text: int | None = Field(description=(
        "Rows in which text became a control token; absent for none [count]"))
    turn_marker_text: int | None = Field(description=(
        "Rows with text that spells the beginning of an answer in the chat template; absent for none [count]"))
    end_token_added: int | None = Field(description=(
        "Responses given the end-of-sequence token, because the chat template has none; absent for none [count]"))
    boundary_forced: int | None = Field(description=(
        "Rows with prompt and response tokenised separately; absent for none [count]"))
    held_out_rows: int | None = Field(description="Held-out rows [count]")
    held_out_tokens: int | None = Field(description="Tokens of the held-out rows [count]")
    held_out_response_tokens: int | None = Field(description="Response tokens of the held-out rows [count]")
    train_rows: int | None = Field(description="Training rows [count]")
    train_tokens: int | None = Field(description="Tokens of the training rows [count]")
    train_response_tokens: int | None = Field(description="Response tokens of the training rows [count]")
    reserved_rows: int | None = Field(description="Rows that no model trains on; absent for none [count]")
    reserved_tokens: int | None = Field(description="Tokens of the reserved rows; absent for none [count]")
    reserved_response_tokens: int | None = Field(description="Response tokens of the reserved rows; absent for none [count]")
    repeated_rows: int | None = Field(description=(
        "For a mixture, training rows beyond the first copy of each, repeated because of a weight or rows; absent for none "
        "[count]"))
    held_out_file: Annotated[dict[str, int], Flat("held_out_")] = Field({}, description=(
        "For the held-out file, if there is one: rows_read, dropped_empty_response and so on, as above [count]"))
    reserved_file: Annotated[dict[str, int], Flat("reserved_")] = Field({}, description=(
        "For the file of reserved rows, if there is one: rows_read, dropped_held_out and so on, as above [count]"))
    others: Annotated[dict[str, int], Flat("")] = Field({}, description="Counts of other versions, by name [count]")


class DroppedRow(Result):
    """A row that contains a benchmark's problem."""

    task_id: str = Field(description="The problem [text]")
    benchmark: str = Field(description="Name of the benchmark's file [text]")
    kind: Literal["substring", "n_gram"] = Field(description=(
        "Whether a complete wording or solution was found, or a sequence of words [text]"))
    excerpt: str = Field(description="The matching words [text]")
    row: list[str] = Field(description="The messages of the row [text]")


class DecontaminationFile(ResultFile):
    """decontamination.json: the benchmarks that the rows were searched for, and the rows that were dropped."""

    file_name: ClassVar[str] = "decontamination.json"
    benchmarks: list[str] = Field(description="Names of the benchmarks' files [text]")
    rows_checked: int = Field(description="Rows that were searched [count]")
    dropped: list[DroppedRow] = Field(description="The dropped rows")


class RefusedFile(ResultFile):
    """refused.json: examples of unusable rows, if data.unusable_rows is drop."""

    file_name: ClassVar[str] = "refused.json"
    rows: list[str] = Field(description="Location and problem of each row [text]")


class ResponseEndFile(ResultFile):
    """response_end.json: every token that ends a complete response, so that generation stops where training taught it to."""

    file_name: ClassVar[str] = "response_end.json"
    indent: ClassVar[int | None] = None
    token_ids: list[int] = Field(description="Ids of these tokens; empty if all responses are cut [token ids]")
    tokens: list[str] = Field([], description="The same tokens as the tokenizer writes them [text]")
