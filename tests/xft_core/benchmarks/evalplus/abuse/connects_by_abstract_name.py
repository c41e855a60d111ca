"""Right only if it reaches a server through an abstract UNIX name."""
import socket


def f(x):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0xft-test-@PID@")
    return x + 1
