"""``xft completion SHELL``: print a script that makes the shell complete commands, options and files."""

from argparse import ArgumentParser, Namespace, _SubParsersAction

import shtab

from flows.options import parser
from xft_core.runtime.exit_codes import ExitCode

# Names in the help of arguments that may be a file or a directory.
PATHS = {"RECIPE.yaml", "STUDY.yaml", "FILE", "MODEL", "DATA", "BENCHMARK", "model", "data"}
DIRECTORIES = {"DIRECTORY"}


def run(options: Namespace) -> int:
    """Print the script; returns the exit status."""
    made = parser()
    _mark_paths(made)
    print(shtab.complete(made, options.shell))
    return ExitCode.DONE


def _mark_paths(command: ArgumentParser) -> None:
    """Tell shtab which arguments of a command and its subcommands are paths: shtab reads ``complete``."""
    for action in command._actions:
        if isinstance(action, _SubParsersAction):
            for inner in action.choices.values():
                _mark_paths(inner)
        shown = action.metavar or action.dest
        if shown in PATHS:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif shown in DIRECTORIES:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
