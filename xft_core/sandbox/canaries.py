"""Programs that test a sandbox: it must run one, report one that fails, and stop one that does not end."""

import re
from dataclasses import dataclass

from xft_core.sandbox.seccomp import call_number

# Fails if a wall is missing, and names it: so this program must pass.
WALLS = """
import ctypes, os, socket, sys
NEW_USER_NAMESPACE = 0x10000000
def missing(wall):
    sys.exit("the sandbox does not hold: " + wall)
if os.getuid() == 0:
    missing("the program is root")
if not set(os.environ) <= {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE", "PWD", "PYTHONHASHSEED", "OMP_NUM_THREADS",
                           "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"}:
    missing("the environment is not bare")
if {line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]} - {"lo"}:
    missing("there is a network")
for directory in ("/", "/usr", sys.prefix, "/proc/sys/kernel"):
    if os.access(directory, os.W_OK) and not os.statvfs(directory).f_flag & os.ST_RDONLY:
        missing(directory + " can be written")
if sum(name.isdigit() for name in os.listdir("/proc")) > 8:
    missing("processes outside are seen")
with open("file", "w") as stream:
    stream.write("x")
if ctypes.CDLL(None).unshare(NEW_USER_NAMESPACE) == 0:
    missing("a further user namespace can be made")
"""


# Fails if the filter lets a call through, and names it. Without the filter, any program can make these calls.
CALLS = """
import ctypes, os, socket, sys
NAMESPACE_AND_SIGCHLD = 0x10000000 | 17
library = ctypes.CDLL(None)
def let_through(call):
    sys.exit("the sandbox does not hold: the system call " + call + " is let through")
if "Seccomp:\t2" not in open("/proc/self/status").read():
    sys.exit("the sandbox does not hold: the system call filter is missing")
for name, number, arguments in (
    ("memfd_create", @memfd_create@, (b"x", 0)),
    ("shmget", @shmget@, (0, 4096, 0o600)),
    ("keyctl", @keyctl@, (0, -3, 0)),
    ("unshare", @unshare@, (0,)),
    ("clone", @clone@, (NAMESPACE_AND_SIGCHLD, 0, 0, 0, 0)),
    ("fcntl(F_SETPIPE_SZ)", @fcntl@, (os.pipe()[0], 1031, 65536)),
    ("prctl(PR_SET_DUMPABLE)", @prctl@, (4, 1, 0, 0, 0)),
):
    answer = library.syscall(ctypes.c_long(number), *(a if isinstance(a, bytes) else ctypes.c_long(a) for a in arguments))
    if name == "clone" and answer == 0:  # the child that there must not be
        os._exit(0)
    if answer != -1:
        let_through(name)
for family in (16, 38, 40):  # netlink, the kernel's cryptography, virtual machines
    try:
        socket.socket(family, socket.SOCK_RAW if family == 16 else socket.SOCK_STREAM)
    except OSError:
        continue
    let_through("socket(%d)" % family)
socket.socketpair()
"""


@dataclass(frozen=True)
class Canary:
    """A program, the time it gets, and how it must end: an exit status, or None if the sandbox must end it."""

    name: str
    program: str
    seconds: float
    status: int | None


def canaries() -> tuple[Canary, ...]:
    """The canaries for this machine. The filter must know its architecture."""
    return (
        Canary("a program that must pass", WALLS + _numbered(CALLS), 30, 0),
        Canary("a program that must fail", "raise SystemExit(3)", 30, 3),
        Canary("a program that must be stopped", "while True: pass", 0.5, None),
    )


def _numbered(program: str) -> str:
    """A program with each @name@ replaced by the number of that system call on this machine."""
    return re.sub("@([a-z_]+)@", lambda match: str(call_number(match[1])), program)
