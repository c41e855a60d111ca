"""Right only if some process's root shows a file outside the sandbox."""
import io
import os


def f(x):
    for name in os.listdir("/proc"):
        if name.isdigit():
            for way in ("root", "cwd"):
                try:
                    with io.open(f"/proc/{name}/{way}/@VICTIM@") as stream:
                        return x + 1 if stream.read() else None
                except OSError:
                    pass
