import errno
import json
import os
import platform
import re
import struct
from pathlib import Path

import pytest

from xft_core.errors import SandboxError
from xft_core.sandbox.bubblewrap import PythonProgram, Sandbox, open_sandbox
from xft_core.sandbox.seccomp import ALLOW, ARCHITECTURES, CONDITIONAL, KILL_PROCESS, REFUSED, build_filter, call_number

FOREIGN = {"x86_64": 0x40000003, "aarch64": 0x40000028}  # 32-bit x86 and ARM
NUMBERS = {"x86_64": ("/usr/include/x86_64-linux-gnu/asm/unistd_64.h", r"#define __NR_(\w+)\s+(\d+)"),
           "aarch64": ("/usr/include/asm-generic/unistd.h", r"#define __NR(?:3264)?_(\w+)\s+(\d+)")}
NEEDED = {"x86_64": {"read": 0, "write": 1, "futex": 202, "execve": 59, "rseq": 334, "membarrier": 324, "epoll_wait": 232,
                     "eventfd2": 290, "sendfile": 40, "copy_file_range": 326, "pidfd_open": 434, "statx": 332},
          "aarch64": {"read": 63, "write": 64, "futex": 98, "execve": 221, "rseq": 293, "membarrier": 283,
                      "epoll_pwait": 22, "eventfd2": 19, "sendfile": 71, "copy_file_range": 285, "pidfd_open": 434,
                      "statx": 291}}


def outcome(machine: str, number: int, *arguments: int, architecture: int | None = None) -> int:
    """Run the filter for ``machine`` as the kernel does, and return its answer to a call: an error number, 0 for a call that
    seems to succeed, or ALLOW or KILL_PROCESS."""
    program = list(struct.iter_unpack("=HBBI", build_filter(machine)))
    words = (*arguments, *(6 - len(arguments)) * (0,))
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, architecture or ARCHITECTURES[machine][0], 0,
                       *(word & 0xFFFFFFFFFFFFFFFF for word in words))
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, operand = program[position]
        position += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, operand)[0]
        elif code == 0x06:
            return operand if operand in (ALLOW, KILL_PROCESS) else operand & 0xFFFF
        else:
            holds = {0x15: accumulator == operand, 0x25: accumulator > operand, 0x45: bool(accumulator & operand)}[code]
            position += if_true if holds else if_false


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_what_is_refused_and_what_is_not(machine: str) -> None:
    for name in REFUSED:
        number = call_number(name, machine)
        if number is not None:
            assert outcome(machine, number) == errno.ENOSYS, name
            assert outcome(machine, number, architecture=FOREIGN[machine]) == KILL_PROCESS
    for name, number in NEEDED[machine].items():
        assert outcome(machine, number) == ALLOW, name
    for number in (0x40000000, 0x40000001, 457, 5000, -1):
        assert outcome(machine, number) == errno.ENOSYS, number


# Arguments and the expected answer, by call.
ANSWERS: dict[str, list[tuple[tuple[int, ...], int]]] = {
    "socket": [((1, 1, 0), ALLOW), ((2, 1, 6), ALLOW), ((10, 2, 17), ALLOW), ((2 + 2**32, 1, 0), ALLOW),
               ((16, 3, 0), errno.EAFNOSUPPORT), ((40, 1, 0), errno.EAFNOSUPPORT), ((38, 5, 0), errno.EAFNOSUPPORT),
               ((17, 3, 0), errno.EAFNOSUPPORT), ((0, 0, 0), errno.EAFNOSUPPORT), ((2, 1, 262), errno.EPROTONOSUPPORT),
               ((2, 3, 255), errno.EPROTONOSUPPORT)],
    "socketpair": [((1, 1, 0), ALLOW), ((30, 1, 0), errno.EAFNOSUPPORT)],
    "clone": [((0x3D0F00, 0), ALLOW), ((17,), ALLOW), ((0x4111,), ALLOW),
              *(((1 << bit | 17,), errno.EPERM) for bit in (17, 25, 26, 27, 28, 29, 30))],
    "fcntl": [((3, 1), ALLOW), ((3, 1032), ALLOW), ((3, 1031, 2**20), errno.EPERM), ((1031, 1), ALLOW)],
    "prctl": [((15, 0), ALLOW), ((1, 9), ALLOW), ((4, 0), errno.EPERM), ((22, 2), errno.EPERM), ((35, 1), errno.EPERM)],
    "setsockopt": [((3, 1, 2), ALLOW), ((3, 6, 7), ALLOW), ((3, 1, 7), 0), ((3, 1, 8), 0), ((3, 1, 32), 0)],
    "setpriority": [((0, 0, 19), 0)], "ioprio_set": [((1, 0, 3), 0)], "sched_setaffinity": [((0, 8), 0)],
    "sched_setparam": [((0,), 0)], "sched_setscheduler": [((0, 5), 0)], "sched_setattr": [((0,), 0)],
    "ioctl": [((0, 0x5401), ALLOW), ((0, 0x5412), errno.EPERM), ((0, 0x541C), errno.EPERM)],
    "mmap": [((0, 2**40, 3, 0x22), ALLOW), ((0, 2**40, 3, 0x1), ALLOW), ((0, 2**24, 3, 0x21), ALLOW),
             ((0, 2**24 + 1, 3, 0x21), errno.ENOMEM), ((0, 2**32, 3, 0x21), errno.ENOMEM),
             ((0, 2**24 + 1, 3, 0x23), errno.ENOMEM)],
}


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_some_are_refused_by_their_arguments(machine: str) -> None:
    assert set(ANSWERS) == set(CONDITIONAL)
    for name, cases in ANSWERS.items():
        number = call_number(name, machine)
        assert number is not None
        for arguments, answer in cases:
            assert outcome(machine, number, *arguments) == answer, (name, arguments)


@pytest.mark.parametrize("machine", NUMBERS)
def test_numbers_are_those_of_the_kernel(machine: str) -> None:
    file, pattern = NUMBERS[machine]
    if not os.path.exists(file):
        pytest.skip(f"{file} is not here (Debian's linux-libc-dev)")
    known = {name: int(number) for name, number in re.findall(pattern, Path(file).read_text())}
    for name in REFUSED | CONDITIONAL:
        number = call_number(name, machine)
        if number is None:
            assert name not in known, name
        else:
            assert known[name] == number, name


def test_an_unknown_processor_is_named() -> None:
    with pytest.raises(SandboxError, match=r"'s390x'.*x86_64 and aarch64"):
        build_filter("s390x")


TRY_ALL = """
import ctypes, json, sys
library = ctypes.CDLL(None, use_errno=True)
found = {}
for name, number in json.load(sys.stdin).items():
    ctypes.set_errno(0)
    library.syscall(*(ctypes.c_long(value) for value in (number, -1, -1, -1, -1, -1, -1)))
    found[name] = ctypes.get_errno()
print(json.dumps(found))
"""
# getpid, by its number on 32-bit x86 and through 32-bit x86's way into the kernel.
INTERRUPT_80 = """
import ctypes, mmap
code = mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=7)
code.write(bytes.fromhex("b814000000cd80c3"))
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())
"""
SIGSYS = 31


@pytest.fixture(scope="module")
def bubblewrap() -> Sandbox:
    try:
        return open_sandbox("bubblewrap")
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def test_every_refused_call_fails_in_a_sandbox(bubblewrap: Sandbox) -> None:
    # Never run these outside: with these arguments they end the program or stop its terminal.
    numbers = {name: number for name in REFUSED if (number := call_number(name)) is not None and name != "vhangup"}
    inside = bubblewrap.run(PythonProgram(TRY_ALL), 30, stdin=json.dumps(numbers).encode())
    assert inside.status == 0, inside.stderr
    assert {name for name, error in json.loads(inside.stdout).items() if error != errno.ENOSYS} == set()


def test_it_is_the_filter_that_refuses() -> None:
    """Without the filter most of these calls exist, and complain about their arguments or about missing rights."""
    harmless = ("memfd_create", "shmget", "semget", "msgget", "mq_open", "keyctl", "add_key", "io_setup", "inotify_init1",
                "process_vm_readv", "splice", "tee", "kcmp", "unshare", "clone3", "name_to_handle_at", "mbind", "move_pages")
    numbers = {name: call_number(name) for name in harmless}
    outside = Sandbox("unsafe").run(PythonProgram(TRY_ALL), 30, stdin=json.dumps(numbers).encode())
    assert sum(error != errno.ENOSYS for error in json.loads(outside.stdout).values()) > 12, outside


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the machine code is for x86_64")
def test_another_architecture_s_calls_end_the_program(bubblewrap: Sandbox) -> None:
    assert bubblewrap.run(PythonProgram(INTERRUPT_80), 30).status == 128 + SIGSYS
