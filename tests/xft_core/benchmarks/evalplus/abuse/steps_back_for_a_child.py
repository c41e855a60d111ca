"""Right only if it can compute past its limit while it seems to wait for a processor."""
import posix
import time


def f(x):
    posix.sched_setaffinity(0, {min(posix.sched_getaffinity(0))})
    reading, writing = posix.pipe()
    if posix.fork() == 0:
        started = time.process_time()
        while time.process_time() - started < 2.5:
            pass
        posix.write(writing, b"done")
        posix._exit(0)
    posix.set_blocking(reading, False)
    posix.nice(19)
    while True:
        try:
            if posix.read(reading, 4):
                return x + 1
        except BlockingIOError:
            pass
