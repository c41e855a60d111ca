"""Fills the disk; right only if it can write 400 MB."""
import io


def f(x):
    written = 0
    for number in range(10):
        with io.open(f"/tmp/{number}", "wb") as stream:
            for _ in range(40):
                written += stream.write(bytes(10 ** 6))
    return x + 1 if written >= 400 * 10 ** 6 else None
