"""Memory that a program and everything it started hold together: their own pages, and what the kernel keeps for them.

The kernel limits the address space of each process. A limit on the total would need a control group, which few machines
let users create. So the total is read from /proc, at least ten times a second, and more often the less is left:

    pages of processes     resident and swapped pages, and the page tables; pages that several processes share count once
    files in memory        all of /tmp and /dev/shm, whether any process has them open or not, and each file's inode
    anonymous shared       a mapping that lost its pages, or all but one, still holds them: each counts with its largest
                           possible size, which the system-call filter bounds
    sockets                each counts with the largest buffers it may have, since their contents cannot be seen

Pipes are not counted: without F_SETPIPE_SZ, which the filter refuses, the kernel bounds the pipes of one user to 64 MB.
Beyond that, all pipes of the user hold little, and other processes that write more have to wait. So the open files of all
processes together are bounded here too (from Linux 6.2 on, which reports how many a process has).
A process that may not be inspected (a container's root without CAP_SYS_PTRACE) counts with its resident pages only.
"""

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from xft_core.sandbox.seccomp import SHARED_MAPPING_BYTES

SECONDS_BETWEEN_READINGS = 0.1
LEAST_SECONDS = 0.01  # any less, and the readings would occupy a whole core
FASTEST_FILL = 8 * 2**30  # bytes a second that programs on several cores may fill; sets how soon to read again
INODE_BYTES = 1280  # an inode of tmpfs and its name's entry; measured on Linux 6.18, rounded up
SOCKET_BYTES = 2**10  # a socket itself, without its buffers
OPEN_FILES = 1000  # up to 1,024 pipes of a user hold 64 KB each
FILE_SYSTEMS_IN_MEMORY = ("/tmp", "/dev/shm")
ANONYMOUS_SHARED = "/dev/zero (deleted)"  # the kernel's name for such a mapping


class MemoryWatch:
    """While in the context, call ``exceeded`` once as soon as process ``pid`` and its descendants hold more than
    ``bytes_allowed``, or have more than OPEN_FILES files open."""

    def __init__(self, pid: int, bytes_allowed: int, exceeded: Callable[[], None]) -> None:
        self._pid, self._allowed, self._exceeded = pid, bytes_allowed, exceeded
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        left = self._allowed
        while not self._done.wait(min(max(left / FASTEST_FILL, LEAST_SECONDS), SECONDS_BETWEEN_READINGS)):
            processes = tree(self._pid)
            room = self._allowed - in_kernel(processes)
            left = room - sum(map(_resident, processes))
            # That sum counts shared pages once for each process; counting them exactly takes longer.
            if room < 0 or (left < 0 and (left := room - sum(map(_proportional, processes))) < 0) or (
                    sum(map(_open_files, processes)) > OPEN_FILES):
                self._exceeded()
                return


def tree(pid: int) -> list[int]:
    """A process and its descendants. In a process namespace, orphans are children of the first process there."""
    found = [pid]
    for process in found:
        try:
            for thread in Path(f"/proc/{process}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def in_kernel(processes: Iterable[int]) -> int:
    """Bytes that the kernel may hold for ``processes`` besides their pages, in namespaces other than this process's."""
    file_systems, networks, mappings = dict[int, int](), dict[int, int](), set[str]()
    ours = {os.stat(path).st_dev for path in FILE_SYSTEMS_IN_MEMORY if os.path.isdir(path)}
    our_network = os.stat("/proc/self/ns/net").st_ino
    for process in processes:
        try:
            for path in FILE_SYSTEMS_IN_MEMORY:
                place = f"/proc/{process}/root{path}"
                device = os.stat(place).st_dev
                if device not in ours:
                    file_systems[device] = _file_system(place)
            network = os.stat(f"/proc/{process}/ns/net").st_ino
            if network not in {our_network, *networks}:
                networks[network] = _sockets(process)
            mappings |= _anonymous_shared(process)
        except OSError:  # it has ended, is not set up yet, or may not be inspected
            continue
    return sum(file_systems.values()) + sum(networks.values()) + len(mappings) * SHARED_MAPPING_BYTES


def _file_system(place: str) -> int:
    found = os.statvfs(place)
    return (found.f_blocks - found.f_bfree) * found.f_frsize + (found.f_files - found.f_ffree) * INODE_BYTES


def _sockets(process: int) -> int:
    """Bytes of all sockets in a process's network namespace, including those that no process has open."""
    counts = dict[str, int]()
    for line in Path(f"/proc/{process}/net/sockstat").read_text().splitlines():
        name, _, values = line.partition(":")
        counts[name] = int(values.split()[1])
    tcp = min(counts["TCP"], counts["sockets"])
    largest = sum(int(Path(f"/proc/sys/net/core/{name}mem_default").read_text()) for name in "rw")
    largest_tcp = sum(int(Path(f"/proc/sys/net/ipv4/tcp_{name}mem").read_text().split()[2]) for name in "rw")
    return counts["sockets"] * SOCKET_BYTES + tcp * largest_tcp + (counts["sockets"] - tcp) * largest


def _anonymous_shared(process: int) -> set[str]:
    """Inodes of the anonymous shared mappings of a process."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split(maxsplit=5)[4] for line in lines if line.endswith(ANONYMOUS_SHARED)}


def _open_files(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/fd").st_size
    except OSError:  # it has ended
        return 0


def _resident(pid: int) -> int:
    sizes = _sizes(Path(f"/proc/{pid}/status"))
    return sum(sizes.get(name, 0) for name in ("VmRSS", "VmSwap", "VmPTE", "HugetlbPages")) - sizes.get("RssShmem", 0)


def _proportional(pid: int) -> int:
    """Like ``_resident``, but pages that several processes share are divided among them."""
    sizes, status = _sizes(Path(f"/proc/{pid}/smaps_rollup")), _sizes(Path(f"/proc/{pid}/status"))
    if "Pss" not in sizes:
        return _resident(pid)
    shared_files = sizes.get("Pss_Shmem", 0)  # they are counted with their file systems
    return sizes["Pss"] + sizes.get("SwapPss", 0) - shared_files + status.get("VmPTE", 0) + status.get("HugetlbPages", 0)


def _sizes(path: Path) -> dict[str, int]:
    """The sizes that a file below /proc gives in kilobytes, as bytes by field."""
    try:
        lines = path.read_text().splitlines()
    except OSError:  # it has ended
        return {}
    return {name: int(value.split()[0]) * 1024
            for name, _, value in (line.partition(":") for line in lines) if value.endswith(" kB")}
