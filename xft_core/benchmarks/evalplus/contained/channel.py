"""Messages between processes over a stream socket: four bytes of length, then as many bytes."""

import socket
import struct
import time
from collections.abc import Callable

HEADER = struct.Struct("!I")
CHUNK_BYTES = 2**20


class ChannelClosed(Exception):
    """The other side has closed the channel."""


class ChannelTimeout(Exception):
    """The other side did not answer in time."""


class MessageTooLarge(Exception):
    """The other side announced a message longer than allowed."""


def send(channel: socket.socket, message: bytes, seconds: float | None = None) -> None:
    """Send one message. Raises ChannelClosed, and ChannelTimeout if the other side does not take it within ``seconds``."""
    channel.settimeout(seconds)
    try:
        channel.sendall(HEADER.pack(len(message)) + message)
    except TimeoutError:
        raise ChannelTimeout from None
    except OSError:
        raise ChannelClosed from None


def receive(channel: socket.socket, max_bytes: int, patience: "float | Callable[[], float] | None" = None) -> bytes:
    """Wait for one complete message. Raises ChannelClosed, ChannelTimeout (no complete message within ``patience``) and
    MessageTooLarge, before it reads any part of a message longer than ``max_bytes``.

    ``patience``: seconds, or a function that returns how many are left and is called again when these have passed.
    """
    left = _countdown(patience) if isinstance(patience, float | int) else patience
    (length,) = HEADER.unpack(_read(channel, HEADER.size, left))
    if length > max_bytes:
        raise MessageTooLarge(length)
    return _read(channel, length, left)


def _countdown(seconds: float) -> Callable[[], float]:
    deadline = time.monotonic() + seconds
    return lambda: deadline - time.monotonic()


def _read(channel: socket.socket, length: int, left: Callable[[], float] | None) -> bytes:
    parts = []
    while length:
        if left is not None:
            seconds = left()
            if seconds <= 0:
                raise ChannelTimeout
            channel.settimeout(seconds)
        try:
            part = channel.recv(min(length, CHUNK_BYTES))
        except TimeoutError:
            continue
        except OSError:
            raise ChannelClosed from None
        if not part:
            raise ChannelClosed
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
