"""Find a benchmark's file by its name or path."""

import os
import re
from pathlib import Path

from xft_core.benchmarks.tasks.folder import problem_file
from xft_core.errors import DataError
from xft_core.files.environment import benchmarks_directory, cache_directory
from xft_core.files.locate import find_file, local_path

# Benchmarks that evalplus 0.3 knows: the override variable, and the file's name in evalplus's cache directory.
EVALPLUS_FILES = {
    "humaneval": ("HUMANEVAL_OVERRIDE_PATH", "HumanEvalPlus-v0.1.10.jsonl"),
    "mbpp": ("MBPP_OVERRIDE_PATH", "MbppPlus-v0.2.0.jsonl"),
}
MULTIPL_E = re.compile(r"multipl-e/(\w+)")


def find_benchmark(name: str) -> Path:
    """Find the file of a benchmark, or the folder of a task. ``name`` is a path, a shipped benchmark, a benchmark in
    evalplus's cache by its name, or one in the directory XFT_BENCHMARKS: ``multipl-e/js`` (multipl-e/humaneval-js.jsonl, or
    .jsonl.gz) and ``ds1000`` (ds1000/ds1000.jsonl.gz).

    Downloads nothing. Raises DataError if the benchmark is not there.
    """
    multipl_e = MULTIPL_E.fullmatch(name)
    if multipl_e:
        return _in_benchmarks(name, f"multipl-e/humaneval-{multipl_e[1]}.jsonl")
    if name == "ds1000":
        return _in_benchmarks(name, "ds1000/ds1000.jsonl")
    if name not in EVALPLUS_FILES and local_path(name).is_dir():
        problem_file(local_path(name))  # raises if it is not a task
        return local_path(name)
    if name not in EVALPLUS_FILES:
        if re.fullmatch(r"[\w+-]+", name) and not local_path(name).exists():  # a name, not a path
            raise DataError(
                f"There is no benchmark {name[:100]!r}, and no file of that name. The named benchmarks are "
                f"{', '.join(EVALPLUS_FILES)}, ds1000 and multipl-e/LANGUAGE (xft fetch lists them); for others, give the "
                "file's path.")
        return find_file(name)
    variable, file_name = EVALPLUS_FILES[name]
    cache = cache_directory() / "evalplus"
    candidates = [Path(os.environ[variable])] if os.environ.get(variable) else []
    candidates += [cache / file_name, cache / f"{file_name}.gz"]
    for candidate in candidates:
        if local_path(str(candidate)).is_file():
            return candidate
    raise DataError(
        f"Benchmark {name!r} is neither in evalplus's cache ({str(cache / file_name)!r}) nor named by {variable}. "
        f"Get it with: xft fetch {name}. Or put the released file there, or give its path as the benchmark.")


def _in_benchmarks(name: str, relative: str) -> Path:
    directory = benchmarks_directory()
    if directory is None:
        raise DataError(
            f"Benchmark {name!r} belongs in the directory XFT_BENCHMARKS, but that variable is not set. Set it to a directory, "
            f"and get {relative} there with: xft fetch {name}. Or give that file's path as the benchmark.")
    file = directory / relative
    for candidate in (file, file.with_name(f"{file.name}.gz")):
        if candidate.is_file():
            return candidate
    raise DataError(
        f"Benchmark {name!r}: there is no file {str(file)!r} (XFT_BENCHMARKS is {str(directory)!r}). Get it with: "
        f"xft fetch {name}. Or put the benchmark's file there, or give its path as the benchmark.")
