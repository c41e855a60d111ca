"""Find the files of one data source: a file name, a glob, a directory of shards, or a save_to_disk directory."""

import glob
import json
import re
from pathlib import Path

from xft_core.errors import DataError
from xft_core.files.locate import DATA_SUFFIXES, demo_path, find_file, is_data_file, local_path

MOST_FILES = 100_000
_GLOB = frozenset("*?[")


def find_data_files(name: str, split: str = "train") -> list[Path]:
    """The files that a name refers to, in order. ``split``: for a directory of ``DatasetDict.save_to_disk``. Raises DataError
    if there are none."""
    if "://" in name or demo_path(name) is not None:
        return [find_file(name)]
    path = local_path(name)
    if path.is_dir():
        found = _of_directory(path, split)
    elif _GLOB.intersection(name) and not path.exists():
        found = sorted(Path(item) for item in glob.glob(str(path), recursive=True) if Path(item).is_file())
        if not found:
            raise DataError(f"No file matches {name[:200]!r}. Correct the pattern; * matches any part of a name, ** any "
                            "directories.")
    else:
        return [find_file(name)]
    if len(found) > MOST_FILES:
        raise DataError(f"{name[:200]!r} has {len(found):,} files, more than the limit of {MOST_FILES:,}: select fewer.")
    return found


def data_inputs(name: str, path: str, split: str) -> dict[str, Path]:
    """The files of a stage's input ``name``, numbered if there are several; none for a Hub data set."""
    if not is_data_file(path):
        return {}
    files = find_data_files(path, split)
    return {name: files[0]} if len(files) == 1 else {f"{name}_{place:06}": file for place, file in enumerate(files)}


def files_of(inputs: dict[str, Path], name: str) -> list[Path] | None:
    """The inputs of a stage that ``data_inputs`` called ``name``, in order; None for a Hub data set."""
    numbered = re.compile(rf"{name}(_[0-9]{{6}})?")
    return [path for key, path in inputs.items() if numbered.fullmatch(key)] or None


def _of_directory(path: Path, split: str) -> list[Path]:
    if (path / "dataset_dict.json").is_file():
        splits = _read(path / "dataset_dict.json").get("splits")
        if not isinstance(splits, list) or split not in splits:
            shown = ", ".join(map(str, splits)) if isinstance(splits, list) else "none"
            raise DataError(f"{str(path)!r} has no split {split!r}. Set split to one that it has: {shown}.")
        path = path / split
    if (path / "state.json").is_file():
        listed = _read(path / "state.json").get("_data_files")
        names = [item.get("filename") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
        files = [path / name for name in names if isinstance(name, str) and Path(name).name == name]
        if not files or len(files) != len(names):
            raise DataError(f"{str(path / 'state.json')!r} lists no Arrow files. Save the data set again with save_to_disk.")
        if missing := next((file for file in files if not file.is_file()), None):
            raise DataError(f"{str(missing)!r}, listed in {str(path / 'state.json')!r}, is missing. Copy the entire directory.")
        return files
    found = sorted(
        file for file in path.rglob("*") if file.is_file() and is_shard(file.name)
        and not any(part.startswith((".", "_")) for part in file.relative_to(path).parts))
    if not found:
        raise DataError(f"{str(path)!r} is a directory without data files ({', '.join(DATA_SUFFIXES)}, or compressed as .gz or "
                        ".zst). Give the path of a file, or of a directory with data files.")
    return found


def is_shard(name: str) -> bool:
    """Whether a file name is that of a data file."""
    plain = name.lower().removesuffix(".gz").removesuffix(".zst")
    return Path(plain).suffix in DATA_SUFFIXES


def _read(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise DataError(f"{str(path)!r} cannot be read as JSON. Save the data set again with save_to_disk.")
    return content
