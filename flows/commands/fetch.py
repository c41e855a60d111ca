"""``xft fetch``: download benchmarks that do not ship with the package, from their authors, checked by sha256."""

import sys
from argparse import Namespace

from xft_core.benchmarks.fetch import SOURCES, fetch
from xft_core.benchmarks.find import find_benchmark
from xft_core.errors import DataError
from xft_core.runtime.exit_codes import ExitCode
from xft_core.runtime.terminal import columns

ALL_LANGUAGES = "multipl-e"


def run(options: Namespace) -> int:
    """Fetch the named benchmarks, or list those that can be fetched. Returns the exit status: 2 if one could not be fetched."""
    if not options.benchmark:
        rows = [(name, _here(name), source.sha256) for name, source in SOURCES.items()]
        print(columns(("benchmark", "here", "sha256, unpacked"), rows, right=()))
        return ExitCode.DONE
    failed = False
    for name in _chosen(options.benchmark):
        try:
            path, was_here = fetch(name)
        except DataError as error:
            print(f"error: {error}", file=sys.stderr)
            failed = True
        else:
            print(f"{name}: {path}{' (already here)' if was_here else ''}\n  sha256, unpacked: {SOURCES[name].sha256}")
    return ExitCode.MISTAKE if failed else ExitCode.DONE


def _chosen(names: list[str]) -> list[str]:
    every = [name for name in SOURCES if name.startswith(f"{ALL_LANGUAGES}/")]
    return list(dict.fromkeys(name for given in names for name in (every if given == ALL_LANGUAGES else [given])))


def _here(name: str) -> str:
    try:
        return str(find_benchmark(name))
    except DataError:
        return "no"
