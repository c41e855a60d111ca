"""Messages between processes over a stream socket: four bytes of length, then as many bytes."""

import socket
import struct
import time
from collections.abc import Callable

HEADER = struct.Struct("!I")
CHUNK_BYTES = 2**20


class ChannelClosed(Exception):
    """The other side is gone."""


class ChannelTimeout(Exception):
    """The other side did not answer in time."""


class MessageTooLarge(Exception):
    """The other side announced more than it may send."""


def send(channel: socket.socket, message: bytes, seconds: float | None = None) -> None:
    """Send one message. Raises ChannelClosed, and ChannelTimeout when nobody takes it within ``seconds``."""
    channel.settimeout(seconds)
    try:
        channel.sendall(HEADER.pack(len(message)) + message)
    except TimeoutError:
        raise ChannelTimeout from None
    except OSError:
        raise ChannelClosed from None


def receive(channel: socket.socket, max_bytes: int, patience: "float | Callable[[], float] | None" = None) -> bytes:
    """Wait for one whole message. Raises ChannelClosed, ChannelTimeout (nothing whole within ``patience``) and
    MessageTooLarge, before any of a message is read that is longer than ``max_bytes``.

    ``patience``: seconds, or what says how many are left, asked again whenever these are over.
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
