"""The prepare stage: instruction data to token sequences for training and for the held-out loss.

Leaves train.safetensors and held_out.safetensors (see rows.py), the same as text for people (train.jsonl,
held_out.jsonl), response_end.json (what ends a response), and decontamination.json: what was dropped because a benchmark
has it, and why.

Two passes over the data: the first sorts out which rows are used, the second tokenises those. Rows wait on disk in
between, so that memory holds some 60 bytes for each, whatever their length.
"""

import json
import logging
import random
import shutil
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from xft_core.data.formats import read_conversations
from xft_core.data.response_end import response_ends, save_response_ends
from xft_core.data.rows import Row, RowsWriter, copy_bytes
from xft_core.data.spool import Spool
from xft_core.data.templates import Message
from xft_core.data.tokenize import NOTED, made_rows
from xft_core.errors import DataError
from xft_core.models.loading import load_tokenizer
from xft_core.recipe.labels import path_labels
from xft_core.recipe.sections import DataConfig
from xft_core.stages.configs import PrepareStage
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)




def run(config: PrepareStage, workspace: Workspace) -> dict[str, Any]:
    """The stage. Metrics: rows read, dropped (by reason), not used, in each split, and their tokens; what is in NOTED.

    Rows read = dropped + not used + to train on + held out (held-out rows that come from a file of their own are not
    counted among those read). Raises DataError for data that cannot be used, or of which nothing is left.
    """
    directory = workspace.checkpoints / "prepare"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    try:
        return _Preparation(config, workspace.output, directory).run()
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Preparation:
    def __init__(self, config: PrepareStage, output: Path, directory: Path) -> None:
        self.data, self.output, self.directory = config.data, output, directory
        self.inputs = config.inputs()
        self.counts: dict[str, int] = {"rows_read": 0}
        self.benchmarks = [path for name, path in self.inputs.items() if name.startswith("benchmark_")]
        self.dropped: list[dict[str, Any]] = []
        self.checked = 0
        self.last_tokens: set[int] = set()  # of responses that were not cut

    def run(self) -> dict[str, Any]:
        data, counts = self.data, self.counts
        spool, clean = self._read(data, self.inputs.get("data"), "")
        held_spool, held_clean = None, array("q")
        if data.held_out_path is not None:
            own = data.model_copy(update={"path": data.held_out_path})
            held_spool, held_clean = self._read(own, self.inputs.get("held_out"), "held_out_")
            equal = spool.is_in(held_spool)
            kept = array("q", [index for index in clean if not equal[index]])
            counts["dropped_held_out"] = len(clean) - len(kept)
            clean = kept
        self._report_contamination()
        random.Random(data.split_seed).shuffle(clean)
        used = clean[:data.max_rows]
        tokenizer = load_tokenizer(self.inputs["tokenizer"])
        writer = _SplitWriter(self.directory / "rows")
        notes = dict.fromkeys(NOTED, 0)
        counts["dropped_no_room"] = self._tokenise(spool, used, tokenizer, writer, notes)
        fitting = len(writer)
        if fitting < (2 if held_spool is None else 1):
            needed = ("at least 2 are needed, one to train on and one to hold out" if held_spool is None
                      else "at least 1 is needed")
            raise DataError(
                f"Of {counts['rows_read']} rows of {data.path!r}, {fitting} are left; {needed}. Dropped: {counts}.")
        counts["not_used"] = len(clean) - len(used)
        if held_spool is None:
            num_held_out = max(1, min(data.held_out_rows, fitting // 5))
            splits = {"held_out": (writer, 0, num_held_out), "train": (writer, num_held_out, fitting)}
        else:
            held = _SplitWriter(self.directory / "held_out_rows")
            counts["held_out_dropped_no_room"] = self._tokenise(held_spool, held_clean, tokenizer, held, notes)
            if not len(held):
                raise DataError(f"Of the rows of {data.held_out_path!r} (data.held_out_path) none is left to measure on.")
            splits = {"held_out": (held, 0, len(held)), "train": (writer, 0, fitting)}
        self._save_ends(tokenizer)
        counts |= {name: count for name, count in notes.items() if count or name == "truncated"}
        for name, (source, start, end) in splits.items():
            counts |= {f"{name}_{what}": count for what, count in source.save(self.output, name, start, end).items()}
        self._log()
        return counts

    def _read(self, data: DataConfig, path: Path | None, prefix: str) -> tuple[Spool, "array[int]"]:
        """The conversations of the data, and which of them are neither empty, nor again, nor contaminated."""
        from xft_core.benchmarks.decontaminate import Contamination

        contamination = Contamination(self.benchmarks) if self.benchmarks else None
        spool, found, read = Spool(self.directory / f"{prefix}conversations"), {}, 0
        for read, conversation in enumerate(read_conversations(data, path), start=1):  # noqa: B007
            if not conversation[-1]["content"].strip():
                continue
            if contamination and (overlap := contamination.find([message["content"] for message in conversation])):
                found[len(spool)] = overlap
            spool.append(conversation)
        if not read:
            raise DataError(f"The data {data.path!r} holds no rows.")
        first = spool.first_of_each()
        contaminated = [index for index in found if first[index]]
        self.dropped += [
            asdict(found[index]) | {"row": [message["content"] for message in spool.conversation(index)]}
            for index in contaminated]
        num_first = int(first.sum())
        self.checked += num_first
        self.counts |= {
            f"{prefix}rows_read": read, f"{prefix}dropped_empty_response": read - len(spool),
            f"{prefix}dropped_duplicate": len(spool) - num_first, f"{prefix}dropped_contaminated": len(contaminated)}
        first[contaminated] = False
        return spool, array("q", np.flatnonzero(first).astype(np.int64).tobytes())

    def _tokenise(
        self, spool: Spool, indices: "array[int]", tokenizer: PreTrainedTokenizerBase, writer: "_SplitWriter",
        notes: dict[str, int],
    ) -> int:
        """Write the rows of these conversations and count what is noted of them; returns how many have no room."""
        lines: deque[bytes] = deque()  # of the rows that are being tokenised

        def read() -> Iterator[list[Message]]:
            for index in indices:
                lines.append(spool.line(index))
                yield json.loads(lines[-1].decode())["messages"]

        no_room = 0
        for row, noted in made_rows(read(), self.data, tokenizer):
            line = lines.popleft()
            if row is None:
                no_room += 1
                continue
            writer.append(row, line)
            if "truncated" not in noted:
                self.last_tokens.add(row.input_ids[-1])
            for name in noted:
                notes[name] += 1
        spool.close()
        return no_room

    def _save_ends(self, tokenizer: PreTrainedTokenizerBase) -> None:
        save_response_ends(self.output, response_ends(self.last_tokens, tokenizer), tokenizer)
        if not self.last_tokens:
            logger.warning(
                "prepare: every response is cut off at data.max_length (%d): a model that is tuned on them does not learn to "
                "stop", self.data.max_length)

    def _report_contamination(self) -> None:
        (self.output / "decontamination.json").write_text(json.dumps({
            "benchmarks": path_labels([str(path) for path in self.benchmarks]), "rows_checked": self.checked,
            "dropped": self.dropped,
        }, indent=1, ensure_ascii=False), encoding="utf-8")

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


class _SplitWriter:
    """Rows and their lines, in order, on disk until it is known which of them are held out."""

    def __init__(self, path: Path) -> None:
        self._rows = RowsWriter(path.with_suffix(".tokens"))
        self._path = path.with_suffix(".lines")
        self._stream = self._path.open("wb")
        self._places = array("q", [0])

    def __len__(self) -> int:
        return len(self._places) - 1

    def append(self, row: Row, line: bytes) -> None:
        self._rows.append(row)
        self._stream.write(line)
        self._places.append(self._places[-1] + len(line))

    def save(self, output: Path, name: str, start: int, end: int) -> dict[str, int]:
        """Write rows ``start`` to ``end`` as split ``name``; returns its rows, tokens and response tokens."""
        self._rows.save(output / f"{name}.safetensors", start, end)
        self._stream.flush()
        with self._path.open("rb") as source, (output / f"{name}.jsonl").open("wb") as target:
            source.seek(self._places[start])
            copy_bytes(source, target, self._places[end] - self._places[start])
        tokens = sum(self._rows.lengths[start:end])
        return {"rows": end - start, "tokens": tokens,
                "response_tokens": tokens - sum(self._rows.prompt_lengths[start:end])}








