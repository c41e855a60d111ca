"""Programs that hold memory that no per-process limit counts: each is ended, and the amount is measured from outside."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from xft_core.errors import SandboxError
from xft_core.sandbox.bubblewrap import PythonProgram, Resources, Sandbox, open_sandbox

ALLOWED = 300 * 2**20
# A program continues between two checks, and other programs on this machine use memory too.
SPARE = 450 * 2**20
START = "import ctypes, mmap, os, socket, time\n"
HOLDERS = {
    "mappings without pages": """
kept = []
while True:
    kept.append(mmap.mmap(-1, 2**24))
    kept[-1].write(bytes(2**24))
    kept[-1].madvise(mmap.MADV_DONTNEED)
""",
    "remainders of mappings": """
library = ctypes.CDLL(None)
library.mmap.restype = ctypes.c_void_p
while True:
    at = library.mmap(None, ctypes.c_size_t(2**24), 3, 0x21, -1, ctypes.c_long(0))
    ctypes.memset(at, 1, 2**24)
    library.munmap(ctypes.c_void_p(at + 4096), ctypes.c_size_t(2**24 - 4096))
""",
    "files and pages together": """
for name in ("/tmp/a", "/tmp/b", "/tmp/c", "/tmp/d"):
    with open(name, "wb") as stream:
        stream.write(bytes(60 * 2**20))
    os.unlink(name) if name == "/tmp/d" else None
kept = bytearray(os.urandom(2**20) * 120)
time.sleep(20)
""",
    "attributes of files": """
for number in range(10**6):
    os.mkdir(f"/tmp/{number}")
    for attribute in range(16):
        os.setxattr(f"/tmp/{number}", f"user.{attribute}", bytes(60_000))
""",
    "buffers of sockets": """
for _ in range(4):
    os.fork()
kept = []
while True:
    try:
        kept.append(socket.socketpair())
        for one in kept[-1]:
            one.setblocking(False)
            try:
                while True:
                    one.send(bytes(65536))
            except BlockingIOError:
                pass
    except OSError:
        time.sleep(20)
""",
    "connections": """
listener, kept = socket.create_server(("127.0.0.1", 0)), []
while True:
    try:
        kept += [socket.create_connection(listener.getsockname()), listener.accept()[0]]
    except OSError:
        time.sleep(20)
""",
    "pages of many processes": """
for _ in range(4):
    os.fork()
kept = []
for _ in range(60):
    kept.append(os.urandom(2**20))
    time.sleep(0.02)
time.sleep(20)
""",
}


class Peak:
    """Measure how far the memory in use rises within the context."""

    def __enter__(self) -> "Peak":
        self._before, self.bytes, self._done = _in_use(), 0, threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.bytes = max(self.bytes, _in_use() - self._before)


def _in_use() -> int:
    sizes = {name: int(value.split()[0]) for name, _, value in (
        line.partition(":") for line in Path("/proc/meminfo").read_text().splitlines())}
    return (sizes["MemTotal"] - sizes["MemAvailable"]) * 1024


@pytest.fixture(scope="module")
def bubblewrap() -> Sandbox:
    try:
        return open_sandbox("bubblewrap")
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


@pytest.mark.parametrize("name", HOLDERS)
def test_what_the_kernel_holds_counts(name: str, bubblewrap: Sandbox) -> None:
    started = time.monotonic()
    with Peak() as peak:
        done = bubblewrap.run(PythonProgram(START + HOLDERS[name]), 20, resources=replace(Resources(), resident_bytes=ALLOWED))
    assert done.status not in (0, None), done
    assert time.monotonic() - started < 15 and peak.bytes < ALLOWED + SPARE


def test_many_small_files_count(bubblewrap: Sandbox) -> None:
    program = "import os\nfor n in range({}): os.close(os.open(f'/tmp/{{n}}', os.O_CREAT))"
    allowed = replace(Resources(), resident_bytes=40 * 2**20)
    assert bubblewrap.run(PythonProgram(program.format(1000)), 20, resources=allowed).status == 0
    assert bubblewrap.run(PythonProgram(program.format(10**6)), 20, resources=allowed).status not in (0, None)
