"""How much data a recipe has: rows of its file and tokens of a sample, problems of its benchmarks."""

import gzip
import hashlib
import random
from array import array
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from xft_core.benchmarks.find import find_benchmark
from xft_core.benchmarks.tasks.folder import problem_file
from xft_core.data.templates import Message
from xft_core.errors import XftError
from xft_core.files.locate import find_file
from xft_core.planning.plan import DataSize
from xft_core.recipe.sections import Recipe

SAMPLE = 500  # rows that are tokenised
PACKED = 5000  # rows of their lengths that are packed: the more, the better sequences fill up


def data_size(recipe: Recipe, model: Path) -> DataSize | None:
    """Rows of the data file, and the lengths of a sample of them with the tokenizer in ``model``, packed and padded as they
    are in training; None for what is only on the Hub, and where no row is left. Duplicates are not counted, contaminated
    rows are."""
    from xft_core.data.packing import pack
    from xft_core.data.reading import read_conversations
    from xft_core.data.tokenize import tokenise
    from xft_core.models.loading import load_tokenizer

    try:
        path, tokenizer = find_file(recipe.data.path), load_tokenizer(model)
    except XftError:
        return None
    first_places = _first_of_each(read_conversations(recipe.data, path))
    chosen = random.Random(recipe.data.split_seed).sample(first_places, min(SAMPLE, len(first_places)))
    wanted = set(chosen)
    sample = {
        place: messages
        for place, messages in enumerate(islice(read_conversations(recipe.data, path), max(chosen, default=-1) + 1))
        if place in wanted}
    rows = [row for row, _ in (tokenise(sample[place], recipe.data, tokenizer) for place in chosen) if row]
    if not rows:
        return None
    total = min(len(first_places), recipe.data.max_rows or len(first_places))
    held_out = max(1, min(recipe.data.held_out_rows, total // 5))
    lengths = [len(row.input_ids) for row in rows]
    train_rows = total - held_out - (0 if recipe.data.reserved_path else min(recipe.data.reserved_rows, total // 5))
    packed = lengths if train_rows <= len(lengths) else random.Random(0).choices(lengths, k=min(train_rows, PACKED))
    size = recipe.sft.micro_batch_size
    batches = [lengths[start:start + size] for start in range(0, len(lengths), size)]
    return DataSize(
        train_rows, held_out, sum(lengths) / len(lengths),
        sequences_per_row=len(pack(packed, max(lengths))) / len(packed),
        padded_row=sum(map(max, batches)) / len(batches))


def _first_of_each(conversations: Iterator[list[Message]]) -> "array[int]":
    """Places of the conversations with a response, of equal ones the first. Memory: some 100 bytes for each."""
    seen: set[bytes] = set()
    places = array("q")
    for place, messages in enumerate(conversations):
        if messages[-1]["content"].strip():
            digest = hashlib.blake2b(repr(messages).encode(errors="surrogatepass"), digest_size=16).digest()
            if digest not in seen:
                seen.add(digest)
                places.append(place)
    return places


def problem_count(recipe: Recipe) -> int | None:
    """Problems of all benchmarks together; None when one of them is not a file of lines here."""
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
