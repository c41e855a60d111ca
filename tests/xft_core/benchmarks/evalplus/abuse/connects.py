"""Right only if it reaches a server on this machine."""
import socket


def f(x):
    socket.create_connection(("127.0.0.1", int("@PORT@")), timeout=1)
    return x + 1
