"""Read JSON, JSON Lines and Parquet files in portions. sources.py chooses how each file is read."""

import codecs
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TextIO

from xft_core.errors import DataError
from xft_core.files.parsing import parse_json

PORTION = 2**18  # bytes of a file in a portion, more if a row is longer
PORTION_ROWS = 1024
BLANK = object()  # instead of a row: a blank line
BLOCK, LARGEST_BLOCK = 2**20, 2**28  # characters that are read at once
_SPACE = re.compile(r"[ \t\n\r]*")
_LINE = re.compile(rb"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+")


def row_of_line(text: str, place: Callable[[], str]) -> Any:
    """Return a line of JSON as a row: its content, BLANK, or, if it is not JSON, a DataError with its location."""
    if not text.strip():
        return BLANK
    try:
        return parse_json(text)
    except json.JSONDecodeError as error:
        return DataError(f"{place()}: not JSON: {error.msg}. Correct or remove the line.")
    except ValueError as error:
        return DataError(f"{place()}: {error}. Correct or remove the line.")


class Portion(Protocol):
    """Some consecutive rows of the data.

    ``size``: its part of the total size that ``portions`` returns. ``count``: its approximate number of rows.
    """

    @property
    def size(self) -> int: ...

    @property
    def begins_file(self) -> bool:
        """Whether this is the first portion of one of several files, with rows numbered from 1 again."""

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        """Every row with its number, from ``before`` + 1 on: its content, BLANK, or, if it cannot be read, a DataError with its
        location. Raises DataError for an error that prevents reading the rest."""

    def place(self, number: int) -> str:
        """The location of the row with this number, for error messages."""

    def count(self) -> int: ...


Portions = Callable[[], Iterator[Portion]]  # each call yields all portions of the data from the start


@dataclass(frozen=True)
class Lines:
    """Bytes ``start`` to ``end`` of a JSON Lines file."""

    path: Path
    start: int
    end: int
    begins_file = False

    @property
    def size(self) -> int:
        return self.end - self.start

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        number, place = before, self.start
        with readable(self.path), self.path.open("rb") as stream:
            stream.seek(place)
            while place < self.end and (read := stream.readline()):
                content = read.removeprefix(codecs.BOM_UTF8) if place == 0 else read
                place += len(read)
                for line in _LINE.findall(content) if b"\r" in content else (content,):
                    number += 1
                    yield number, row_of_line(line.decode(), partial(self.place, number))

    def place(self, number: int) -> str:
        return f"{str(self.path)!r}, line {number}"

    def count(self) -> int:
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            return max(1, stream.read(min(self.size, PORTION)).count(b"\n"))


@dataclass(frozen=True)
class Items:
    """Rows in memory. ``name``: name of their file or data set. ``table``: whether they are an Arrow batch."""

    name: str
    content: Any
    size: int
    table: bool = False
    begins_file = False

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
def readable(path: Path) -> Iterator[None]:
    try:
        yield
    except UnicodeDecodeError as error:
        raise DataError(f"{str(path)!r} is not UTF-8 text (byte {_bad_byte(path, error)}). Save it as UTF-8, for example with "
                        "iconv -f LATIN1 -t UTF-8.") from None
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None


def begins_an_array(path: Path) -> bool:
    with path.open("rb") as stream:
        head = stream.read(BLOCK).removeprefix(codecs.BOM_UTF8).decode(errors="replace").lstrip()
        while not head and (block := stream.read(BLOCK)):
            head = block.decode(errors="replace").lstrip()
    return head[:1] == "["


def line_portions(path: Path) -> Iterator[Portion]:
    start = 0
    with readable(path), path.open("rb") as stream:
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


def array_portions(path: Path) -> Iterator[Portion]:
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
    if failure:  # raised only after the rows before it
        raise failure


def _array_rows(path: Path) -> Iterator[tuple[Any, int]]:
    """Yield the items of a JSON array one at a time, each with its number of characters. Memory holds no more of the file than
    the longest item needs."""
    with readable(path), path.open(encoding="utf-8-sig") as stream:
        yield from items(path, stream)


def items(path: Path, stream: TextIO) -> Iterator[tuple[Any, int]]:
    decoder, number = json.JSONDecoder(), 0
    text, place, line, ended, size = stream.read(BLOCK), 0, 1, False, BLOCK
    wanted = "["  # what comes next: the array's beginning, an item or its end, a comma or its end, nothing

    def fail(message: str, where: int) -> DataError:
        found = line + text.count(chr(10), 0, where)
        return DataError(f"{str(path)!r}, line {found}: not JSON: {message}. Correct or remove the row.")

    while True:
        place = _SPACE.match(text, place).end()  # type: ignore[union-attr]
        row, end, problem = None, place, None
        if place < len(text) and wanted in ("item", "item or ]") and text[place] != "]":
            try:
                row, end = decoder.raw_decode(text, place)
            except json.JSONDecodeError as error:
                problem = error
            except RecursionError:
                raise DataError(
                    f"{str(path)!r}, row {number + 1} cannot be read: it is nested too deeply. Correct or remove it.") from None
        # An item counts once something follows it: a number may continue, and an error may only be the end of the block.
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
                    row = parse_json(text[place:end])  # checks for unpaired surrogates
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
    """Return the file position of the first byte that is not UTF-8. The error only has the position within a block."""
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


@contextmanager
def _is_parquet(name: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, ArithmeticError, TypeError, LookupError) as error:
        raise DataError(
            f"{name} is not Parquet: {(str(error).splitlines() or [''])[0]} Fetch or write the file again.") from None


def parquet_portions(path: Path) -> tuple[int, Portions]:
    from pyarrow import parquet

    name = repr(str(path))

    def read() -> Iterator[Portion]:
        with _is_parquet(name):
            for batch in file.iter_batches(batch_size=PORTION_ROWS):
                yield ParquetItems(name, batch, len(batch), table=True)

    with _is_parquet(name):
        file = parquet.ParquetFile(path, memory_map=True)
        return file.metadata.num_rows, read
