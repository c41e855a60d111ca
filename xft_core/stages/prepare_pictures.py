"""The prepare stage for a model that reads pictures: rows go through the model's own processor.

Writes the same files as prepare.py and, for each split, <split>.pictures.safetensors (data/pictures.py). A row is dropped if a
benchmark has its picture and question. Rows are processed one by one: a picture takes far longer than its text.
"""

import json
import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xft_core.data.picture_rows import PictureAsker, PictureRow, load_processor, picture_row
from xft_core.data.pictures import save_pictures
from xft_core.data.portions import BLANK
from xft_core.data.response_end import response_ends, save_response_ends
from xft_core.data.row_writing import Row
from xft_core.data.rows import save_rows
from xft_core.data.sources import portions
from xft_core.errors import DataError
from xft_core.files.data_files import files_of
from xft_core.files.jsonl import read_jsonl
from xft_core.recipe.labels import path_labels
from xft_core.stages.configs import PrepareStage
from xft_core.store.results.prepare import DecontaminationFile, DroppedRow, PrepareMetrics
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)

Key = tuple[str, tuple[str, ...]]  # question, and digests of the pictures


def prepare_pictures(config: PrepareStage, workspace: Workspace) -> PrepareMetrics:
    """Run the stage for such a model.

    Rows read = dropped + not used + to train on + reserved + held out (rows of a separate held-out file are not counted).
    Raises DataError for data that cannot be used, or of which nothing is left."""
    return _Preparation(config, workspace.output).run()


class _Preparation:
    def __init__(self, config: PrepareStage, output: Path) -> None:
        self.data, self.output, self.inputs = config.data, output, config.inputs()
        if self.data.loss_on == "all" or self.data.unusable_rows == "drop":
            raise DataError("data.loss_on: all and data.unusable_rows: drop are not available for models that read pictures: "
                            "each row has one answer, and an unusable row stops the stage. Leave these settings out.")
        self.asker = PictureAsker(load_processor(self.inputs["tokenizer"]), config.data.template)
        self.benchmarks = [path for name, path in self.inputs.items() if name.startswith("benchmark_")]
        self.counts: dict[str, int] = dict.fromkeys((
            "rows_read", "dropped_empty_response", "dropped_duplicate", "dropped_contaminated", "dropped_no_room",
            "truncated"), 0)
        self.dropped: list[DroppedRow] = []
        self.last_tokens: set[int] = set()

    def run(self) -> PrepareMetrics:
        data, counts = self.data, self.counts
        rows = self._clean(self._read("data"))
        named = {"held_out": data.held_out_path, "reserved": data.reserved_path}
        apart = {split: self._read(split) for split, path in named.items() if path is not None}
        for split, others in apart.items():
            keys = {key_of(row) for row in others}
            kept = [row for row in rows if key_of(row) not in keys]
            counts[f"dropped_{split}"], rows = len(rows) - len(kept), kept
        random.Random(data.split_seed).shuffle(rows)
        counts["not_used"] = max(0, len(rows) - (data.max_rows or len(rows)))
        rows = rows[:data.max_rows]
        splits = dict(apart)
        for split, wanted in (("held_out", data.held_out_rows), ("reserved", data.reserved_rows)):
            if split not in splits and wanted:
                number = max(1, min(wanted, len(rows) // 5))
                splits[split], rows = rows[:number], rows[number:]
        splits["train"] = rows
        for split, chosen in splits.items():
            self._save(split, chosen)
        DecontaminationFile(
            benchmarks=path_labels([str(path) for path in self.benchmarks]), rows_checked=counts["rows_read"],
            dropped=self.dropped).write(self.output)
        save_response_ends(self.output, response_ends(self.last_tokens, self.asker.tokenizer), self.asker.tokenizer)
        logger.info("prepare: %d rows read, %d to train on, %d held out", counts["rows_read"], counts["train_rows"],
                    counts["held_out_rows"])
        metrics = PrepareMetrics.from_flat(counts)
        assert not metrics.others, f"PrepareMetrics has no fields for {sorted(metrics.others)}"
        return metrics

    def _read(self, source: str) -> list[PictureRow]:
        """Return the rows of one file, in order. Raises DataError, with its location, for a row that cannot be used."""
        names = {"data": self.data.path, "held_out": self.data.held_out_path, "reserved": self.data.reserved_path}
        own = self.data.model_copy(update={"path": names[source]})
        found, last = [], 0
        for portion in portions(own, files_of(self.inputs, source))[1]():
            for number, row in portion.rows(last):
                last = number
                if row is BLANK:
                    continue
                if isinstance(row, DataError):
                    raise row
                try:
                    found.append(replace(picture_row(row, self.inputs.get("pictures")), place=portion.place(number)))
                except DataError as error:
                    raise DataError(f"{portion.place(number)}: {error}") from None
        return found

    def _clean(self, rows: list[PictureRow]) -> list[PictureRow]:
        """Return the rows with an answer, without duplicates and without rows whose pictures and question a benchmark has."""
        problems, kept, seen = self._problems(), [], set[tuple[Key, str]]()
        for row in rows:
            key = key_of(row)
            if not row.answer.strip():
                self.counts["dropped_empty_response"] += 1
            elif (key, row.answer) in seen:
                self.counts["dropped_duplicate"] += 1
            elif key in problems:
                task_id, benchmark = problems[key]
                self.counts["dropped_contaminated"] += 1
                self.dropped.append(DroppedRow(
                    task_id=task_id, benchmark=benchmark, kind="substring", excerpt=row.question,
                    row=[row.question, row.answer]))
            else:
                kept.append(row)
            seen.add((key, row.answer))
        self.counts["rows_read"] = len(rows)
        return kept

    def _problems(self) -> dict[Key, tuple[str, str]]:
        """Return the task ID and benchmark name of every benchmark problem about pictures."""
        found: dict[Key, tuple[str, str]] = {}
        for path, label in zip(self.benchmarks, path_labels([str(path) for path in self.benchmarks]), strict=True):
            for _, row in read_jsonl(path):
                if isinstance(row, dict) and {"image", "images"} & row.keys() and isinstance(row.get("question"), str):
                    problem = picture_row({"answer": "", **row}, self.inputs.get("pictures"))
                    found[key_of(problem)] = str(row.get("task_id")), label
        return found

    def _save(self, split: str, rows: Sequence[PictureRow]) -> None:
        sets: dict[tuple[str, ...], int] = {}
        made: list[Row] = []
        tensors: list[dict[str, Any]] = []
        set_of_row: list[int] = []
        with (self.output / f"{split}.jsonl").open("w", encoding="utf-8") as stream:
            for row in rows:
                try:
                    asked = self.asker.ask(row.question, row.pictures)
                    answer = self.asker.answered(row.question, row.answer, len(row.pictures))
                except DataError as error:
                    raise DataError(f"{row.place}: {error}") from None
                room = self.data.max_length - len(asked.input_ids)
                if room <= 0:
                    self.counts["dropped_no_room"] += 1
                    continue
                self.counts["truncated"] += int(len(answer) > room)
                if len(answer) <= room:
                    self.last_tokens.add(answer[-1])
                made.append(Row([*asked.input_ids, *answer[:room]], len(asked.input_ids)))
                # Some tensors describe tokens of the row, so only rows of the same prompt length can share a set.
                key = (str(len(asked.input_ids)), *row.digests)
                if key not in sets:
                    sets[key] = len(tensors)
                    tensors.append(asked.tensors)
                set_of_row.append(sets[key])
                text = {"pictures": list(row.digests), "question": row.question, "answer": row.answer}
                stream.write(json.dumps(text, ensure_ascii=False) + "\n")
        if not made:
            raise DataError(f"None of the {self.counts['rows_read']} rows of {self.data.path!r} is left for the split {split}. "
                            f"Dropped: {self.counts}.")
        save_rows(self.output / f"{split}.safetensors", made)
        save_pictures(self.output / f"{split}.pictures.safetensors", tensors, set_of_row)
        self.counts |= {
            f"{split}_rows": len(made), f"{split}_tokens": sum(len(row.input_ids) for row in made),
            f"{split}_response_tokens": sum(len(row.input_ids) - row.prompt_length for row in made)}


def key_of(row: PictureRow) -> Key:
    """Return the key that is equal for the same question about the same pictures."""
    return " ".join(row.question.split()), row.digests
