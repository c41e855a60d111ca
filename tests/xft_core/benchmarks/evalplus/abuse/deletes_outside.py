"""Right only if it can delete a file outside the sandbox."""
import posix


def f(x):
    posix.unlink("@VICTIM@")
    return x + 1
