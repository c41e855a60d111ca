"""Programs that show whether a sandbox works: it must run one, report one that fails, stop one that does not end."""

from dataclasses import dataclass

# Fails, naming the wall, where a wall is missing: so this program must pass.
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
if {name for _, name in socket.if_nameindex()} - {"lo"}:
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


@dataclass(frozen=True)
class Canary:
    """A program, the time it gets, and how it must end: an exit status, or None for ended by the sandbox."""

    name: str
    program: str
    seconds: float
    status: int | None


CANARIES = (
    Canary("a program that must pass", WALLS, 30, 0),
    Canary("a program that must fail", "raise SystemExit(3)", 30, 3),
    Canary("a program that must be stopped", "while True: pass", 0.5, None),
)
