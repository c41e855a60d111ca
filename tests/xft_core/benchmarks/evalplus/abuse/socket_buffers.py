"""Right only if it can enlarge a socket's buffer."""
import socket


def f(x):
    one, _ = socket.socketpair()
    before = one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * before)
    return x + 1 if one.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > before else None
