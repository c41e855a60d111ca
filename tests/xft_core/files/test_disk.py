"""Locks and atomic writes: neither a request for a file's lock nor a failed write loses the file's content."""

import os
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from xft_core.files.disk import file_lock, locked, write_whole

HOLD = """
import sys
from pathlib import Path
from xft_core.files.disk import file_lock
with file_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path: Path) -> Any:
    """Hold a file locked in another process."""
    path = tmp_path / "a.lock"
    path.write_text("of its owner")
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    yield path, process
    process.kill()
    process.communicate()


def test_a_lock_that_another_process_holds_is_not_had_until_that_is_gone(held: Any) -> None:
    path, process = held
    with file_lock(path, wait=False) as stream, locked(path.with_suffix(""), wait=False) as is_held:
        assert stream is None and not is_held
    with file_lock(path, wait=False, shared=True, create=False) as stream:
        assert stream is None
    assert path.read_text() == "of its owner"
    process.kill()
    process.wait()
    with file_lock(path) as stream:
        assert stream is not None
    assert path.read_text() == "of its owner"


def test_readers_share_a_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with (file_lock(path, wait=False, shared=True, create=False) as one,
          file_lock(path, wait=False, shared=True, create=False) as other, file_lock(path, wait=False) as alone):
        assert one is not None and other is not None and alone is None


def test_no_lock_file_is_made_where_none_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), file_lock(tmp_path / "none", wait=False, create=False):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lock_file_that_its_owner_removed_locks_nobody_out_and_lets_nobody_in(tmp_path: Path) -> None:
    path, entered, release = tmp_path / "lock", threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with file_lock(path):  # opened while the owner below holds the lock, acquired once the owner has removed the file
            entered.set()
            release.wait(60)

    with file_lock(path):
        waiting = threading.Thread(target=wait_for_it)
        waiting.start()
        while sum(os.path.realpath(f"/proc/self/fd/{name}") == str(path) for name in os.listdir("/proc/self/fd")) < 2:
            pass
        path.unlink()
    assert entered.wait(60)
    with file_lock(path, wait=False) as second:
        assert second is None
    release.set()
    waiting.join()


@pytest.mark.parametrize("content", ["text ä\n", b"\x00bytes"])
def test_a_whole_write_replaces_the_file(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "a.json"
    path.write_text("before")
    path.with_name("a.json.tmp").write_text("of a kill")
    write_whole(path, content)
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


def test_a_secret_is_never_readable_by_others(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.with_name("secret.tmp").touch(0o666)
    write_whole(path, "s", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_write_that_fails_leaves_the_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_text("before")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as failing, pytest.raises(OSError):
        failing.setattr(os, "fsync", full)
        write_whole(path, "after")
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
