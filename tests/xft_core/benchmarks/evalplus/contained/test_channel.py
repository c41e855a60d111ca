import socket
import threading
import time

import pytest

from xft_core.benchmarks.evalplus.contained.channel import (
    ChannelClosed,
    ChannelTimeout,
    MessageTooLarge,
    receive,
    send,
)


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


def test_messages_arrive_whole_and_in_order(ends: tuple[socket.socket, socket.socket]) -> None:
    messages = [b"", b"a", b"x" * (3 * 2**20), b"end"]
    def write() -> None:
        for message in messages:
            send(ends[0], message, 30)

    writer = threading.Thread(target=write)
    writer.start()
    assert [receive(ends[1], 2**22, 30) for _ in messages] == messages
    writer.join()


def test_who_is_gone_is_noticed(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(b"\0\0\0\5abc")
    ends[0].close()
    with pytest.raises(ChannelClosed):
        receive(ends[1], 100, 30)
    with pytest.raises(ChannelClosed):
        send(ends[1], b"x" * 10**6, 30)


def test_nobody_waits_for_ever(ends: tuple[socket.socket, socket.socket]) -> None:
    """Neither a message that arrives byte by byte nor one that nobody reads blocks the other end."""
    def drip() -> None:
        try:
            for byte in b"\0\0\0\x64" + b"x" * 100:
                ends[0].sendall(bytes([byte]))
                time.sleep(0.05)
        except OSError:
            pass

    threading.Thread(target=drip, daemon=True).start()
    started = time.monotonic()
    with pytest.raises(ChannelTimeout):
        receive(ends[1], 100, 0.5)
    with pytest.raises(ChannelTimeout):
        send(ends[1], b"x" * 10**8, 0.5)
    assert time.monotonic() - started < 4
    ends[1].close()


def test_what_is_too_large_is_not_read(ends: tuple[socket.socket, socket.socket]) -> None:
    ends[0].sendall(b"\xff\xff\xff\xff")
    with pytest.raises(MessageTooLarge):
        receive(ends[1], 2**20, 30)
