"""What a contained program inherits from the process that grades: nothing that could change a verdict."""

import re
import shutil
import subprocess
import sys

import pytest

from xft_core.errors import SandboxError
from xft_core.sandbox.bubblewrap import Finished, SandboxMode, open_sandbox

# What `nohup`, `trap '' TERM`, a command in the background of a script, and `ulimit` pass on.
GRADER = """
import json, os, resource, signal, sys
from xft_core.sandbox.bubblewrap import PythonProgram, open_sandbox

if sys.argv[2] == "strange":
    for name in ("SIGHUP", "SIGINT", "SIGQUIT", "SIGTERM", "SIGUSR1", "SIGALRM", "SIGPIPE"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_STACK, (2**20, resource.getrlimit(resource.RLIMIT_STACK)[1]))
sandbox = open_sandbox(sys.argv[1])
command = ["/bin/sh", "-c", "grep -E '^Sig(Blk|Ign)' /proc/self/status; umask; ulimit -s; touch new; stat -c %a new"]
program = PythonProgram('''
import os, resource, signal
print(sorted((number, str(signal.getsignal(number))) for number in signal.valid_signals()))
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_STACK)[0])
''')
done = [sandbox.run(command, 60), sandbox.run(program, 60)]
print(json.dumps([(each.status, each.stdout.decode().replace("<function", ""), each.stderr.decode()) for each in done]))
"""

OF_THREADS = 1 << 31 | 1 << 32  # the C library keeps signals 32 and 33 to itself, and sets them when it needs them


def _skip_without(mode: SandboxMode) -> None:
    try:
        open_sandbox(mode)
    except SandboxError as error:
        pytest.skip(f"no sandbox on this machine: {error}")


def _seen(mode: SandboxMode, parent: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", GRADER, mode, parent], capture_output=True, text=True, check=True, timeout=300).stdout


@pytest.mark.parametrize("mode", ["bubblewrap", "unsafe"])
def test_a_program_sees_the_same_whatever_started_the_grader(mode: SandboxMode) -> None:
    _skip_without(mode)
    usual = _seen(mode, "usual")
    assert "SigBlk:\\t0000000000000000" in usual and "644" in usual
    ignored = re.search(r"SigIgn:\\t([0-9a-f]{16})", usual)
    assert ignored is not None and int(ignored[1], 16) & ~OF_THREADS == 0
    assert "default_int_handler" in usual
    assert _seen(mode, "strange") == usual


# multiprocessing ends the workers of a pool like this. Under a grader that ignores SIGTERM, one pool in five waited forever.
ENDS = """
import signal, sys
from xft_core.sandbox.bubblewrap import PythonProgram, open_sandbox

signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = "import subprocess\\nchild = subprocess.Popen(['sleep', '60'])\\nchild.terminate()\\nassert child.wait(9) == -15"
print(open_sandbox(sys.argv[1]).run(PythonProgram(child), 30))
"""


@pytest.mark.parametrize("mode", ["bubblewrap", "unsafe"])
def test_a_program_can_end_its_children_under_a_grader_that_ignores_the_signal(mode: SandboxMode) -> None:
    _skip_without(mode)
    done = subprocess.run([sys.executable, "-c", ENDS, mode], capture_output=True, text=True, check=True, timeout=100)
    assert done.stdout.strip() == str(Finished(0, b"", b""))


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_a_command_that_writes_to_a_closed_pipe_ends_by_the_signal() -> None:
    """Python ignores SIGPIPE, and what it starts by exec would too: then `yes` complains of a broken pipe."""
    done = open_sandbox("unsafe").run(["bash", "-c", "yes | head -1; echo ${PIPESTATUS[0]}"], 60)
    assert (done.stdout, done.stderr) == (b"y\n141\n", b"")
