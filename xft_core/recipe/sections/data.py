"""The recipe's section data: one source of rows, or a mixture of several."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Section, Seed

RowFormat = Literal[
    "auto", "instruction", "alpaca", "problem", "messages", "sharegpt", "prompt_completion", "question_answer", "text"]
Domain = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\s|/](?:[^|/\n\r\t]*[^\s|/])?$")]

_PATH_HELP = (
    "Instruction data: a file (.json, .jsonl, .jsonl.gz, .jsonl.zst, .csv, .tsv, .parquet, .arrow), a glob (shards/*.jsonl), a "
    "directory of such files or of datasets' save_to_disk, a Hub data set name, an S3 address s3://bucket/object or "
    "s3://bucket/prefix/, an http(s) address of a file, or demo:instruct.jsonl.")
_FORMAT_HELP = (
    "Form of a row: instruction (instruction, response), alpaca (instruction, input, output), problem (problem, solution: "
    "OSS-Instruct), messages (list of role and content, and tools), sharegpt (conversations: list of from and value), "
    "prompt_completion (prompt, completion), question_answer (question, answer), text (all of it is learned); auto recognises "
    "them, but for text, by their fields.")
_FIELDS_HELP = (
    "Names of the data's fields where they are others: name in the form: name in the data, for example {question: title, "
    "answer: body}; a.b is field b of field a.")


class SourceConfig(Section):
    """One source of a mixture. It is prepared and cached by itself; its share is decided afterwards."""

    path: str = Field(description=_PATH_HELP)
    config: str | None = Field(None, description="Configuration (subset) of a Hub data set.")
    split: str = Field("train", description="Split to read of a Hub data set or of a directory of save_to_disk.")
    revision: str | None = Field(None, description="Revision (branch, tag or commit) of a Hub data set.")
    format: RowFormat = Field("auto", description=_FORMAT_HELP)
    fields: dict[str, str] = Field({}, description=_FIELDS_HELP)
    domain: Domain | None = Field(None, description=(
        "What the rows are about; the report has losses by domain. Several sources may share one. Empty: the file's name."))
    weight: float | None = Field(None, ge=0, le=1e6, description=(
        "Share of the training rows, relative to the other sources' weights; 0: not trained on, only measured. Empty, for all "
        "sources or none: the source's number of rows."))
    rows: int | None = Field(None, ge=1, description=(
        "Training rows to take, exactly, in place of a weight; more than there are: some are taken again."))
    replay: bool = Field(False, description=(
        "Earlier or general data, of which the share data.replay of the training rows is taken, against forgetting."))
    benchmarks: list[str] = Field([], description=(
        "Those of evaluate.benchmarks that measure this domain: the report shows their pass rates by domain."))
    licence: str | None = Field(None, max_length=200, description=(
        "Licence of the data, for the model card and the report, for example cc-by-4.0."))

    @model_validator(mode="after")
    def _share_is_said_once(self) -> "SourceConfig":
        if self.weight is not None and self.rows is not None:
            raise ValueError(f"weight ({self.weight:g}) and rows ({self.rows}) are both given: keep one of them")
        if self.replay and self.rows is not None:
            raise ValueError(f"rows is {self.rows}, but the share of replayed rows is data.replay: remove rows")
        if "" in self.fields or "" in self.fields.values():
            raise ValueError("fields holds an empty name: give names as {name in the form: name in the data}")
        return self


class DataConfig(Section):
    """Instruction data and how it becomes training text."""

    added: ClassVar[frozenset[str]] = frozenset({
        "reserved_rows", "reserved_path", "config", "revision", "fields", "sources", "temperature", "replay", "leave_out",
        "loss_on", "unusable_rows", "pictures"})

    path: str = Field("demo:instruct.jsonl", description=_PATH_HELP)
    split: str = Field("train", description="Split to read of a Hub data set or of a directory of save_to_disk.")
    format: RowFormat = Field("auto", description=_FORMAT_HELP)
    template: Literal["magicoder", "chat"] = Field("magicoder", description=(
        "Prompt template for training: magicoder (the paper's) or chat (the tokenizer's own chat template)."))
    max_length: int = Field(1024, ge=16, le=1_048_576, description=(
        "Longest example, in tokens. A longer response is cut; a prompt that leaves no room for one is dropped."))
    max_rows: int | None = Field(None, ge=2, description=(
        "Use only this many rows, drawn by split_seed; empty for all. Of a mixture: training rows of all sources together."))
    held_out_rows: int = Field(200, ge=1, description=(
        "Rows kept out of training, to measure the negative log-likelihood per response token (at most a fifth of all). Of a "
        "mixture: of each source."))
    held_out_path: str | None = Field(None, description=(
        "Rows to hold out instead: a file or Hub data set in one of the forms above, all of whose rows are used. Rows that "
        "are also in it are not trained on. Empty: held_out_rows of the data."))
    split_seed: Seed = Field(0, description=(
        "Seed of the choice of rows and of those held out. It is not the recipe's seed, so that runs with other seeds train "
        "and are measured on the same rows: their spread is that of training alone."))
    decontaminate: bool = Field(True, description="Drop rows that contain a problem of the benchmarks chosen below.")
    reserved_rows: int = Field(0, ge=0, description=(
        "Rows that no model trains on, drawn by split_seed, to choose mixing coefficients on (merge.rows: reserved); never "
        "those that are reported on. At most a fifth of all; 0 for none. Plays no part with reserved_path. Of a mixture: of "
        "each source."))
    reserved_path: str | None = Field(None, description=(
        "Rows to reserve instead: a file or Hub data set in one of the forms above, all of whose rows are used, without those "
        "that are held out. Rows that are also in it are not trained on. Empty: reserved_rows of the data."))
    config: str | None = Field(None, description="Configuration (subset) of a Hub data set.")
    revision: str | None = Field(None, description="Revision (branch, tag or commit) of a Hub data set.")
    fields: dict[str, str] = Field({}, description=_FIELDS_HELP)
    loss_on: Literal["last", "all"] = Field("last", description=(
        "Answers of a conversation that are learned: the last, or all of the assistant's (with data.template chat)."))
    unusable_rows: Literal["stop", "drop"] = Field("stop", description=(
        "What to do about rows that cannot be used, such as those that the chat template refuses: stop, with their number and "
        "an example, or drop them, counted, with examples in refused.json."))
    sources: list[SourceConfig] = Field([], max_length=1000, description=(
        "Sources to mix, in place of path: each is prepared by itself, so that changing a weight prepares nothing again."))
    temperature: float = Field(1.0, ge=1, le=1000, description=(
        "T of the mixture: a source's share is its weight, or its number of rows, to the power 1/T. 1: as they are; larger: "
        "more equal shares (T5's convention; an exponent of 0.7 is a temperature of 1.43)."))
    replay: float = Field(0.0, ge=0, lt=1, description=(
        "Share of the training rows that come from the sources with replay: true (0.05 to 0.2 are usual)."))
    leave_out: str | None = Field(None, description=(
        "A domain that is not trained on, only measured. Compare data.leave_out=[null, DOMAIN, ...] to see what each domain "
        "contributes."))

    pictures: str | None = Field(None, description=(
        "For a model that reads pictures: the directory of the files that the field image, or images, of a row names. Empty: "
        "rows hold their pictures themselves (data:image/png;base64,...)."))

    @property
    def reserves_rows(self) -> bool:
        """Whether there are rows to choose by that are neither trained on nor reported on."""
        return self.reserved_rows > 0 or self.reserved_path is not None

    @model_validator(mode="before")
    @classmethod
    def _is_no_list(cls, values: Any) -> Any:
        if isinstance(values, list):
            raise ValueError("data is a section, not a list: give the list of sources as data.sources")
        return values

    @model_validator(mode="after")
    def _mixture_fits(self) -> "DataConfig":
        if not self.sources:
            for name, value in (("replay", self.replay), ("leave_out", self.leave_out)):
                if value:
                    raise ValueError(f"{name} is {value}, but data.sources is empty: it is about a mixture of sources")
            return self
        if self.path != type(self).model_fields["path"].default:
            raise ValueError(f"path ({self.path}) and sources are both given: make the path one of the sources")
        for name in ("held_out_path", "reserved_path", "config", "revision", "fields", "format", "split"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for a single path; with sources, rows are held out and reserved of each source, "
                                 "and each has its own config, split, revision, format and fields")
        main = [source for source in self.sources if not source.replay]
        if not main:
            raise ValueError("every source has replay: true, so there is nothing to train on beside them")
        if self.replay and len(main) == len(self.sources):
            raise ValueError(f"replay is {self.replay:g}, but no source has replay: true")
        for several in (main, [source for source in self.sources if source.replay]):
            shared = [source for source in several if source.rows is None]
            if len({source.weight is None for source in shared}) > 1:
                raise ValueError("some sources have a weight and some have none: give each a weight or rows, or none a weight")
        if self.leave_out is not None and self.leave_out not in self.domains:
            raise ValueError(f"leave_out is {self.leave_out!r}, which is not a domain: there are {', '.join(self.domains)}")
        if not any(self.is_trained_on(place) for place in range(len(self.sources))):
            raise ValueError("no source is left to train on: every weight is 0, or its domain is left out")
        return self

    @property
    def paths(self) -> list[str]:
        """The path of every source, or the one path."""
        return [source.path for source in self.sources] or [self.path]

    @property
    def source_names(self) -> list[str]:
        """What a person calls each source: its file's name, with as much of its directories as tells it from the others."""
        from xft_core.recipe.labels import path_labels, unique_labels

        paths = [source.path for source in self.sources]
        known = list(dict.fromkeys(paths))
        labels = dict(zip(known, path_labels(known), strict=True))
        return unique_labels([[labels[path]] for path in paths])

    @property
    def source_domains(self) -> list[str]:
        """The domain of each source."""
        return [source.domain or name for source, name in zip(self.sources, self.source_names, strict=True)]

    @property
    def domains(self) -> list[str]:
        """The domains of the sources, each once, in their order."""
        return list(dict.fromkeys(self.source_domains))

    def is_trained_on(self, place: int) -> bool:
        """Whether any row of the source at this place of ``sources`` is trained on."""
        source = self.sources[place]
        if source.weight == 0 or self.source_domains[place] == self.leave_out:
            return False
        return not source.replay or self.replay > 0

    def of_source(self, place: int) -> "DataConfig":
        """How the source at this place of ``sources`` is prepared by itself. Its share, its domain and the other sources play
        no part in that."""
        source = self.sources[place]
        return self._alone(path=source.path, config=source.config, split=source.split, revision=source.revision,
                           format=source.format, fields=source.fields)

    def other(self, path: str) -> "DataConfig":
        """How rows of another file or Hub data set become text: all of them, in whatever form they have."""
        return self._alone(path=path, format="auto", fields={}, config=None, revision=None, held_out_path=None)

    def _alone(self, **of_rows: Any) -> "DataConfig":
        no_mixture = {"sources": [], "temperature": 1.0, "replay": 0.0, "leave_out": None, "max_rows": None}
        return self.model_copy(update=no_mixture | of_rows)
