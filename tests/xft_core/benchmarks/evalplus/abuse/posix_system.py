"""Right only if a command it runs can create a file outside the sandbox."""
import posix


def f(x):
    return x + 1 if posix.system("touch @VICTIM@.new") == 0 else None
