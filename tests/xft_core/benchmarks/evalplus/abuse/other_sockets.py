"""Right only if it can create a socket that is neither a Unix nor an internet socket."""
import socket


def f(x):
    for family in range(3, 64):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                if family != 10:
                    return x + 1 if socket.socket(family, kind) else None
            except OSError:
                continue
