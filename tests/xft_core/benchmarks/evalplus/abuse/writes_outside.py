"""Right only if it can write to a file of ours."""
import pathlib


def f(x):
    pathlib.Path("@VICTIM@").write_text("mine")
    return x + 1
