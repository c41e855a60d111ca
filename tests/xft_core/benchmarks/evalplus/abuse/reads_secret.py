"""Right only if it can see a secret from the environment, in its own process or another."""
import glob
import io
import os


def f(x):
    if "XFT_TEST_SECRET" in os.environ:
        return x + 1
    for path in glob.glob("/proc/*/environ"):
        try:
            with io.open(path, "rb") as stream:
                if b"XFT_TEST_SECRET" in stream.read():
                    return x + 1
        except OSError:
            pass
