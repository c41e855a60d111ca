"""User data in portions: files of any supported kind, several files, Hub data sets, fields with other names."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from xft_core.data.portions import (
    PORTION_ROWS,
    Items,
    Portion,
    Portions,
    array_portions,
    begins_an_array,
    line_portions,
    parquet_portions,
)
from xft_core.data.streams import arrow_portions, is_table, packing_of, refuse_table, streamed_portions
from xft_core.errors import DataError
from xft_core.files.locate import ask_for_data_set, hub_error
from xft_core.recipe.sections import DataConfig

# First bytes of unsupported files, what such a file is, and the remedy.
OTHER_FILES = {
    b"BZh": ("compressed by bzip2", "Unpack it with bunzip2."),
    b"\xfd7zXZ\x00": ("compressed by xz", "Unpack it with unxz."),
    b"PK\x03\x04": ("a ZIP archive (or a spreadsheet)", "Unpack it, or export it as JSON lines."),
    b"PAR1": ("Parquet under another name", "Give it a name that ends in .parquet."),
    b"ARROW1": ("Arrow under another name", "Give it a name that ends in .arrow."),
    b"SQLite format 3": ("an SQLite database", "Export the rows as JSON lines."),
    b"<!DOCTYPE": ("a web page (HTML)", "Download the file itself, not the page that shows it."),
    b"<html": ("a web page (HTML)", "Download the file itself, not the page that shows it."),
    b"version https://git-lfs": ("a pointer of Git LFS in place of a file", "Fetch the file with git lfs pull."),
    b"\xff\xfe": ("text in UTF-16 or UTF-32 and not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8."),
    b"\xfe\xff": ("text in UTF-16 and not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8."),
}


def portions(config: DataConfig, paths: Path | Sequence[Path] | None) -> tuple[int, Portions]:
    """Return the approximate total size of the data files ``paths`` (None: of the Hub data set), and a function that yields
    their portions, however often it is called. Raises DataError for data that cannot be read."""
    if paths is None:
        size, found = _hub_portions(config)
    elif isinstance(paths, Path) or len(paths) == 1:
        size, found = _file_portions(paths if isinstance(paths, Path) else paths[0])
    else:
        size, found = _several(paths)
    return size, (lambda: (Renamed(portion, config.fields) for portion in found())) if config.fields else found


def check_begins(path: Path) -> None:
    """Raise DataError for a data file with a beginning that does not match its name."""
    next(_file_portions(path)[1](), None)


def _file_portions(path: Path) -> tuple[int, Portions]:
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return parquet_portions(path)
    if suffix == ".arrow":
        return arrow_portions(path)
    _refuse_other_formats(path)
    try:
        size = path.stat().st_size
        packing = packing_of(path)
        plain = path.stem if packing and suffix == packing.suffix else path.name
        if packing or is_table(plain):
            return size, partial(streamed_portions, path, packing, plain)
        is_array = begins_an_array(path)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    return size, partial(array_portions if is_array else line_portions, path)


def _several(paths: Sequence[Path]) -> tuple[int, Portions]:
    """Read several files. The total size is estimated from the first file, so that they are not all opened at once."""
    sizes = [max(1, path.stat().st_size) for path in paths]
    size, first = _file_portions(paths[0])

    def read() -> Iterator[Portion]:
        for place, path in enumerate(paths):
            found = _file_portions(path)[1] if place else first
            for number, portion in enumerate(found()):
                yield portion if number else FirstOfFile(portion)

    return size * sum(sizes) // sizes[0], read


@dataclass(frozen=True)
class FirstOfFile:
    """The first portion of one of several files: its rows are numbered from 1 again."""

    inner: Portion
    begins_file = True

    @property
    def size(self) -> int:
        return self.inner.size

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        yield from self.inner.rows(0)

    def place(self, number: int) -> str:
        return self.inner.place(number)

    def count(self) -> int:
        return self.inner.count()


@dataclass(frozen=True)
class Renamed:
    """Rows with renamed fields. ``names`` maps the form's field names to the data's."""

    inner: Portion
    names: Mapping[str, str]

    @property
    def size(self) -> int:
        return self.inner.size

    @property
    def begins_file(self) -> bool:
        return self.inner.begins_file

    def rows(self, before: int) -> Iterator[tuple[int, Any]]:
        for number, row in self.inner.rows(before):
            yield number, self._renamed(row, number) if isinstance(row, dict) else row

    def _renamed(self, row: dict[str, Any], number: int) -> dict[str, Any] | DataError:
        found = {}
        for name, path in self.names.items():
            value: Any = row
            for part in [path] if path in row else path.split("."):
                if not isinstance(value, dict) or part not in value:
                    return DataError(f"{self.place(number)}: the field {path!r} (fields: {name}) is missing; this row has "
                                     f"{', '.join(map(str, row)) or 'none'}.")
                value = value[part]
            found[name] = value
        return {name: value for name, value in row.items() if name not in self.names.values()} | found

    def place(self, number: int) -> str:
        return self.inner.place(number)

    def count(self) -> int:
        return self.inner.count()


def _refuse_other_formats(path: Path) -> None:
    """Raise DataError for a file of an unsupported kind, recognised by its first bytes."""
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read: {error.strerror}.") from None
    for begin, (kind, remedy) in OTHER_FILES.items():
        if head.startswith(begin):
            raise DataError(f"{str(path)!r} is {kind}, not JSON, JSON lines, CSV, Arrow or Parquet. {remedy}")
    if not is_table(path.name):
        refuse_table(path, head.split(b"\n", 1)[0].decode(errors="replace"))


def _hub_portions(config: DataConfig) -> tuple[int, Portions]:
    import datasets

    datasets.disable_progress_bars()
    name = config.path
    repository, _, revision = name.partition("@")
    try:
        rows = datasets.load_dataset(
            repository, config.config, split=config.split, revision=config.revision or revision or None)
    except Exception as error:
        if isinstance(error, datasets.exceptions.DatasetNotFoundError):
            ask_for_data_set(name)  # its error says more
        raise hub_error(repository, error, DataError) from None
    table = rows.with_format("arrow")
    return len(rows), lambda: (Items(name, batch, len(batch), table=True) for batch in table.iter(batch_size=PORTION_ROWS))
