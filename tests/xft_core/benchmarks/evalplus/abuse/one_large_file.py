"""Writes one file of 100 MB; right only if it succeeds."""
import io


def f(x):
    with io.open("/tmp/large", "wb") as stream:
        for _ in range(100):
            stream.write(bytes(10 ** 6))
    return x + 1
