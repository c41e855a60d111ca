"""The worked examples of CONTRIBUTING.md, applied to a copy of the code: write every file, change every line, run every
command. An example that no longer fits the code fails here."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "CONTRIBUTING.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WANTED = ["Run one test", "Add a family", "Add a stage", "Add a benchmark", "Add a merge method", "Add a routing normalization"]


def sections() -> dict[str, list[tuple[str, str]]]:
    """Return the language and text of every code block, by the heading above it."""
    heads = re.split(r"^## (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    return {head: BLOCK.findall(text) for head, text in zip(heads[::2], heads[1::2], strict=True)}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Copy the code and the files that its tests need, without results of earlier runs."""
    for name in ("flows", "tasks", "xft_core", "tests"):
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def change(root: Path, diff: str) -> None:
    """Apply a block that names a file and shows some of its lines. The lines must occur exactly once, anywhere in the file."""
    name, *lines = diff.splitlines()
    path = root / name.removeprefix("--- ")
    before = "".join(line[1:] + "\n" for line in lines if line[:1] in " -")
    after = "".join(line[1:] + "\n" for line in lines if line[:1] in " +")
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"CONTRIBUTING.md shows lines that {path.name} has {text.count(before)} times:\n{before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


def commands(block: str) -> Iterator[list[str]]:
    for line in block.splitlines():
        program, *arguments = shlex.split(line)
        assert program == ".venv/bin/python", line
        yield [sys.executable, *arguments]


def test_the_page_has_every_example() -> None:
    found = sections()
    assert [name for name in found if name in WANTED] == WANTED
    assert all("sh" in dict(found[name]) for name in WANTED)


def carry_out(section: str, root: Path) -> None:
    """Write the files that an example adds and change those that it changes."""
    for language, text in sections()[section]:
        if language == "diff":
            change(root, text)
        elif language == "python":
            path = root / text.splitlines()[0].removeprefix("# ")
            assert not path.exists(), path
            compile(text, str(path), "exec")
            path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("section", WANTED)
def test_the_example_fits_the_code(section: str, copy: Path) -> None:
    carry_out(section, copy)


@pytest.mark.slow
@pytest.mark.parametrize("section", WANTED)
def test_the_example_works(section: str, copy: Path) -> None:
    blocks = sections()[section]
    carry_out(section, copy)
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "XFT_HOME": str(copy / "home")}
    for language, text in blocks:
        for command in commands(text) if language == "sh" else ():
            done = subprocess.run(
                [*command, "-p", "no:cacheprovider"], cwd=copy, env=environment, capture_output=True, text=True, timeout=600)
            assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
            assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout
