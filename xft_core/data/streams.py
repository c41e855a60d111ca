"""Read files that can only be read from the beginning, in portions: compressed files, tables (CSV, TSV), Arrow."""

import csv
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from xft_core.data.formats import FORM_FIELDS
from xft_core.data.portions import PORTION, PORTION_ROWS, Items, Portion, Portions, items, readable, row_of_line
from xft_core.errors import DataError

LONGEST_LINE = 2**28  # characters: a compressed file of a few MB can hold a line that exceeds any memory
TABLES = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class Packing:
    """A compression format: its name, its file suffix, and the first bytes of its files."""

    name: str
    suffix: str
    magic: bytes

    def open(self, path: Path) -> BinaryIO:
        """Open the file's uncompressed content."""
        if self.name == "gzip":
            return gzip.open(path)  # type: ignore[return-value]
        import pyarrow

        return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path), "rb"), "zstd"))


PACKINGS = (Packing("gzip", ".gz", b"\x1f\x8b"), Packing("Zstandard", ".zst", b"\x28\xb5\x2f\xfd"))


@dataclass(frozen=True)
class Texts(Items):
    """Lines of JSON in memory."""

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        for number, text in enumerate(self.content, start=before + 1):
            yield number, row_of_line(text, partial(self.place, number))

    def place(self, number: int) -> str:
        return f"{self.name}, line {number}"


def packing_of(path: Path) -> Packing | None:
    """Return a file's compression, by its first bytes; None if it has none. Raises DataError if the name contradicts this."""
    with path.open("rb") as stream:
        head = stream.read(4)
    for packing in PACKINGS:
        if head.startswith(packing.magic):
            return packing
        if path.suffix.lower() == packing.suffix:
            what = "is empty" if not head else f"is not {packing.name}, despite its name"
            raise DataError(f"{str(path)!r} {what}. Fetch it again, or correct its name.")
    return None


def is_table(name: str) -> bool:
    """Return whether a file name, without a compression suffix, is that of a table."""
    return Path(name).suffix.lower() in TABLES


def refuse_table(path: Path, first: str) -> None:
    """Raise DataError for a file that is not named like a table but has the header of one as its ``first`` line."""
    line = first.strip().lower()
    names = {name.strip(" \"'") for name in re.split(r"[,;\t]", line)}
    if not line.startswith(("{", "[")) and any(set(fields) <= names for fields in FORM_FIELDS.values() if len(fields) == 2):
        raise DataError(f"{str(path)!r} looks like a table. Give it a name that ends in {_ending(path, '.csv')} (commas) or "
                        f"{_ending(path, '.tsv')} (tabs).")


def _ending(path: Path, suffix: str) -> str:
    return suffix + (path.suffix if path.suffix.lower() in {packing.suffix for packing in PACKINGS} else "")


def streamed_portions(path: Path, packing: Packing | None, plain: str) -> Iterator[Portion]:
    """Yield the portions of a compressed file or a table. ``plain``: the file name without a compression suffix."""
    with readable(path), _unpackable(path, packing), (packing.open(path) if packing else path.open("rb")) as binary:
        stream = io.TextIOWrapper(binary, encoding="utf-8-sig", newline="")
        if is_table(plain):
            found: Iterator[tuple[Any, int]] = _records(path, stream, TABLES[Path(plain).suffix.lower()])
        else:
            # Only reading shows whether the file begins with an array, and a compressed file cannot be rewound.
            head = stream.read(1)
            while head and head.isspace():
                head = stream.read(1)
            if head == "[":
                found = items(path, _Continued(head, stream))  # type: ignore[arg-type]
            else:
                yield from _portions(repr(str(path)), _lines(path, head, stream), Texts)
                return
        yield from _portions(repr(str(path)), found, Items)


def arrow_portions(path: Path) -> tuple[int, Portions]:
    """Return the portions of an Arrow file in the stream format (as written by datasets) or the random access format."""
    import pyarrow
    from pyarrow import ipc

    name = repr(str(path))

    @contextmanager
    def is_arrow() -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:
            raise DataError(f"{name} is not Arrow, or is truncated: {(str(error).splitlines() or [''])[0]}") from None

    def read() -> Iterator[Portion]:
        with is_arrow(), pyarrow.memory_map(str(path)) as mapped:
            is_file = mapped.read(6) == b"ARROW1"
            mapped.seek(0)
            reader = ipc.open_file(mapped) if is_file else ipc.open_stream(mapped)
            batches = (reader.get_batch(number) for number in range(reader.num_record_batches)) if is_file else reader
            for batch in batches:
                for start in range(0, batch.num_rows, PORTION_ROWS):
                    part = batch.slice(start, PORTION_ROWS)
                    yield Items(name, part, max(1, part.nbytes), table=True)

    with is_arrow():
        size = path.stat().st_size
    return size, read


class _Continued:
    """A text stream, with its beginning already read."""

    def __init__(self, head: str, rest: TextIO) -> None:
        self._head, self._rest = head, rest

    def read(self, size: int) -> str:
        head, self._head = self._head, ""
        return head + self._rest.read(size)


def _portions(name: str, rows: Iterator[tuple[Any, int]], kind: type[Items]) -> Iterator[Portion]:
    """Group rows, each with its number of characters, into portions. A read error is raised after the rows before it."""
    few: list[Any] = []
    size, failure = 0, None
    while True:
        try:
            row, length = next(rows)
        except StopIteration:
            break
        except (DataError, OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
            failure = error
            break
        few.append(row)
        size += length
        if len(few) == PORTION_ROWS or size >= PORTION:
            yield kind(name, few, size)
            few, size = [], 0
    if few:
        yield kind(name, few, size)
    if failure:
        raise failure


def _lines(path: Path, head: str, stream: TextIO) -> Iterator[tuple[str, int]]:
    number = 0
    while line := head + stream.readline(LONGEST_LINE):
        head, number = "", number + 1
        if number == 1:
            refuse_table(path, line)
        if len(line) >= LONGEST_LINE:
            raise DataError(f"{str(path)!r}, line {number} has more than {LONGEST_LINE:,} characters: this cannot be a row.")
        yield line, len(line)


def _records(path: Path, stream: TextIO, delimiter: str) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield the records of a table with a header, as objects with text values."""
    name = repr(str(path))
    csv.field_size_limit(min(sys.maxsize, LONGEST_LINE))
    first = stream.readline(LONGEST_LINE)
    if not first.strip():
        raise DataError(f"{name} has no header: its first line must name the columns, such as question,answer.")
    if first.lstrip().startswith(("{", "[")):
        raise DataError(f"{name} holds JSON, not a table. Give it a name that ends in {_ending(path, '.jsonl')}.")
    for suffix, other in TABLES.items():
        if other != delimiter and delimiter not in first and other in first:
            raise DataError(f"{name} is a table with another delimiter. Give it a name that ends in {_ending(path, suffix)}.")
    if delimiter == "," and first.count(";") > first.count(","):
        delimiter = ";"  # spreadsheets write this where numbers contain a comma
    reader = csv.reader(_Records(first, stream), delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(reader)]
        if twice := next((column for place, column in enumerate(header) if column in header[:place]), None):
            raise DataError(f"{name}: the header names the column {twice!r} twice. Give each column a unique name.")
        for record in reader:
            if not record:
                continue  # a blank line
            if len(record) != len(header):
                raise DataError(
                    f"{name}, line {reader.line_num}: {len(record)} values, but the header names {len(header)} columns. Put "
                    "values that contain the delimiter or line breaks in double quotes.")
            yield dict(zip(header, record, strict=True)), sum(map(len, record)) + len(record)
    except csv.Error as error:
        raise DataError(f"{name}, line {reader.line_num}: the table cannot be read: {error}. Put values that contain the "
                        "delimiter, quotes or line breaks in double quotes, and double the quotes in them.") from None


class _Records:
    """The lines of a table for csv.reader, with the first line already read."""

    def __init__(self, first: str, rest: TextIO) -> None:
        self._first, self._rest = first, rest

    def __iter__(self) -> "_Records":
        return self

    def __next__(self) -> str:
        line, self._first = self._first or self._rest.readline(LONGEST_LINE), ""
        if not line:
            raise StopIteration
        return line


@contextmanager
def _unpackable(path: Path, packing: Packing | None) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, OSError) as error:
        if packing is None:
            raise
        raise DataError(
            f"{str(path)!r} cannot be unpacked: {str(error).rstrip('.')}. It is truncated or not {packing.name}: fetch it "
            "again.") from None
    except UnicodeDecodeError as error:
        if packing is None:
            raise
        raise DataError(f"The unpacked content of {str(path)!r} is not UTF-8 text ({error.reason}).") from None
