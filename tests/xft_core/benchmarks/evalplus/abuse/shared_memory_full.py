"""Fills /dev/shm; right only if 100 MB fit."""
import io


def f(x):
    for number in range(10):
        with io.open(f"/dev/shm/{number}", "wb") as stream:
            stream.write(bytes(10 ** 7))
    return x + 1
