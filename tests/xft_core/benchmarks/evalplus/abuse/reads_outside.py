"""Right only if it can read a file outside the sandbox."""
import io


def f(x):
    with io.open("@VICTIM@") as stream:
        return x + 1 if stream.read() else None
