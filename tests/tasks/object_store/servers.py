"""Two third-party S3 servers, started on free loopback ports: moto, and Ceph's gateway over an in-memory cluster."""

import shutil
import socket
import subprocess
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.tasks.object_store.proxy import ACCESS_KEY, SECRET_KEY

CEPH_PROGRAMS = ("ceph", "ceph-authtool", "ceph-mon", "ceph-osd", "monmaptool", "radosgw", "radosgw-admin")
CEPH_PACKAGES = "radosgw ceph-mon ceph-osd ceph-common"
OTHER_ACCESS_KEY, POOR_ACCESS_KEY = "AKIAIOSFODNN7ANOTHER", "AKIAIOSFODNN7NOQUOTA"  # of other users; all share one secret
START_SECONDS = 300

# One monitor, one storage daemon that keeps everything in memory, pools with one copy, and no statistics (no manager).
CONFIGURATION = """[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{monitor}/0]
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
keyring = {root}/keyring
mon_data = {root}/mon
osd_data = {root}/osd
rgw_data = {root}/rgw
run_dir = {root}
crash_dir = {root}
admin_socket =
pid_file =
log_file = {root}/$name.log
osd_objectstore = memstore
memstore_device_bytes = 4294967296
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
rgw_rados_pool_pg_num_min = 1
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
rgw_thread_pool_size = 32
rgw_frontends = beast endpoint=127.0.0.1:{gateway}
"""
CAPABILITIES = {
    "mon.": {"mon": "allow *"}, "client.admin": {"mon": "allow *", "osd": "allow *", "mgr": "allow *"},
    "osd.0": {"mon": "allow profile osd", "osd": "allow *"}}


@contextmanager
def moto() -> Iterator[tuple[str, int]]:
    """Yield the host and port of moto's server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield server.get_host_and_port()
    finally:
        server.stop()


@contextmanager
def ceph() -> Iterator[tuple[str, int]]:
    """Yield the host and port of a Ceph gateway with one user. Skip the test where Ceph is not installed."""
    if missing := [name for name in CEPH_PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"Ceph is not installed ({', '.join(missing)}): apt-get install {CEPH_PACKAGES}")
    with ExitStack() as ends:
        # Keep the path short: a socket's path may have at most 107 characters.
        root = Path(ends.enter_context(tempfile.TemporaryDirectory(prefix="xft-ceph-", dir="/tmp")))
        monitor, gateway = _free_port(), _free_port()
        fsid = str(uuid.uuid4())
        configuration = root / "ceph.conf"
        configuration.write_text(CONFIGURATION.format(root=root, fsid=fsid, monitor=monitor, gateway=gateway))

        def run(program: str, *arguments: str) -> None:
            done = subprocess.run(
                [program, "-c", str(configuration), *arguments], capture_output=True, text=True, timeout=START_SECONDS)
            assert done.returncode == 0, f"{program} {arguments}: {done.stderr or done.stdout}"

        def start(program: str, *arguments: str) -> subprocess.Popen[bytes]:
            log = ends.enter_context((root / f"{program}.out").open("wb"))
            process = subprocess.Popen(  # ends when the tests end, even after a crash
                ["setpriv", "--pdeathsig", "KILL", program, "-c", str(configuration), "-f", *arguments], stdout=log, stderr=log)
            ends.callback(process.wait)
            ends.callback(process.kill)
            return process

        for name, capabilities in CAPABILITIES.items():
            created = [] if name != "mon." else ["--create-keyring"]
            caps = [part for kind, allowed in capabilities.items() for part in ("--cap", kind, allowed)]
            run("ceph-authtool", str(root / "keyring"), *created, "--gen-key", "-n", name, *caps)
        run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor}]", str(root / "monmap"))
        run("ceph-mon", "--mkfs", "-i", "a", "--monmap", str(root / "monmap"), "--keyring", str(root / "keyring"))
        start("ceph-mon", "-i", "a")
        storage = str(uuid.uuid4())
        (root / "osd").mkdir()
        run("ceph", "osd", "new", storage)  # waits for the monitor
        run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", storage)
        start("ceph-osd", "-i", "0")
        for user, key in (("xft", ACCESS_KEY), ("another", OTHER_ACCESS_KEY), ("poor", POOR_ACCESS_KEY)):
            run("radosgw-admin", "user", "create", f"--uid={user}", f"--display-name={user}", f"--access-key={key}",
                f"--secret-key={SECRET_KEY}")
        run("radosgw-admin", "quota", "set", "--uid=poor", "--quota-scope=user", "--max-objects=0")
        run("radosgw-admin", "quota", "enable", "--uid=poor", "--quota-scope=user")
        _wait_until_up(start("radosgw", "-n", "client.admin"), gateway, root)
        yield "127.0.0.1", gateway


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def _wait_until_up(process: subprocess.Popen[bytes], port: int, root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10):
                return
        except OSError as error:
            says = (root / "radosgw.out").read_text()[-2000:]
            assert process.poll() is None and time.monotonic() < deadline, f"The gateway does not answer: {error}. {says}"
            time.sleep(0.2)
