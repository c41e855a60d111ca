"""Right only if it can leave a key in the keyring of its user or its session, for the next program to find."""
import ctypes


def f(x):
    syscall = ctypes.CDLL(None).syscall
    for number in (248, 217):
        for keyring in (-3, -4, -5):
            if syscall(number, b"user", b"note", b"answer", 6, keyring) > 0:
                return x + 1
