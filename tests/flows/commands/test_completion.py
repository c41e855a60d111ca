"""Shells accept the output of ``xft completion``, and it completes."""

import shutil
import subprocess
from pathlib import Path

import pytest

from flows.commands import completion
from flows.options import parser

# Bash's completion function, called for the given words as bash calls it.
ASK_BASH = """
source "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
asked=$(complete -p xft | sed 's/.*-F \\([^ ]*\\).*/\\1/')
"$asked" xft "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str, path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    completion.run(parser().parse_args(["completion", shell]))
    path.write_text(capsys.readouterr().out)
    return path


@pytest.mark.parametrize(("words", "expected"), [
    (["xft", "st"], {"store", "study"}), (["xft", "chat", "--template", "m"], {"magicoder"}),
    (["xft", "store", "ls", "--s"], {"--s3"}), (["xft", "run", "mine"], {"mine.yaml"})])
def test_bash_completes(words: list[str], expected: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.yaml").touch()
    done = subprocess.run(
        ["bash", "-c", ASK_BASH, "bash", script("bash", tmp_path / "xft.bash", capsys), *words], cwd=tmp_path,
        capture_output=True, text=True)
    assert set(done.stdout.split()) == expected, done.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_take_their_scripts(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = script(shell, tmp_path / "script", capsys)
    assert all(command in path.read_text() for command in ("run", "init", "chat", "fetch"))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([shell, "-n", path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
