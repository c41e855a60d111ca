"""``xft store`` apart from its tables (tests/tasks/object_store tests those)."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.commands import store
from flows.options import parser

VERIFYING = """
import sys
from pathlib import Path
from xft_core.files.temporary import temporary_directory
with temporary_directory("verify", Path(sys.argv[1])) as directory:
    (directory / "model.safetensors").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_what_a_killed_verify_left_is_swept_by_the_next_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XFT_HOME", str(tmp_path))
    verify = parser().parse_args(["store", "verify"])
    with subprocess.Popen([sys.executable, "-c", VERIFYING, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        store.run(verify)
        assert len(list(tmp_path.glob("xft-verify-*/model.safetensors"))) == 1  # its process is alive
        process.send_signal(signal.SIGKILL)
    store.run(verify)
    assert not list(tmp_path.glob("xft-verify-*"))
