"""Right only if it can write where a file of ours is."""
import pathlib


def f(x):
    pathlib.Path("@VICTIM@").write_text("mine")
    return x + 1
