"""The embedded Prefect API of one ``xft run``: after a kill it comes back at the same address, and it ends with its owner."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import get_current_settings

from flows.local.embedded_api import PrefectApi
from tests.flows.conftest import REPOSITORY
from xft_core.errors import XftError

OWNER = """
import os, signal, sys, time, urllib.request
from pathlib import Path
from flows.local.embedded_api import use_prefect_api

def servers():
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if b"flows.local.embedded_api" in (path / "cmdline").read_bytes().split(b"\\0") and (
                    int((path / "stat").read_text().rpartition(")")[2].split()[1]) == os.getpid()):
                found.append(int(path.name))
        except OSError:
            continue
    return found

use_prefect_api(Path(sys.argv[1])).wait()
first, = servers()
os.kill(first, signal.SIGKILL)
deadline = time.monotonic() + 1800
while True:
    try:
        with urllib.request.urlopen(os.environ["PREFECT_API_URL"] + "/health", timeout=5):
            break
    except OSError:
        assert time.monotonic() < deadline
        time.sleep(0.1)
second, = servers()
assert second != first
print(second)
"""


@pytest.mark.slow
def test_it_is_started_again_when_it_is_killed(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    done = subprocess.run(
        [sys.executable, "-c", OWNER, str(tmp_path)], cwd=REPOSITORY, env=environment | {"XFT_HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr
    assert not Path(f"/proc/{int(done.stdout)}").exists()


def test_only_a_server_that_ends_with_the_run_gets_no_heartbeats() -> None:
    """Heartbeats would delay the end of a flow by up to a second, because it waits for the thread that sends them."""
    server: Any = SimpleNamespace(wait_until_up=lambda: None, keep=lambda: None)
    for api, sends in ((PrefectApi(), True), (PrefectApi(server), False)):
        api.wait()
        with api.run_settings():
            assert (get_current_settings().flows.heartbeat_frequency is not None) == sends


@pytest.mark.parametrize(("status", "told"), [(None, "at http://127.0.0.1:9/api does not answer"), (401, "refuses this user")])
def test_a_server_that_cannot_be_used_is_told(monkeypatch: pytest.MonkeyPatch, status: int | None, told: str) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://user:secret@127.0.0.1:9/api")
    request = httpx.Request("GET", "http://127.0.0.1:9/api/admin/version")
    refused = status and httpx.HTTPStatusError("401 Unauthorized", request=request, response=httpx.Response(status))

    def answer(*_: object) -> None:
        raise refused or httpx.ConnectError("nobody answers")

    monkeypatch.setattr(SyncPrefectClient, "api_version", answer)
    with pytest.raises(XftError, match=told), PrefectApi().run_settings():
        get_client(sync_client=True, httpx_settings={}).raise_for_api_version_mismatch()


def test_a_server_that_does_not_start_is_told_where_it_is_waited_for() -> None:
    def fail() -> None:
        raise XftError("it did not start")

    server: Any = SimpleNamespace(wait_until_up=fail)
    api = PrefectApi(server)
    for _ in range(2):
        with pytest.raises(XftError, match="it did not start"):
            api.wait()
