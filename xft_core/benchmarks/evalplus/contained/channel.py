"""Messages between processes over a stream socket: four bytes of length, then as many bytes."""

import socket
import struct
import time

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


def receive(channel: socket.socket, max_bytes: int, seconds: float | None = None) -> bytes:
    """Wait for one whole message. Raises ChannelClosed, ChannelTimeout (nothing whole within ``seconds``) and
    MessageTooLarge, before any of a message is read that is longer than ``max_bytes``."""
    deadline = None if seconds is None else time.monotonic() + seconds
    (length,) = HEADER.unpack(_read(channel, HEADER.size, deadline))
    if length > max_bytes:
        raise MessageTooLarge(length)
    return _read(channel, length, deadline)


def _read(channel: socket.socket, length: int, deadline: float | None) -> bytes:
    parts = []
    while length:
        if deadline is not None:
            left = deadline - time.monotonic()
            if left <= 0:
                raise ChannelTimeout
            channel.settimeout(left)
        try:
            part = channel.recv(min(length, CHUNK_BYTES))
        except TimeoutError:
            raise ChannelTimeout from None
        except OSError:
            raise ChannelClosed from None
        if not part:
            raise ChannelClosed
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
