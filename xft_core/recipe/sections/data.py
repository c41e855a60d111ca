"""The recipe's section data."""

from typing import ClassVar, Literal

from pydantic import Field

from xft_core.recipe.sections.base import Section, Seed


class DataConfig(Section):
    """Instruction data and how it becomes training text."""

    added: ClassVar[frozenset[str]] = frozenset({"reserved_rows", "reserved_path", "pictures"})

    path: str = Field("demo:instruct.jsonl", description=(
        "Instruction data: a .json, .jsonl or .parquet file, a Hub data set name, or demo:instruct.jsonl."))
    split: str = Field("train", description="Split to read when the data is a Hub data set.")
    format: Literal["auto", "instruction", "alpaca", "problem", "messages"] = Field("auto", description=(
        "Form of a row: instruction (instruction, response), alpaca (instruction, input, output), problem (problem, "
        "solution: OSS-Instruct), messages (list of role and content); auto recognises them by their fields."))
    template: Literal["magicoder", "chat"] = Field("magicoder", description=(
        "Prompt template for training: magicoder (the paper's) or chat (the tokenizer's own chat template)."))
    max_length: int = Field(1024, ge=16, le=1_048_576, description=(
        "Longest example, in tokens. A longer response is cut; a prompt that leaves no room for one is dropped."))
    max_rows: int | None = Field(None, ge=2, description=(
        "Use only this many rows, drawn by split_seed; empty for all."))
    held_out_rows: int = Field(200, ge=1, description=(
        "Rows kept out of training, to measure the negative log-likelihood per response token (at most a fifth of all)."))
    held_out_path: str | None = Field(None, description=(
        "Rows to hold out instead: a file or Hub data set in one of the forms above, all of whose rows are used. Rows that "
        "are also in it are not trained on. Empty: held_out_rows of the data."))
    split_seed: Seed = Field(0, description=(
        "Seed of the choice of rows and of those held out. It is not the recipe's seed, so that runs with other seeds train "
        "and are measured on the same rows: their spread is that of training alone."))
    decontaminate: bool = Field(True, description="Drop rows that contain a problem of the benchmarks chosen below.")
    reserved_rows: int = Field(0, ge=0, description=(
        "Rows that no model trains on, drawn by split_seed, to choose mixing coefficients on (merge.rows: reserved); never "
        "those that are reported on. At most a fifth of all; 0 for none. Plays no part with reserved_path."))
    reserved_path: str | None = Field(None, description=(
        "Rows to reserve instead: a file or Hub data set in one of the forms above, all of whose rows are used, without those "
        "that are held out. Rows that are also in it are not trained on. Empty: reserved_rows of the data."))

    pictures: str | None = Field(None, description=(
        "For a model that reads pictures: the directory of the files that the field image, or images, of a row names. Empty: "
        "rows hold their pictures themselves (data:image/png;base64,...)."))

    @property
    def reserves_rows(self) -> bool:
        """Whether there are rows to choose by that are neither trained on nor reported on."""
        return self.reserved_rows > 0 or self.reserved_path is not None
