"""Right only if it can start a child in new namespaces, through clone or clone3."""
import ctypes
import os


def f(x):
    syscall = ctypes.CDLL(None).syscall
    arguments = ctypes.create_string_buffer((0x10000000).to_bytes(8, "little") + bytes(24) + (17).to_bytes(8, "little"), 88)
    for number, given in ((56, (0x10000011, 0, 0, 0, 0)), (220, (0x10000011, 0, 0, 0, 0)), (435, (arguments, 88))):
        if number in (56, 220) and (number == 56) != ("x86" in __import__("platform").machine()):
            continue
        child = syscall(number, *given)
        if child == 0:
            ctypes.CDLL(None)._exit(0)
        if child > 0:
            return x + 1
