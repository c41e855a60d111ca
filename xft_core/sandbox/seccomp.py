"""The system calls that a contained program cannot make: a seccomp filter, as ``bwrap --seccomp`` takes it.

Linux has some 370 system calls, and a graded program needs few of them. The filter refuses calls that hold memory which no
limit of a process counts (memfd, System V segments, message queues), calls that share things with programs outside
(keyrings), that create or change namespaces and mounts, or that look into other processes, and young parts of the kernel
with a history of faults (io_uring, bpf, userfaultfd). Most refused calls return ENOSYS, as on a kernel built without them,
which libraries can handle.

The filter does not use libseccomp: that would have to be installed on every machine in addition to bubblewrap, its Python
binding is not on the package index, and all it would save is ``_instruction`` and ``_assemble``.
"""

import errno
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from xft_core.errors import SandboxError

# The calls that are refused whatever their arguments: numbers on x86_64 and on aarch64, None if the call does not exist.
REFUSED: dict[str, tuple[int | None, int | None]] = {
    # Memory outside every address space, and queues.
    "memfd_create": (319, 279), "memfd_secret": (447, 447),
    "shmget": (29, 194), "shmctl": (31, 195), "shmat": (30, 196), "shmdt": (67, 197),
    "semget": (64, 190), "semctl": (66, 191), "semtimedop": (220, 192), "semop": (65, 193),
    "msgget": (68, 186), "msgctl": (71, 187), "msgrcv": (70, 188), "msgsnd": (69, 189),
    "mq_open": (240, 180), "mq_unlink": (241, 181), "mq_timedsend": (242, 182), "mq_timedreceive": (243, 183),
    "mq_notify": (244, 184), "mq_getsetattr": (245, 185),
    "splice": (275, 76), "vmsplice": (278, 75), "tee": (276, 77), "remap_file_pages": (216, 234),
    "io_setup": (206, 0), "io_destroy": (207, 1), "io_submit": (209, 2), "io_cancel": (210, 3), "io_getevents": (208, 4),
    "io_pgetevents": (333, 292),
    "inotify_init": (253, None), "inotify_init1": (294, 26), "inotify_add_watch": (254, 27), "inotify_rm_watch": (255, 28),
    "fanotify_init": (300, 262), "fanotify_mark": (301, 263),
    # Keyrings: the session keyring is the grader's.
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # Other processes.
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "pidfd_getfd": (438, 438), "kcmp": (312, 272),
    # Parts of the kernel that run programs, or act behind a program's back.
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "bpf": (321, 280),
    "userfaultfd": (323, 282), "perf_event_open": (298, 241), "seccomp": (317, 277),
    # Namespaces and mounts. clone3 takes its flags where a filter cannot look; if refused, the C library calls clone.
    "unshare": (272, 97), "setns": (308, 268), "clone3": (435, 435),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265),
    # The machine.
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105), "finit_module": (313, 273),
    "delete_module": (176, 106), "reboot": (169, 142), "syslog": (103, 116), "vhangup": (153, 58),
    "settimeofday": (164, 170), "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171),
    "sethostname": (170, 161), "setdomainname": (171, 162), "lookup_dcookie": (212, 18), "nfsservctl": (180, 42),
    "personality": (135, 92), "mbind": (237, 235), "set_mempolicy": (238, 237), "set_mempolicy_home_node": (450, 450),
    "migrate_pages": (256, 238), "move_pages": (279, 239),
    # Only on x86.
    "ioperm": (173, None), "iopl": (172, None), "modify_ldt": (154, None), "uselib": (134, None), "ustat": (136, None),
    "sysfs": (139, None), "_sysctl": (156, None), "create_module": (174, None), "get_kernel_syms": (177, None),
    "query_module": (178, None),
}
NEWEST = 456  # futex_requeue; later calls are refused too, and so is x32 (x86_64 with 0x40000000 added)
CONDITIONAL: dict[str, tuple[int, int]] = {
    "socket": (41, 198), "socketpair": (53, 199), "clone": (56, 220), "fcntl": (72, 25), "prctl": (157, 167),
    "setsockopt": (54, 208), "ioctl": (16, 29), "mmap": (9, 222), "setpriority": (141, 140), "ioprio_set": (251, 30),
    "sched_setaffinity": (203, 122), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setattr": (314, 274)}
# Linux's number for each architecture, as the kernel passes it to a filter, and the column in the tables above.
ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}

AF_UNIX, AF_INET, AF_INET6 = 1, 2, 10
UNIX_OR_DEFAULT_PROTOCOL, IPPROTO_TCP, IPPROTO_UDP = (0, 1), 6, 17
NEW_NAMESPACE_FLAGS = 0x7E020000  # CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ = 1024, 1026, 1031
PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_MM = 4, 22, 35
SOL_SOCKET, BUFFER_SIZES = 1, (7, 8, 32, 33)  # SO_SNDBUF, SO_RCVBUF and their FORCE
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
MAP_SHARED_BIT, MAP_ANONYMOUS = 0x01, 0x20
# The largest anonymous shared mapping. Its pages stay as long as any part of it is mapped, so it counts in full.
SHARED_MAPPING_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Test:
    """A test of one argument (its lower 32 bits, or with ``upper`` the upper ones): whether it is among ``values``, or with
    ``negated`` is not; or whether it has any of ``bits``; or is above ``above``."""

    argument: int
    values: tuple[int, ...] = ()
    negated: bool = False
    bits: int = 0
    above: int = 0
    upper: bool = False


_SHARED_ANONYMOUS = Test(3, bits=MAP_SHARED_BIT), Test(3, bits=MAP_ANONYMOUS)


@dataclass(frozen=True)
class Rule:
    """A call that fails with ``error`` if all ``tests`` hold, or if there are none. With error 0 it seems to succeed, but
    does nothing."""

    call: str
    error: int
    tests: tuple[Test, ...]


RULES = (
    *(Rule(call, errno.EAFNOSUPPORT, (Test(0, (AF_UNIX, AF_INET, AF_INET6), negated=True),))
      for call in ("socket", "socketpair")),
    *(Rule(call, errno.EPROTONOSUPPORT, (Test(2, (*UNIX_OR_DEFAULT_PROTOCOL, IPPROTO_TCP, IPPROTO_UDP), negated=True),))
      for call in ("socket", "socketpair")),
    Rule("clone", errno.EPERM, (Test(0, bits=NEW_NAMESPACE_FLAGS),)),
    # Larger pipes; leases, which hold up anyone who opens a file of the same user; notice of what others do with files.
    Rule("fcntl", errno.EPERM, (Test(1, (F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ)),)),
    # The memory watch must be able to inspect the process.
    Rule("prctl", errno.EPERM, (Test(0, (PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_SET_MM)),)),
    # Programs that ask for larger buffers keep those they have; the kernel does the same above its own bound.
    Rule("setsockopt", 0, (Test(1, (SOL_SOCKET,)), Test(2, BUFFER_SIZES))),
    # All processes of a sample get an equal share of the processors. One that gave way to another that computes would seem to
    # wait, and waiting does not count as its time.
    *(Rule(call, 0, ()) for call in (
        "setpriority", "ioprio_set", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "sched_setattr")),
    Rule("ioctl", errno.EPERM, (Test(1, (TIOCSTI, TIOCLINUX)),)),
    Rule("mmap", errno.ENOMEM, (*_SHARED_ANONYMOUS, Test(1, above=SHARED_MAPPING_BYTES))),
    Rule("mmap", errno.ENOMEM, (*_SHARED_ANONYMOUS, Test(1, above=0, upper=True))),
)

# <linux/bpf_common.h>, <linux/filter.h>, <linux/seccomp.h>
LOAD_WORD, JUMP_EQUAL, JUMP_GREATER, JUMP_ANY_BIT, RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
ALLOW, KILL_PROCESS, ERROR = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, ARCHITECTURE_AT, ARGUMENTS_AT = 0, 4, 16


@cache
def build_filter(machine: str | None = None) -> bytes:
    """The filter for ``machine`` (default: this one), an array of struct sock_filter. Raises SandboxError if there is none."""
    machine = machine or platform.machine()
    if machine not in ARCHITECTURES:
        raise SandboxError(
            f"There is no system-call filter for processors of type {machine!r}; the sandbox has one for "
            f"{' and '.join(ARCHITECTURES)}. Grade on a machine of one of these types.")
    architecture, column = ARCHITECTURES[machine]
    return b"".join(_assemble(architecture, column))


def call_number(name: str, machine: str | None = None) -> int | None:
    """The number of a refused or conditional call on ``machine`` (default: this one); None if it does not exist there."""
    return (REFUSED | CONDITIONAL)[name][ARCHITECTURES[machine or platform.machine()][1]]


def _assemble(architecture: int, column: int) -> Iterator[bytes]:
    yield _instruction(LOAD_WORD, ARCHITECTURE_AT)
    yield _instruction(JUMP_EQUAL, architecture, 1, 0)
    yield _instruction(RETURN, KILL_PROCESS)  # a call with another architecture's numbers, as 32-bit x86 makes
    yield _instruction(LOAD_WORD, NUMBER_AT)
    yield _instruction(JUMP_GREATER, NEWEST, 0, 1)
    yield _instruction(RETURN, ERROR | errno.ENOSYS)
    for numbers in REFUSED.values():
        number = numbers[column]
        if number is not None:
            yield _instruction(JUMP_EQUAL, number, 0, 1)
            yield _instruction(RETURN, ERROR | errno.ENOSYS)
    for rule in RULES:
        body = list(_rule_body(rule))
        yield _instruction(JUMP_EQUAL, CONDITIONAL[rule.call][column], 0, len(body))
        yield from body
    yield _instruction(RETURN, ALLOW)


def _rule_body(rule: Rule) -> Iterator[bytes]:
    """Return the rule's error if its tests hold; otherwise continue after it, with the call's number loaded again."""
    sizes = [1 + max(1, len(test.values)) for test in rule.tests]
    for index, test in enumerate(rule.tests):
        yield _instruction(LOAD_WORD, ARGUMENTS_AT + 8 * test.argument + 4 * test.upper)
        operation, operands = (JUMP_EQUAL, test.values) if test.values else (
            (JUMP_ANY_BIT, (test.bits,)) if test.bits else (JUMP_GREATER, (test.above,)))
        # Counted from the instruction after this test: the next one is at 0, the one after the return at ``otherwise``.
        otherwise = sum(sizes[index + 1:]) + 1
        found, not_found = (otherwise, 0) if test.negated else (0, otherwise)
        for position, operand in enumerate(operands):
            left = len(operands) - position - 1
            yield _instruction(operation, operand, left + found, not_found if left == 0 else 0)
    yield _instruction(RETURN, ERROR | rule.error)
    yield _instruction(LOAD_WORD, NUMBER_AT)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
