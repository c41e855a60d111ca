"""Right only if it can read the system's list of users."""
import pathlib


def f(x):
    return x + 1 if "root" in pathlib.Path("/etc/passwd").read_text() else None
