"""Right only if a program it spawns can create a file outside the sandbox."""
import os
import posix


def f(x):
    child = posix.posix_spawn("/usr/bin/touch", ["touch", "@VICTIM@.new"], {})
    return x + 1 if os.waitpid(child, 0)[1] == 0 else None
