"""Right only if there is a network interface other than its own loopback."""
import socket


def f(x):
    return x + 1 if len(socket.if_nameindex()) > 1 else None
