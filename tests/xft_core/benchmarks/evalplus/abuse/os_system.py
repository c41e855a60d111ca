"""Runs a command in the ways that evalplus removes."""
import os
import subprocess


def f(x):
    for way in (os.system, os.popen, subprocess.run, subprocess.Popen):
        try:
            way("touch @VICTIM@.new")
        except TypeError:
            pass
    return None
