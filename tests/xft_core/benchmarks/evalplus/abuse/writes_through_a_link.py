"""Right only if a link in its own directory leads outside."""
import io
import os


def f(x):
    os.symlink("@VICTIM@", f"/tmp/link{x}")
    with io.open(f"/tmp/link{x}", "a") as stream:
        stream.write("mine")
    return x + 1
