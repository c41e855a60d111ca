"""Files and data sets of instruction data, in portions."""

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from xft_core.data.formats import FORM_FIELDS
from xft_core.errors import DataError
from xft_core.files.locate import ask_for_data_set, hub_error
from xft_core.files.parsing import parse_json
from xft_core.recipe.sections import DataConfig

PORTION = 2**18  # bytes of a file in a portion, more where a row is longer
PORTION_ROWS = 1024
BLANK = object()  # in place of a row: a line without any
BLOCK, LARGEST_BLOCK = 2**20, 2**28  # characters that are read at once
_SPACE = re.compile(r"[ \t\n\r]*")
_LINE = re.compile(rb"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")
# First bytes of files that are not read, what such a file is, and what to do.
OTHER_FILES = {
    b"\x1f\x8b": ("compressed by gzip", "Unpack it with gunzip."),
    b"\x28\xb5\x2f\xfd": ("compressed by Zstandard", "Unpack it with unzstd."),
    b"BZh": ("compressed by bzip2", "Unpack it with bunzip2."),
    b"\xfd7zXZ\x00": ("compressed by xz", "Unpack it with unxz."),
    b"PK\x03\x04": ("a ZIP archive (or a spreadsheet)", "Unpack it, or export it as JSON lines."),
    b"PAR1": ("Parquet under another name", "Give it a name that ends in .parquet."),
    b"ARROW1": ("an Arrow file", "Write it as Parquet with pyarrow.parquet.write_table."),
    b"SQLite format 3": ("an SQLite database", "Export the rows as JSON lines."),
    b"<!DOCTYPE": ("a web page (HTML)", "Download the file itself, not the page that shows it."),
    b"<html": ("a web page (HTML)", "Download the file itself, not the page that shows it."),
    b"version https://git-lfs": ("a pointer of Git LFS in place of a file", "Fetch the file with git lfs pull."),
    b"\xff\xfe": ("text in UTF-16 or UTF-32 and not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8."),
    b"\xfe\xff": ("text in UTF-16 and not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8."),
}


class Portion(Protocol):
    """Some rows of the data, one after the other.

    ``size``: its part of what ``portions`` calls all. ``count``: about how many rows it has.
    """

    @property
    def size(self) -> int: ...

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        """Every row (or BLANK) with its number, from ``before`` + 1 on. Raises DataError, with the place."""

    def place(self, number: int) -> str:
        """The row of that number, for people."""

    def count(self) -> int: ...


def portions(config: DataConfig, path: Path | None) -> tuple[int, Iterator[Portion]]:
    """The data file ``path`` (or the Hub data set when None) in portions, and the size of all of them together, roughly.
    Raises DataError for what cannot be read."""
    if path is None:
        return _hub_portions(config.path, config.split)
    if path.suffix == ".parquet":
        return _parquet_portions(path)
    _refuse_other_formats(path)
    try:
        size = path.stat().st_size
        is_array = _begins_an_array(path)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    return size, _array_portions(path) if is_array else _line_portions(path)


@dataclass(frozen=True)
class Lines:
    """Bytes ``start`` to ``end`` of a file of JSON lines."""

    path: Path
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        number, place = before, self.start
        with _readable(self.path), self.path.open("rb") as stream:
            stream.seek(place)
            while place < self.end and (read := stream.readline()):
                content = read.removeprefix(codecs.BOM_UTF8) if place == 0 else read
                place += len(read)
                for line in _LINE.findall(content) if b"\r" in content else (content,):
                    number += 1
                    text = line.decode()
                    if not text.strip():
                        yield number, BLANK
                        continue
                    try:
                        row = parse_json(text)
                    except json.JSONDecodeError as error:
                        raise DataError(f"{self.place(number)}: not JSON: {error.msg}.") from None
                    except ValueError as error:
                        raise DataError(f"{self.place(number)}: {error}.") from None
                    yield number, row

    def place(self, number: int) -> str:
        return f"{str(self.path)!r}, line {number}"

    def count(self) -> int:
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            return max(1, stream.read(min(self.size, PORTION)).count(b"\n"))


@dataclass(frozen=True)
class Items:
    """Rows that are in memory. ``name``: of their file or data set. ``table``: they are a batch of Arrow's."""

    name: str
    content: Any
    size: int
    table: bool = False

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        yield from enumerate(self.content.to_pylist() if self.table else self.content, start=before + 1)

    def place(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def count(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class ParquetItems(Items):
    """Rows of a Parquet file."""

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        with _is_parquet(self.name):
            rows = list(super().rows(before))
        yield from rows


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text (byte {_bad_byte(path, error)}).") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def _begins_an_array(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(BLOCK).removeprefix(codecs.BOM_UTF8).decode(errors="replace").lstrip()
        while not head and (block := stream.read(BLOCK)):
            head = block.decode(errors="replace").lstrip()
    return head[:1] == "["


def _line_portions(path: Path) -> Iterator[Portion]:
    start = 0
    with _readable(path), path.open("rb") as stream:
        while True:
            stream.seek(start + PORTION - 1)
            while (block := stream.readline(BLOCK)) and not block.endswith(b"\n"):
                pass
            end = stream.tell()
            if not block:
                break
            yield Lines(path, start, end)
            start = end
        size = path.stat().st_size
    if start < size:
        yield Lines(path, start, size)


def _array_portions(path: Path) -> Iterator[Portion]:
    rows: list[Any] = []
    size, failure = 0, None
    found = _array_rows(path)
    while True:
        try:
            row, length = next(found)
        except StopIteration:
            break
        except DataError as error:
            failure = error
            break
        rows.append(row)
        size += length
        if len(rows) == PORTION_ROWS or size >= PORTION:
            yield Items(repr(str(path)), rows, size)
            rows, size = [], 0
    if rows:
        yield Items(repr(str(path)), rows, size)
    if failure:  # once the rows before it were looked at
        raise failure


def _array_rows(path: Path) -> Iterator[tuple[Any, int]]:
    """The items of a JSON array, one at a time, each with its characters: never more of the file in memory than the longest
    needs."""
    with _readable(path), path.open(encoding="utf-8-sig") as stream:
        yield from _items(path, stream)


def _items(path: Path, stream: TextIO) -> Iterator[tuple[Any, int]]:
    decoder, number = json.JSONDecoder(), 0
    text, place, line, ended, size = stream.read(BLOCK), 0, 1, False, BLOCK
    wanted = "["  # what comes next: the array's beginning, an item or its end, a comma or its end, nothing

    def fail(message: str, where: int) -> DataError:
        return DataError(f"{str(path)!r}, line {line + text.count(chr(10), 0, where)}: not JSON: {message}.")

    while True:
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        row, end, problem = None, place, None
        if place < len(text) and wanted in ("item", "item or ]") and text[place] != "]":
            try:
                row, end = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:
                problem = error
            except RecursionError:
                raise DataError(f"{str(path)!r}, row {number + 1} cannot be read: it is nested too deeply.") from None
        # An item counts once something follows it: a number may go on, and a mistake may be the end of the block only.
        if not ended and (place == len(text) or problem or end == len(text)):
            line += text.count("\n", 0, place)
            block = stream.read(size)
            text, place, ended, size = text[place:] + block, 0, not block, min(2 * size, LARGEST_BLOCK) if problem else BLOCK
            continue
        if problem:
            raise fail(problem.msg, problem.pos)
        following = text[place:place + 1]
        if wanted in ("item", "item or ]") and end > place:
            number += 1
            try:
                if "\\u" in text[place:end]:
                    row = parse_json(text[place:end])  # looks at halves of surrogate pairs
            except ValueError as error:
                raise DataError(f"{str(path)!r}, row {number}: {error}.") from None
            yield row, end - place
            place, wanted = end, ", or ]"
        elif wanted == "[" and following == "[":
            place, wanted = place + 1, "item or ]"
        elif wanted == ", or ]" and following == ",":
            place, wanted = place + 1, "item"
        elif wanted in (", or ]", "item or ]") and following == "]":
            place, wanted = place + 1, ""
        elif not wanted and not following:
            return
        else:
            raise fail({"": "Extra data", ", or ]": "Expecting ',' delimiter"}.get(wanted, "Expecting value"), place)


def _bad_byte(path: Path, error: UnicodeDecodeError) -> int:
    """Where in the file the first byte is that is no UTF-8: the error knows the place in a block only."""
    decoder, read = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as stream:
        while block := stream.read(BLOCK):
            waiting = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as found:
                return read - waiting + found.start
            read += len(block)
    return error.start if read == 0 else read


def _refuse_other_formats(path: Path) -> None:
    """Raise DataError for a file that by its name or its first bytes is of a kind that is not read."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    for begin, (kind, remedy) in OTHER_FILES.items():
        if head.startswith(begin):
            raise DataError(f"{str(path)!r} is {kind}, not JSON, JSON lines or Parquet. {remedy}")
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv") or (suffix not in (".json", ".jsonl") and _looks_like_a_table(head)):
        raise DataError(
            f"{str(path)!r} is a table of {'tabs' if suffix == '.tsv' else 'comma-separated values (CSV)'}, not JSON, JSON "
            "lines or Parquet. Convert it: python -c \"import pandas; pandas.read_csv('IN.csv').to_json('OUT.jsonl', "
            "orient='records', lines=True)\" (with sep='\\t' for tabs).")


def _looks_like_a_table(head: bytes) -> bool:
    first = head.split(b"\n", 1)[0].strip().lower()
    return not first.startswith((b"{", b"[")) and any(
        {question.encode(), answer.encode()} <= {name.strip(b' "\'') for name in re.split(rb"[,\t]", first)}
        for question, answer in (fields for fields in FORM_FIELDS.values() if len(fields) == 2))


@contextmanager
def _is_parquet(name: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, TypeError, LookupError) as error:
        raise DataError(f"{name} is not Parquet: {(str(error).splitlines() or [''])[0]}") from None


def _parquet_portions(path: Path) -> tuple[int, Iterator[Portion]]:
    from pyarrow import parquet

    name = repr(str(path))

    def read() -> Iterator[Portion]:
        with _is_parquet(name):
            for batch in file.iter_batches(batch_size=PORTION_ROWS):
                yield ParquetItems(name, batch, len(batch), table=True)

    with _is_parquet(name):
        file = parquet.ParquetFile(path, memory_map=True)
        return file.metadata.num_rows, read()


def _hub_portions(name: str, split: str) -> tuple[int, Iterator[Portion]]:
    import datasets

    datasets.disable_progress_bars()
    repository, _, revision = name.partition("@")
    try:
        rows = datasets.load_dataset(repository, split=split, revision=revision or None)
    except Exception as error:
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            ask_for_data_set(name)  # which says more
        raise hub_error(repository, error, DataError) from None
    batches = rows.with_format("arrow").iter(batch_size=PORTION_ROWS)
    return len(rows), (Items(name, batch, len(batch), table=True) for batch in batches)
