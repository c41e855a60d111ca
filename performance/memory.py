"""Peak memory of a command, for the benchmarks."""

import subprocess
import threading
import time
from pathlib import Path


def peak_memory(command: list[str]) -> float:
    """Return the peak anonymous memory (RssAnon) of a command, or of one process that it started, in bytes, read every 5 ms.

    Mapped files, which the kernel may drop, do not count. If the command fails, exits with its message.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while process.poll() is None:
            try:
                started = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="ascii").split()
                for number in [process.pid, *started]:
                    lines = Path(f"/proc/{number}/status").read_text(encoding="utf-8").splitlines()
                    peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
            except OSError:  # one of them has just ended
                pass
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    _, errors = process.communicate()
    watcher.join()
    if process.returncode:
        raise SystemExit(errors)
    return peak * 1024.0
