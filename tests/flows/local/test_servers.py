"""Prefect's API of ``xft run`` and the secret of a home. test_cli.py tests the servers of ``xft ui``, since it starts them."""

import base64
import os
import stat
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.local.addresses import running_api
from flows.local.prefect_server import server_environment
from flows.local.server_secret import server_auth
from tests.flows.local.strangers import EXPECTED, answers, status


def test_the_api_of_a_run_turns_strangers_away(prefect_api: str) -> None:
    basic = "Basic " + base64.b64encode(os.environ["PREFECT_API_AUTH_STRING"].encode()).decode()
    assert answers(f"{prefect_api}/flows/filter", basic) == EXPECTED
    json = {"Content-Type": "application/json"}
    assert status(f"{prefect_api}/flows/filter", "POST", json | {"Authorization": basic}) == 200
    assert status(f"{prefect_api}/health", "GET", {}) == 200


def test_its_events_are_not_for_foreign_pages(prefect_api: str) -> None:
    address = prefect_api.replace("http:", "ws:") + "/events/out"
    secret = os.environ["PREFECT_API_AUTH_STRING"]
    basic = {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}
    for headers in ({"Origin": "https://evil.example"}, {"Origin": "http://127.0.0.1:9"}, {"Origin": "null"}):
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, additional_headers=basic | headers, subprotocols=["prefect"])  # type: ignore[list-item]
    own = prefect_api.removesuffix("/api")
    for token, origin in ((secret, None), (secret, own)):
        with connect(address, subprotocols=["prefect"], origin=origin) as events:  # type: ignore[list-item,arg-type]
            events.send(f'{{"type": "auth", "token": "{token}"}}')
            assert events.recv(timeout=20) == '{"type":"auth_success"}'
    with connect(address, subprotocols=["prefect"]) as events:  # type: ignore[list-item]
        events.send('{"type": "auth", "token": "xft:guessed"}')
        with pytest.raises(ConnectionClosed):
            events.recv(timeout=20)
    with connect(address) as events:  # older clients do not authenticate first
        events.send('{"type": "filter", "filter": {}}')
        with pytest.raises(ConnectionClosed):
            events.recv(timeout=20)


def test_the_secret_is_for_its_owner_and_stays(tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = server_auth(home)
    name, _, password = made.partition(":")
    assert name == "xft" and len(password) >= 43
    assert stat.S_IMODE((home / "server-auth").stat().st_mode) == 0o600
    assert server_auth(home) == made
    assert server_auth(tmp_path / "other") != made


@pytest.mark.parametrize("spoil", [lambda path: path.chmod(0o644), lambda path: path.write_text("")])
def test_a_secret_that_others_could_read_is_none(tmp_path: Path, spoil) -> None:  # type: ignore[no-untyped-def]
    made = server_auth(tmp_path)
    spoil(tmp_path / "server-auth")
    assert server_auth(tmp_path) not in ("", made)
    assert stat.S_IMODE((tmp_path / "server-auth").stat().st_mode) == 0o600


def test_several_that_start_at_once_agree_on_it(tmp_path: Path) -> None:
    barrier = threading.Barrier(8)

    def ask(_: int) -> str:
        barrier.wait()
        return server_auth(tmp_path)

    with ThreadPoolExecutor(8) as threads:
        assert len(set(threads.map(ask, range(8)))) == 1


def test_who_took_the_port_of_an_ended_server_is_not_told_the_secret(tmp_path: Path, prefect_api: str) -> None:
    (tmp_path / "locks").mkdir()
    (tmp_path / "locks" / "ui.lock").write_text("1\n")
    (tmp_path / "prefect-api").write_text(prefect_api)  # something listens there
    assert running_api(tmp_path) is None


def test_what_the_user_set_for_another_server_does_not_reach_ours() -> None:
    others = {"PREFECT_API_URL": "http://a/api", "PREFECT_SERVER_API_AUTH_STRING": "a:b", "PREFECT_API_AUTH_STRING": "a:b"}
    found = server_environment(others | {"HOME": "/h"}, "xft:x")
    assert not found.keys() & others.keys()
    assert (found["HOME"], found["XFT_SERVER_AUTH_STRING"]) == ("/h", "xft:x")


@pytest.mark.parametrize("module", ["flows.local.prefect_server", "tasks.servers.mlflow_server"])
def test_a_server_by_hand_needs_a_secret(module: str, tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XFT_SERVER", "PREFECT_API"))}
    needed = ["--backend-store-uri", f"sqlite:///{tmp_path}/m.db", "--artifacts-destination", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", module, *(needed if "mlflow" in module else [])], capture_output=True, text=True,
        env=environment | {"XFT_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: XFT_SERVER_AUTH_STRING must be name:password")


STALLING = """
import asyncio, time, uvicorn
from flows.local import prefect_server

prefect_server.STALLED_SECONDS = 1

async def app(scope, receive, send):
    pass

async def serve():
    serving = asyncio.create_task(server.serve())
    await asyncio.sleep(0.5)
    blocks_the_event_loop()
    server.should_exit = True
    await serving

def blocks_the_event_loop():
    time.sleep(2)

server = uvicorn.Server(uvicorn.Config(
    app, port=0, lifespan="off", callback_notify=prefect_server.expect_a_turn, timeout_notify=0))
asyncio.run(serve())
"""


def test_a_server_that_stalls_writes_where() -> None:
    done = subprocess.run([sys.executable, "-c", STALLING], capture_output=True, text=True, check=True)
    assert "Timeout (0:00:01)!" in done.stderr and "in blocks_the_event_loop" in done.stderr


FREED = """
import threading, time
from flows.local import prefect_server

class Left:
    def __del__(self):
        freed.append(threading.current_thread().name)

freed, count = [], 0
prefect_server.COLLECT_SECONDS, prefect_server.ALL_EVERY = 0.2, 2
old = Left()
old.itself, count = old, 1
prefect_server.collect_garbage_in_a_thread()
time.sleep(0.9)  # old objects are collected too, less often
del old
end = time.monotonic() + 1
while time.monotonic() < end:  # garbage in cycles, and more than enough new objects for Python to collect it here
    left = Left()
    left.itself, left.others, count = left, [[] for _ in range(1000)], count + 1
del left
end = time.monotonic() + 30  # a busy machine takes long; nothing in this thread creates garbage now
while len(freed) < count and time.monotonic() < end:
    time.sleep(0.1)
print(len(freed) == count > 1000, *set(freed))
"""


def test_garbage_is_never_freed_where_the_event_loop_runs() -> None:
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert done.stdout == "True garbage collection\n"
