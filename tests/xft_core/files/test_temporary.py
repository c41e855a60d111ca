"""Temporary directories: removed at the end, swept after a kill, and never another process's."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from xft_core.files.temporary import sweep, temporary_directory


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_it_is_private_and_gone_afterwards(place: Path) -> None:
    with temporary_directory("stage") as directory:
        (directory / "inside").write_text("x")
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        sweep()  # as another command would at the same time
        assert (directory / "inside").exists()
    assert not list(place.iterdir())


def test_what_is_renamed_to_its_place_stays_and_may_be_read(place: Path) -> None:
    umask = os.umask(0o027)
    try:
        with temporary_directory("transfer", output=place / "made") as directory:
            (directory / "inside").write_text("x")
            directory.rename(place / "made")
    finally:
        os.umask(umask)
    assert [path.name for path in place.iterdir()] == ["made"]
    assert stat.S_IMODE((place / "made").stat().st_mode) == 0o750


HOLDING = """
import sys, tempfile
from pathlib import Path
from xft_core.files.temporary import TemporaryDirectory
tempfile.tempdir = sys.argv[1]
held = [TemporaryDirectory("stage"), TemporaryDirectory("verify", Path(sys.argv[2])),
        TemporaryDirectory("transfer", output=Path(sys.argv[2]) / "0123.abc")]
(held[0].path / "deep").mkdir()
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_killed_process_leaves_its_own_to_the_next(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("home")
    process = subprocess.Popen([sys.executable, "-c", HOLDING, str(place), str(elsewhere)],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    sweep(elsewhere)
    assert (len(list(place.iterdir())), len(list(elsewhere.iterdir()))) == (1, 2)  # its process is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    sweep()
    assert (len(list(place.iterdir())), len(list(elsewhere.iterdir()))) == (0, 2)  # that directory was not swept
    sweep(elsewhere)
    assert not list(elsewhere.iterdir())


@pytest.mark.parametrize("name", [
    "xft-stage-notes", "xft-stage-0123456789ab.txt", "xft-tests-0123456789ab", "my-xft-stage-0123456789ab", "stage"])
def test_what_is_called_otherwise_stays(place: Path, name: str) -> None:
    (place / name).mkdir()
    sweep()
    assert (place / name).exists()


def test_links_and_files_of_that_name_stay(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    precious = tmp_path_factory.mktemp("precious")
    (place / "xft-stage-0123456789ab").symlink_to(precious)
    (place / "xft-stage-0123456789ac").write_text("x")
    sweep()
    assert precious.exists() and len(list(place.iterdir())) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_another_users_stays(place: Path) -> None:
    (place / "xft-stage-0123456789ab").mkdir()
    os.chown(place / "xft-stage-0123456789ab", 12345, 12345)
    sweep()
    assert list(place.iterdir())
