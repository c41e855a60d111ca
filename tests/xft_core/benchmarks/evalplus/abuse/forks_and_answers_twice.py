"""Returns from one call as two processes, so that the second answer arrives before the next input."""
import posix


def f(x):
    posix.fork()
    return x if x == 1 else x + 1
