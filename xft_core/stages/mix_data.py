"""The mix_data stage: combine prepared sources into one mixture, with the same files as prepare, and mixture.json.

No row is tokenised: rows are copied from the sources' artifacts. A row that is held out or reserved in one source is not
trained on in another. If several sources have the same row, the first is kept. Held-out rows do not depend on the weights.
"""

import logging
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from xft_core.data.conversations import DIGEST_BYTES, digest_of_line, first_of_each
from xft_core.data.mixture import Source, rows_of_sources, taken
from xft_core.data.pieces import Pieces
from xft_core.data.response_end import load_response_ends
from xft_core.data.row_writing import WrittenRows, write_rows
from xft_core.errors import DataError
from xft_core.stages.configs import MixDataStage
from xft_core.store.manifest import read_manifest
from xft_core.store.results.mix_data import MixtureFile, SourceRows
from xft_core.store.results.prepare import DecontaminationFile, PrepareMetrics, RefusedFile, ResponseEndFile
from xft_core.store.workspace import Workspace

logger = logging.getLogger(__name__)

SPLITS = ("held_out", "reserved", "train")
# Numbers that are counted again for the mixture; the others are sums over the sources.
RECOUNTED = {f"{split}_{what}" for split in SPLITS for what in ("rows", "tokens", "response_tokens")}


def run(config: MixDataStage, workspace: Workspace) -> PrepareMetrics:
    """Run the stage. Raises DataError for sources that give no rows, or that were prepared for another tokenizer."""
    places = sorted(config.prepared, key=int)
    if with_pictures := [place for place in places if [*config.prepared[place].glob("*.pictures.safetensors")]]:
        raise DataError(
            f"Source {with_pictures[0]} of data.sources was prepared for a model that reads pictures; such sources cannot be "
            "mixed. Put all rows into one file, and set data.path to it.")
    prepared = [_Prepared(config.prepared[place]) for place in places]
    clean, dropped = _clean(prepared)
    sources = [
        Source(place, len(rows), said.trained, said.weight, said.rows, said.replay)
        for place, rows, said in zip(places, clean["train"], config.sources, strict=True)]
    numbers = rows_of_sources(sources, config.temperature, config.replay, config.max_rows)
    chosen = clean | {"train": [taken(rows, number) for rows, number in zip(clean["train"], numbers, strict=True)]}
    counts = dict[str, int](dropped)
    for source in prepared:
        for name, value in source.counts.flat().items():
            if name not in RECOUNTED:
                counts[name] = counts.get(name, 0) + value
    random = np.random.default_rng(config.seed)
    orders = {split: _order(chosen[split], random) for split in SPLITS}
    for split, order in orders.items():
        if len(order) or split != "reserved":
            counts |= _write(prepared, split, order, workspace.output)
    used = [min(len(rows), number) for rows, number in zip(clean["train"], numbers, strict=True)]
    counts["not_used"] += sum(map(len, clean["train"])) - sum(used)
    if repeated := sum(numbers) - sum(used):
        counts["repeated_rows"] = repeated
    rows = [
        SourceRows(
            rows_read=source.rows_read, held_out=len(clean["held_out"][place]),
            reserved=len(clean["reserved"][place]), available=len(clean["train"][place]), used=used[place],
            dropped=source.rows_read - sum(len(clean[split][place]) for split in SPLITS),
            taken=numbers[place], taken_tokens=source.num_tokens("train", chosen["train"][place]))
        for place, source in enumerate(prepared)]
    MixtureFile(
        sources=rows, held_out=orders["held_out"][:, 0].tolist(), train=orders["train"][:, 0].tolist()).write(workspace.output)
    _merge_files(prepared, workspace.output)
    _log(rows)
    return PrepareMetrics.from_flat(counts)


class _Prepared:
    """One source's artifact."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if any(directory.glob("*.pictures.safetensors")):
            raise DataError("Rows with pictures cannot be mixed: for a model that reads pictures, set one data.path instead of "
                            "data.sources.")
        self.counts = PrepareMetrics.of(read_manifest(directory))
        self.rows_read = self.counts.rows_read or 0
        self.splits = {split: WrittenRows.read(directory / f"{split}.safetensors") for split in SPLITS
                       if (directory / f"{split}.safetensors").is_file()}
        self.lines = {split: _lines(directory / f"{split}.jsonl") for split in self.splits}

    def digests(self, split: str) -> np.ndarray:
        """Digests of the rows' texts (N,16)."""
        if split not in self.splits:
            return np.zeros((0, DIGEST_BYTES), dtype=np.uint8)
        pieces = self.lines[split]
        found = b"".join(map(digest_of_line, pieces.read(np.arange(len(pieces)))))
        return np.frombuffer(found, dtype=np.uint8).reshape(-1, DIGEST_BYTES)

    def num_tokens(self, split: str, rows: np.ndarray) -> int:
        """Number of tokens in the rows."""
        offsets = self.splits[split].offsets
        return int((offsets[rows + 1] - offsets[rows]).sum())


def _lines(path: Path) -> Pieces:
    """Return the lines of a file."""
    sizes = []
    with path.open("rb") as stream:
        sizes = [len(line) for line in stream]
    lengths = np.array(sizes, dtype=np.int64)
    return Pieces(path, np.cumsum(lengths) - lengths, lengths)


def _clean(prepared: list[_Prepared]) -> tuple[dict[str, list[np.ndarray]], dict[str, int]]:
    """Return the row indices of each split and source, without rows that another source has held out and without duplicates,
    and how many rows were dropped for either reason."""
    seen: set[bytes] = set()
    found: dict[str, list[np.ndarray]] = {}
    of_others = again = 0
    for split in ("held_out", "reserved"):
        found[split] = []
        for source in prepared:
            kept = []
            for index, digest in enumerate(source.digests(split)):
                if (key := digest.tobytes()) not in seen:
                    seen.add(key)
                    kept.append(index)
            of_others += len(source.splits.get(split, ())) - len(kept)
            found[split].append(np.array(kept, dtype=np.int64))
    digests = [source.digests("train") for source in prepared]
    first = np.split(first_of_each(np.concatenate(digests)), np.cumsum([len(item) for item in digests])[:-1])
    found["train"] = []
    for of_source, is_first in zip(digests, first, strict=True):
        is_apart = np.fromiter((item.tobytes() not in seen for item in of_source), dtype=bool, count=len(of_source))
        of_others += int(np.count_nonzero(~is_apart))
        again += int(np.count_nonzero(is_apart & ~is_first))
        found["train"].append(np.flatnonzero(is_apart & is_first))
    return found, {"dropped_held_out": of_others, "dropped_duplicate": again}


def _order(chosen: list[np.ndarray], random: np.random.Generator) -> np.ndarray:
    """Return the rows of all sources in random order (N,2): the source's position and the row's index in it. Some code uses
    only the first rows of a mixture, so these must not all come from one source."""
    rows_N2 = np.concatenate([
        np.stack([np.full(len(rows), place), rows], axis=1) for place, rows in enumerate(chosen)]).astype(np.int64)
    return rows_N2[random.permutation(len(rows_N2))]


def _write(prepared: list[_Prepared], split: str, order_N2: np.ndarray, output: Path) -> dict[str, int]:
    """Write a split. Returns the numbers of rows, tokens and response tokens."""
    lengths, prompts = np.zeros(len(order_N2), dtype=np.int64), np.zeros(len(order_N2), dtype=np.int32)
    for place, source in enumerate(prepared):
        at = np.flatnonzero(order_N2[:, 0] == place)
        if len(at):
            rows = source.splits[split]
            lengths[at] = rows.offsets[order_N2[at, 1] + 1] - rows.offsets[order_N2[at, 1]]
            prompts[at] = rows.prompt_lengths[order_N2[at, 1]]
    given = int(prompts.sum(dtype=np.int64))

    def tokens() -> Iterator[bytes]:
        nonlocal given
        for place, index in order_N2:
            written = prepared[place].splits[split].tokens(index)
            given += int(np.count_nonzero(np.frombuffer(written, dtype=np.int32) < 0))
            yield written

    write_rows(output / f"{split}.safetensors", tokens(), lengths, prompts)
    with (output / f"{split}.jsonl").open("wb") as stream:
        readers = [source.lines[split].read(order_N2[order_N2[:, 0] == place, 1]) if split in source.lines else iter(())
                   for place, source in enumerate(prepared)]
        stream.writelines(next(readers[place]) for place in order_N2[:, 0])
    number = int(lengths.sum())
    return {f"{split}_rows": len(order_N2), f"{split}_tokens": number, f"{split}_response_tokens": number - given}


def _merge_files(prepared: list[_Prepared], output: Path) -> None:
    ends: dict[int, str] = {}
    decontamination, refused = [], []
    for source in prepared:
        end = ResponseEndFile.read(source.directory)
        if load_response_ends(source.directory) is None or end is None:
            raise DataError(f"{str(source.directory)!r} does not record which tokens end a response. Prepare the data again.")
        ends |= dict(zip(end.token_ids, end.tokens, strict=True))
        if found := DecontaminationFile.read(source.directory):
            decontamination.append(found)
        if examples := RefusedFile.read(source.directory):
            refused += examples.rows
    ResponseEndFile(token_ids=sorted(ends), tokens=[ends[token] for token in sorted(ends)]).write(output)
    DecontaminationFile(
        benchmarks=list(dict.fromkeys(name for item in decontamination for name in item.benchmarks)),
        rows_checked=sum(item.rows_checked for item in decontamination),
        dropped=[row for item in decontamination for row in item.dropped]).write(output)
    if refused:
        RefusedFile(rows=refused).write(output)


def _log(rows: list[SourceRows]) -> None:
    for place, source in enumerate(rows):
        again = f", {source.taken / source.used:.1f} times each" if source.taken > source.used else ""
        logger.info("mix_data: source %d gives %d training rows of %d%s, and %d held out",
                    place, source.taken, source.available, again, source.held_out)
    assert math.fsum(source.taken for source in rows) > 0
