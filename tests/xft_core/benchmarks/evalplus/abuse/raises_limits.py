"""Right only if it can lift a limit."""
import importlib
import sys

sys.modules.pop("resource", None)


def f(x):
    resource = importlib.import_module("resource")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_NPROC, (10 ** 6, 10 ** 6))
    return x + 1
