"""Twenty processes that each really use a gigabyte."""
import posix
import time


def f(x):
    for _ in range(20):
        if posix.fork() == 0:
            kept = bytearray(10 ** 9)
            for place in range(0, len(kept), 4096):
                kept[place] = 1
            time.sleep(60)
            posix._exit(0)
    time.sleep(60)
    return x + 1
