"""The prepare stage: turn instruction data into token sequences for training and for the held-out loss.

Writes train.safetensors and held_out.safetensors (see rows.py); on request reserved.safetensors (rows that no model trains on,
for choosing mixing coefficients); the same rows as readable text (train.jsonl, held_out.jsonl); response_end.json (the tokens
that end a response); and decontamination.json (the rows dropped because a benchmark contains them, and why).

The data are read and tokenised in one pass (see data/reading.py). The results stay on disk until the rows to use and their
order are known.
"""

import logging
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from xft_core.data.conversations import Conversations
from xft_core.data.pieces import READ_AT_ONCE
from xft_core.data.reading import conversations_of, sequences_of
from xft_core.data.response_end import response_ends, save_response_ends
from xft_core.data.row_writing import write_rows
from xft_core.data.tokenize import BITS, FAILED, NOTED
from xft_core.errors import DataError
from xft_core.files.data_files import files_of
from xft_core.models.tokenizer import load_tokenizer
from xft_core.models.tokenizer_files import reads_pictures
from xft_core.recipe.labels import path_labels
from xft_core.recipe.sections import DataConfig
from xft_core.stages.configs import PrepareStage
from xft_core.store.results.prepare import DecontaminationFile, DroppedRow, PrepareMetrics, RefusedFile
from xft_core.store.workspace import Workspace

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


def run(config: PrepareStage, workspace: Workspace) -> PrepareMetrics:
    """Run the stage.

    Rows read = dropped + not used + to train on + reserved + held out (held-out rows from a separate file are not counted as
    read). Raises DataError for data that cannot be used, or of which nothing is left.
    """
    if reads_pictures(config.inputs()["tokenizer"]):
        from xft_core.stages.prepare_pictures import prepare_pictures  # this import needs torch

        return prepare_pictures(config, workspace)
    directory = workspace.checkpoints / "prepare"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        metrics = PrepareMetrics.from_flat(_Preparation(config, workspace.output, directory).run())
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    assert not metrics.others, f"PrepareMetrics has no fields for {sorted(metrics.others)}"
    return metrics


class _Preparation:
    def __init__(self, config: PrepareStage, output: Path, directory: Path) -> None:
        self.data, self.output, self.directory = config.data, output, directory
        self.inputs = config.inputs()
        self.counts: dict[str, int] = {"rows_read": 0}
        self.benchmarks = [path for name, path in self.inputs.items() if name.startswith("benchmark_")]
        self.dropped: list[DroppedRow] = []
        self.refused: list[str] = []
        self.checked = 0

    def run(self) -> dict[str, int]:
        data, counts = self.data, self.counts
        tokenizer = load_tokenizer(self.inputs["tokenizer"])
        read, clean = self._read(data, files_of(self.inputs, "data"), "", tokenizer)
        held_out = None
        if data.held_out_path is not None:
            own = data.model_copy(update={"path": data.held_out_path, "max_rows": None})
            held_out, held_clean = self._read(own, files_of(self.inputs, "held_out"), "held_out_", tokenizer)
            kept = clean[~read.is_in(held_out, clean)]
            counts["dropped_held_out"] = len(clean) - len(kept)
            clean = kept
        reserved = None
        if data.reserved_path is not None:
            own = data.model_copy(update={"path": data.reserved_path, "max_rows": None})
            reserved, reserved_clean = self._read(own, files_of(self.inputs, "reserved"), "reserved_", tokenizer)
            kept = clean[~read.is_in(reserved, clean)]
            counts["dropped_reserved"] = len(clean) - len(kept)
            clean = kept
            if held_out is not None:
                kept = reserved_clean[~reserved.is_in(held_out, reserved_clean)]
                counts["reserved_dropped_held_out"] = len(reserved_clean) - len(kept)
                reserved_clean = kept
        self._report_contamination()
        random.Random(data.split_seed).shuffle(memoryview(clean))  # type: ignore[arg-type]  # it can be indexed
        used = clean[:data.max_rows]
        rows = _Rows(read, used, data, tokenizer, self.directory / "data")
        counts["dropped_no_room"] = rows.no_room
        self._note_unusable("", read)
        if len(rows) < (2 if held_out is None else 1):
            needed = ("at least 2 are needed, one to train on and one to hold out" if held_out is None
                      else "at least 1 is needed")
            example = f" For example: {read.unusable.examples[0]}" if read.unusable.examples else ""
            raise DataError(
                f"Of {counts['rows_read']} rows of {data.path!r}, {len(rows)} are left; {needed}. Dropped: {counts}.{example}")
        counts["not_used"] = len(clean) - len(used)
        if held_out is None:
            num_held_out = max(1, min(data.held_out_rows, len(rows) // 5))
            _tell_of_fewer("held out", "held_out_rows", data.held_out_rows, num_held_out)
            splits = {"held_out": (rows, slice(0, num_held_out)), "train": (rows, slice(num_held_out, None))}
        else:
            held = _Rows(held_out, held_clean, data, tokenizer, self.directory / "held_out_data")
            counts["held_out_dropped_no_room"] = held.no_room
            self._note_unusable("held_out_", held_out)
            if not len(held):
                raise DataError(f"No row of {data.held_out_path!r} (data.held_out_path) is left to measure on.")
            splits = {"held_out": (held, slice(None)), "train": (rows, slice(None))}
        if reserved is not None:
            apart = _Rows(reserved, reserved_clean, data, tokenizer, self.directory / "reserved_data")
            counts["reserved_dropped_no_room"] = apart.no_room
            self._note_unusable("reserved_", reserved)
            if not len(apart):
                raise DataError(f"No row of {data.reserved_path!r} (data.reserved_path) is left to choose on.")
            splits |= {"reserved": (apart, slice(None))}
        elif data.reserved_rows:
            splits |= _reserved(rows, splits["train"][1].start or 0, data)
        notes = np.concatenate([source.notes(part) for source, part in splits.values()])
        for name, bit in BITS.items():
            count = int(np.count_nonzero(notes & bit))
            if count or name == "truncated":
                counts[name] = count
        last_tokens: set[int] = set()  # of responses that were not truncated
        for name, (source, part) in splits.items():
            counts |= {f"{name}_{what}": count for what, count in source.save(self.output, name, part, last_tokens).items()}
        self._save_ends(tokenizer, last_tokens)
        if self.refused:
            RefusedFile(rows=self.refused).write(self.output)
        self._log()
        return counts

    def _note_unusable(self, prefix: str, read: Conversations) -> None:
        if read.unusable.count:
            self.counts[f"{prefix}dropped_unusable"] = read.unusable.count
            self.refused += read.unusable.examples
            logger.warning("prepare: %d rows cannot be used and were dropped. For example: %s",
                           read.unusable.count, read.unusable.examples[0])

    def _read(
        self, data: DataConfig, path: list[Path] | None, prefix: str, tokenizer: "PreTrainedTokenizerBase",
    ) -> tuple[Conversations, np.ndarray]:
        """Return the conversations of the data, and which of them are neither duplicates nor contaminated."""
        from xft_core.benchmarks.decontaminate import Contamination

        finder = Contamination(self.benchmarks) if self.benchmarks else None
        directory = self.directory / f"{prefix}data"
        directory.mkdir()
        read = conversations_of(data, path, directory, tokenizer, finder)
        if not read.rows:
            raise DataError(f"The data {data.path!r} holds no rows.")
        first = read.first_of_each()
        contaminated = [index for index in read.found if first[index]]
        rows = read.at(np.array(contaminated, dtype=np.int64))
        self.dropped += [
            DroppedRow(**read.found[index], row=[message["content"] for message in messages])
            for index, messages in zip(contaminated, rows, strict=True)]
        num_first = int(first.sum())
        self.checked += num_first
        self.counts |= {
            f"{prefix}rows_read": read.rows, f"{prefix}dropped_empty_response": read.rows - len(read) - read.unusable.count,
            f"{prefix}dropped_duplicate": len(read) - num_first, f"{prefix}dropped_contaminated": len(contaminated)}
        first[contaminated] = False
        return read, np.flatnonzero(first)

    def _save_ends(self, tokenizer: "PreTrainedTokenizerBase", last_tokens: set[int]) -> None:
        save_response_ends(self.output, response_ends(last_tokens, tokenizer), tokenizer)
        if not last_tokens:
            logger.warning(
                "prepare: every response is cut off at data.max_length (%d): a model tuned on this data does not learn to stop",
                self.data.max_length)

    def _report_contamination(self) -> None:
        DecontaminationFile(
            benchmarks=path_labels([str(path) for path in self.benchmarks]), rows_checked=self.checked, dropped=self.dropped,
        ).write(self.output)

    def _log(self) -> None:
        counts = self.counts
        dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
        logger.info(
            "prepare: %d rows read, %d dropped, %d not used (data.max_rows), %d to train on (%d tokens), %d held out, %d "
            "truncated", counts["rows_read"], dropped, counts["not_used"], counts["train_rows"], counts["train_tokens"],
            counts["held_out_rows"], counts["truncated"])
        for name, sentence in NOTED.items():
            if name != "truncated" and counts.get(name):
                level = logging.INFO if name == "control_token_text" else logging.WARNING
                logger.log(level, "prepare: %d %s", counts[name], sentence)


def _reserved(rows: "_Rows", start: int, data: DataConfig) -> "dict[str, tuple[_Rows, slice]]":
    """Split the rows from ``start`` on into those that no model trains on and those to train on."""
    number = min(data.reserved_rows, len(rows) // 5)
    if not number:
        raise DataError(
            f"data.reserved_rows is {data.reserved_rows}, but only {len(rows)} rows of {data.path!r} are left, and at most a "
            "fifth of them are reserved: use more data, or set data.reserved_rows to 0.")
    _tell_of_fewer("reserved", "reserved_rows", data.reserved_rows, number)
    return {"reserved": (rows, slice(start, start + number)), "train": (rows, slice(start + number, None))}


def _tell_of_fewer(what: str, field: str, asked: int, number: int) -> None:
    if number < asked:
        logger.warning("prepare: %d rows are %s, not %d (data.%s): at most a fifth of the rows are", number, what, asked, field)


class _Rows:
    """The conversations that can be rows, in order: their tokens and their text."""

    def __init__(
        self, read: Conversations, indices: np.ndarray, data: DataConfig, tokenizer: "PreTrainedTokenizerBase", directory: Path,
    ) -> None:
        self._lines = read.lines
        self._sequences, places = sequences_of(read, indices, data, tokenizer, directory)
        fitting = np.flatnonzero(self._sequences.lengths(places))
        self._all_learned = data.loss_on == "all"
        left_out = len(indices) - len(fitting)
        self.no_room = left_out - int(np.count_nonzero(self._sequences.notes[places] == FAILED))
        self._in_lines, self._in_sequences = (
            (indices[fitting], places[fitting]) if left_out else (indices, places))  # a copy costs memory for each row

    def __len__(self) -> int:
        return len(self._in_lines)

    def notes(self, part: slice) -> np.ndarray:
        """Notes on a part of the rows."""
        return np.asarray(self._sequences.notes[self._in_sequences[part]])

    def save(self, output: Path, name: str, part: slice, last_tokens: set[int]) -> dict[str, int]:
        """Write a part of the rows as split ``name``. Returns the numbers of rows, tokens and response tokens. Adds the last
        token of every response that was not truncated to ``last_tokens``."""
        sequences, places = self._sequences, self._in_sequences[part]
        for start in range(0, len(places), READ_AT_ONCE):
            some = places[start:start + READ_AT_ONCE]
            last_tokens |= set(sequences.last_tokens(some[sequences.notes[some] & BITS["truncated"] == 0]).tolist())
        lengths, prompt_lengths = sequences.lengths(places), sequences.prompt_lengths[places]
        given = int(prompt_lengths.sum(dtype=np.int64))

        def written() -> Iterator[bytes]:
            nonlocal given
            for tokens in sequences.pieces.read(places):
                if self._all_learned:
                    given += int(np.count_nonzero(np.frombuffer(tokens, dtype=np.int32) < 0))
                yield tokens

        write_rows(output / f"{name}.safetensors", written(), lengths, prompt_lengths)
        with (output / f"{name}.jsonl").open("wb") as stream:
            stream.writelines(self._lines.read(self._in_lines[part]))
        number = int(lengths.sum())
        return {
            "rows": len(places), "tokens": number, "response_tokens": number - given}
