"""The recipe section data: one source of rows, or a mixture of several."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from xft_core.recipe.sections.base import Section, Seed

RowFormat = Literal[
    "auto", "instruction", "alpaca", "problem", "messages", "sharegpt", "prompt_completion", "question_answer", "text"]
Domain = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\s|/](?:[^|/\n\r\t]*[^\s|/])?$")]

_PATH_HELP = (
    "Instruction data: a file (.json, .jsonl, .jsonl.gz, .jsonl.zst, .csv, .tsv, .parquet, .arrow), a glob (shards/*.jsonl), "
    "a directory of such files or one saved with save_to_disk, a Hub data set name, an S3 address s3://bucket/object or "
    "s3://bucket/prefix/, the http(s) address of a file, or demo:instruct.jsonl.")
_FORMAT_HELP = (
    "Form of a row: instruction (instruction, response), alpaca (instruction, input, output), problem (problem, solution: "
    "OSS-Instruct), messages (a list of role and content, plus tools), sharegpt (conversations: a list of from and value), "
    "prompt_completion (prompt, completion), question_answer (question, answer) or text (the model learns all of it). auto "
    "detects every form except text by its fields.")
_FIELDS_HELP = (
    "Maps the form's field names to those of your data where they differ, for example {question: title, answer: body}; a.b "
    "is field b inside field a.")


class SourceConfig(Section):
    """One source of a mixture, prepared and cached separately. Its share is decided afterwards."""

    path: str = Field(description=_PATH_HELP)
    config: str | None = Field(None, description="Configuration (subset) of a Hub data set.")
    split: str = Field("train", description="Split of a Hub data set or of a save_to_disk directory.")
    revision: str | None = Field(None, description="Revision (branch, tag or commit) of a Hub data set.")
    format: RowFormat = Field("auto", description=_FORMAT_HELP)
    fields: dict[str, str] = Field({}, description=_FIELDS_HELP)
    domain: Domain | None = Field(None, description=(
        "Topic of the rows. The report lists losses by domain. Several sources may share a domain. Empty: the name of the "
        "file."))
    weight: float | None = Field(None, ge=0, le=1e6, description=(
        "Share of the training rows, relative to the weights of the other sources. 0: measured, but not trained on. Leave it "
        "empty for all sources or for none; empty means the source's number of rows."))
    rows: int | None = Field(None, ge=1, description=(
        "Exact number of training rows to take, instead of a weight. If the source has fewer, some rows are repeated."))
    replay: bool = Field(False, description=(
        "Whether this is earlier or general data, mixed in against forgetting. data.replay sets the share of all such data."))
    benchmarks: list[str] = Field([], description=(
        "The benchmarks from evaluate.benchmarks that measure this domain. The report shows their pass rates by domain."))
    licence: str | None = Field(None, max_length=200, description=(
        "Licence of the data, for the model card and the report, for example cc-by-4.0."))

    @model_validator(mode="after")
    def _share_is_said_once(self) -> "SourceConfig":
        if self.weight is not None and self.rows is not None:
            raise ValueError(f"weight ({self.weight:g}) and rows ({self.rows}) are both given: keep only one")
        if self.replay and self.rows is not None:
            raise ValueError(f"rows is {self.rows}, but data.replay sets the share of replayed rows: remove rows")
        if "" in self.fields or "" in self.fields.values():
            raise ValueError("fields contains an empty name: give names as {name in the form: name in the data}")
        return self


class DataConfig(Section):
    """Instruction data, and how it becomes training text."""

    added: ClassVar[frozenset[str]] = frozenset({
        "reserved_rows", "reserved_path", "config", "revision", "fields", "sources", "temperature", "replay", "leave_out",
        "loss_on", "unusable_rows", "pictures"})

    path: str = Field("demo:instruct.jsonl", description=_PATH_HELP)
    split: str = Field("train", description="Split of a Hub data set or of a save_to_disk directory.")
    format: RowFormat = Field("auto", description=_FORMAT_HELP)
    template: Literal["magicoder", "chat"] = Field("magicoder", description=(
        "Prompt template for training: magicoder (the paper's) or chat (the tokenizer's own chat template)."))
    max_length: int = Field(1024, ge=16, le=1_048_576, description=(
        "Maximum length of an example, in tokens. Longer responses are cut. A prompt that leaves no room for a response is "
        "dropped."))
    max_rows: int | None = Field(None, ge=2, description=(
        "Use only this many rows, drawn with split_seed; empty for all. For a mixture: the training rows of all sources "
        "together."))
    held_out_rows: int = Field(200, ge=1, description=(
        "Rows held out of training to measure the negative log-likelihood per response token (at most a fifth of all rows). "
        "For a mixture: per source."))
    held_out_path: str | None = Field(None, description=(
        "A separate file or Hub data set, in one of the forms above, to use as held-out rows. All of its rows are used, "
        "and training rows that also appear in it are dropped. Empty: hold out held_out_rows of the data."))
    split_seed: Seed = Field(0, description=(
        "Seed for the choice of rows and held-out rows. It is separate from the recipe's seed, so that runs with different "
        "seeds train and are measured on the same rows. Their spread then comes from training alone."))
    decontaminate: bool = Field(True, description="Drop rows that contain a problem of the benchmarks chosen below.")
    reserved_rows: int = Field(0, ge=0, description=(
        "Rows to choose mixing coefficients on (merge.rows: reserved), drawn with split_seed. No model trains on them, and no "
        "reported result is measured on them. At most a fifth of all rows; 0 for none. For a mixture: per source. Plays no "
        "part with reserved_path."))
    reserved_path: str | None = Field(None, description=(
        "A separate file or Hub data set, in one of the forms above, to use as reserved rows. All of its rows are used "
        "except held-out ones, and training rows that also appear in it are dropped. Empty: reserve reserved_rows of the "
        "data."))
    config: str | None = Field(None, description="Configuration (subset) of a Hub data set.")
    revision: str | None = Field(None, description="Revision (branch, tag or commit) of a Hub data set.")
    fields: dict[str, str] = Field({}, description=_FIELDS_HELP)
    loss_on: Literal["last", "all"] = Field("last", description=(
        "Which answers of a conversation the model learns: the last, or all of the assistant's (with data.template chat)."))
    unusable_rows: Literal["stop", "drop"] = Field("stop", description=(
        "How to handle unusable rows, such as rows that the chat template rejects: stop, reporting their number and an "
        "example, or drop them, counted, with examples in refused.json."))
    sources: list[SourceConfig] = Field([], max_length=1000, description=(
        "Sources to mix, instead of path. Each is prepared separately, so changing a weight does not prepare anything again."))
    temperature: float = Field(1.0, ge=1, le=1000, description=(
        "Temperature T of the mixture: a source's share is its weight, or its number of rows, to the power 1/T. 1 keeps the "
        "shares as they are; larger values make them more equal (T5's convention; an exponent of 0.7 is a temperature of "
        "1.43)."))
    replay: float = Field(0.0, ge=0, lt=1, description=(
        "Share of the training rows that come from sources with replay: true (usually 0.05 to 0.2)."))
    leave_out: str | None = Field(None, description=(
        "A domain to measure but not train on. Compare data.leave_out=[null, DOMAIN, ...] to see what each domain "
        "contributes."))

    pictures: str | None = Field(None, description=(
        "For a model that reads pictures: the directory of the files named in a row's field image or images. Empty: the rows "
        "contain their pictures (data:image/png;base64,...)."))

    @property
    def reserves_rows(self) -> bool:
        """Whether there are rows for choosing that are neither trained on nor reported."""
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
                    raise ValueError(f"{name} is {value}, but data.sources is empty: it applies only to a mixture of sources")
            return self
        if self.path != type(self).model_fields["path"].default:
            raise ValueError(f"path ({self.path}) and sources are both given: make the path one of the sources")
        for name in ("held_out_path", "reserved_path", "config", "revision", "fields", "format", "split"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name} is for a single path; with sources, rows are held out and reserved per source, "
                                 "and each source has its own config, split, revision, format and fields")
        main = [source for source in self.sources if not source.replay]
        if not main:
            raise ValueError("every source has replay: true, so there is nothing else to train on")
        if self.replay and len(main) == len(self.sources):
            raise ValueError(f"replay is {self.replay:g}, but no source has replay: true")
        for several in (main, [source for source in self.sources if source.replay]):
            shared = [source for source in several if source.rows is None]
            if len({source.weight is None for source in shared}) > 1:
                raise ValueError("only some sources have a weight: give each source a weight or rows, or none a weight")
        if self.leave_out is not None and self.leave_out not in self.domains:
            raise ValueError(f"leave_out is {self.leave_out!r}, which is not a domain: choose from {', '.join(self.domains)}")
        if not any(self.is_trained_on(place) for place in range(len(self.sources))):
            raise ValueError("no source is left to train on: each has weight 0 or a domain that is left out")
        return self

    @property
    def paths(self) -> list[str]:
        """The paths of all sources, or the single path."""
        return [source.path for source in self.sources] or [self.path]

    @property
    def source_names(self) -> list[str]:
        """A readable name per source: its file name, with as many parent directories as needed to make it unique."""
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
        """The distinct domains of the sources, in source order."""
        return list(dict.fromkeys(self.source_domains))

    def is_trained_on(self, place: int) -> bool:
        """Whether any row of the source at index ``place`` of ``sources`` is trained on."""
        source = self.sources[place]
        if source.weight == 0 or self.source_domains[place] == self.leave_out:
            return False
        return not source.replay or self.replay > 0

    def of_source(self, place: int) -> "DataConfig":
        """The configuration that prepares the source at index ``place`` alone. Its share, its domain and the other sources
        have no influence on it."""
        source = self.sources[place]
        return self._alone(path=source.path, config=source.config, split=source.split, revision=source.revision,
                           format=source.format, fields=source.fields)

    def other(self, path: str) -> "DataConfig":
        """The configuration that turns all rows of another file or Hub data set into text, whatever their form."""
        return self._alone(path=path, format="auto", fields={}, config=None, revision=None, held_out_path=None)

    def _alone(self, **of_rows: Any) -> "DataConfig":
        no_mixture = {"sources": [], "temperature": 1.0, "replay": 0.0, "leave_out": None, "max_rows": None}
        return self.model_copy(update=no_mixture | of_rows)
