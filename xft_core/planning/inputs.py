"""Count the data of a recipe: rows of its files, tokens of a sample, and problems of its benchmarks."""

import gzip
import hashlib
import random
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from xft_core.benchmarks.find import find_benchmark
from xft_core.benchmarks.tasks.folder import problem_file
from xft_core.data.conversation import Message
from xft_core.errors import XftError
from xft_core.files.data_files import find_data_files
from xft_core.planning.stage_plan import DataSize
from xft_core.recipe.sections import DataConfig, Recipe

SAMPLE = 500  # rows that are tokenised
PACKED = 5000  # rows to pack, with sampled lengths: the more rows, the better sequences fill up


def data_size(recipe: Recipe, model: Path) -> DataSize | None:
    """Count the rows of the data, and measure a sample of them with the tokenizer in ``model``, packed and padded as in
    training. None if data is only on the Hub or no row is left. Duplicates are not counted, contaminated rows are."""
    from xft_core.data.mixture import Source, rows_of_sources
    from xft_core.data.packing import pack
    from xft_core.models.loading import load_tokenizer

    data = recipe.data
    configs = [data.of_source(place) for place in range(len(data.sources))] or [data]
    try:
        tokenizer = load_tokenizer(model)
        paths = [find_data_files(config.path, config.split) for config in configs]
    except XftError:
        return None
    sizes = [size for config, files in zip(configs, paths, strict=True) if (size := _source_size(config, files, tokenizer))]
    if len(sizes) < len(configs):
        return None
    numbers = [sizes[0].train_rows]
    if data.sources:
        numbers = rows_of_sources([
            Source(source.path, max(1, size.train_rows), data.is_trained_on(place), source.weight, source.rows, source.replay)
            for place, (source, size) in enumerate(zip(data.sources, sizes, strict=True))],
            data.temperature, data.replay, data.max_rows)
    # For a mixture, each length occurs as often as its source's rows are taken.
    lengths = sizes[0].lengths if not data.sources else random.Random(0).choices(
        [length for size in sizes for length in size.lengths],
        [number / len(size.lengths) for number, size in zip(numbers, sizes, strict=True) for _ in size.lengths], k=SAMPLE)
    train_rows = sum(numbers)
    packed = lengths if train_rows <= len(lengths) else random.Random(0).choices(lengths, k=min(train_rows, PACKED))
    together = recipe.sft.micro_batch_size
    batches = [lengths[start:start + together] for start in range(0, len(lengths), together)]
    return DataSize(
        train_rows, sum(size.held_out for size in sizes), sum(lengths) / len(lengths),
        sequences_per_row=len(pack(packed, max(lengths))) / len(packed),
        padded_row=sum(map(max, batches)) / len(batches))


@dataclass(frozen=True)
class _SourceSize:
    """Rows of one source to train on and to hold out, and the lengths of a sample, in tokens."""

    train_rows: int
    held_out: int
    lengths: list[int]


def _source_size(data: DataConfig, paths: list[Path], tokenizer: Any) -> _SourceSize | None:
    """Measure one source; None if no row is left. Raises DataError for data that cannot be read."""
    from xft_core.data.reading import read_conversations
    from xft_core.data.tokenize import tokenise

    first_places = _first_of_each(read_conversations(data, paths))
    chosen = random.Random(data.split_seed).sample(first_places, min(SAMPLE, len(first_places)))
    wanted = set(chosen)
    sample = {
        place: messages
        for place, messages in enumerate(islice(read_conversations(data, paths), max(chosen, default=-1) + 1))
        if place in wanted}
    rows = [row for row, _ in (tokenise(sample[place], data, tokenizer) for place in chosen) if row]
    if not rows:
        return None
    total = min(len(first_places), data.max_rows or len(first_places))
    held_out = max(1, min(data.held_out_rows, total // 5))
    train_rows = total - held_out - (0 if data.reserved_path else min(data.reserved_rows, total // 5))
    return _SourceSize(train_rows, held_out, [len(row.input_ids) for row in rows])


def _first_of_each(conversations: Iterator[list[Message]]) -> "array[int]":
    """Indexes of the distinct conversations with a response (the first of equal ones). Takes about 100 bytes for each."""
    from xft_core.data.reader import answers

    seen: set[bytes] = set()
    places = array("q")
    for place, messages in enumerate(conversations):
        if answers(messages):
            digest = hashlib.blake2b(repr(messages).encode(errors="surrogatepass"), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                places.append(place)
    return places


def problem_count(recipe: Recipe) -> int | None:
    """Problems of all benchmarks together; None if one of them is not a JSON Lines file on this machine."""
    total = 0
    for name in recipe.evaluate.benchmarks:
        try:
            path = find_benchmark(name)
        except XftError:
            return None
        if path.is_dir():
            path = problem_file(path)
        if not path.name.endswith((".jsonl", ".jsonl.gz")):
            return None
        opened: Callable[..., object] = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8") as stream:  # type: ignore[attr-defined]
            lines = sum(1 for line in islice(stream, recipe.evaluate.max_problems) if line.strip())
        total += lines
    return total
