# SPDX-License-Identifier: Apache-2.0
"""One channel: its errors at opening, its time-outs, and the ring of receive buffers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import zmq

from heqis_core.errors import LinkError
from heqis_core.io.zmq_channel import Channel, Inbox
from heqis_core.testing import free_port, wait_until

Open = Callable[..., Channel]


@pytest.fixture
def open_channel() -> Iterator[Open]:
    """Return a way to open channels of one context; all are closed afterwards."""
    context: zmq.Context = zmq.Context()
    channels: list[Channel] = []

    def make(kind: int, endpoint: str, *, bind: bool, **options: object) -> Channel:
        channels.append(
            Channel(context, kind, endpoint, name='frames', bind=bind, hwm=8, **options)
        )
        return channels[-1]

    yield make
    for channel in channels:
        channel.close()
    context.term()


def pair(open_channel: Open) -> tuple[Channel, Channel]:
    """Return a connected PUSH and the PULL that it reaches."""
    pull = open_channel(zmq.PULL, 'tcp://127.0.0.1:*', bind=True)
    return open_channel(zmq.PUSH, pull.endpoint, bind=False), pull


def test_port_in_use_is_named_with_what_to_do(open_channel: Open) -> None:
    endpoint = open_channel(zmq.PULL, 'tcp://127.0.0.1:*', bind=True).endpoint
    with pytest.raises(
        LinkError, match=f'frames: {endpoint} is in use .* stop it, or choose other ports'
    ):
        open_channel(zmq.PULL, endpoint, bind=True)


def test_foreign_address_and_nonsense_are_named(open_channel: Open) -> None:
    with pytest.raises(LinkError, match='not an address of this machine'):
        open_channel(zmq.PULL, 'tcp://192.0.2.1:5555', bind=True)
    with pytest.raises(LinkError, match='cannot be opened'):
        open_channel(zmq.PULL, 'tcp://127.0.0.1:notaport', bind=True)


def test_pyzmq_that_is_too_old_is_named_with_what_to_do(
    open_channel: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq, 'pyzmq_version_info', lambda: (25, 1, 2))
    with pytest.raises(LinkError, match=r'26\.4 and later can: run pip install'):
        open_channel(zmq.PULL, 'tcp://127.0.0.1:*', bind=True)


def test_send_without_a_peer_gives_up_in_time(open_channel: Open) -> None:
    push = open_channel(zmq.PUSH, f'tcp://127.0.0.1:{free_port()}', bind=False)
    for timeout_ms in (0, 30, 250):
        start = time.monotonic()
        assert not push.send(b'x', timeout_ms)
        assert timeout_ms / 1000 <= time.monotonic() - start + 0.005 < timeout_ms / 1000 + 2


def test_receive_gives_up_in_time_and_takes_what_comes_later(open_channel: Open) -> None:
    push, pull = pair(open_channel)
    buffer = memoryview(bytearray(8))
    assert pull.recv_into(buffer, 0) is None
    assert pull.recv_into(buffer, 130) is None
    assert push.send(b'abc', 2000)
    assert pull.recv_into(buffer, 2000) == 3
    assert bytes(buffer[:3]) == b'abc'


def test_close_ends_a_call_that_waits_in_another_thread(open_channel: Open) -> None:
    push, pull = pair(open_channel)
    done = []
    waiting = threading.Thread(target=lambda: done.append(pull.recv_parts(60_000)))
    waiting.start()
    start = time.monotonic()
    pull.close()
    waiting.join(5)
    assert done == [None]
    assert time.monotonic() - start < 2
    assert pull.closed
    assert pull.recv_parts(0) is None
    pull.close()
    push.close()
    assert not push.send(b'x', 0)


def receive(inbox: Inbox, push: Channel, pull: Channel, data: bytes) -> memoryview | None:
    """Send and receive one message."""
    assert push.send(data, 2000)
    return inbox.recv(pull, 2000)


def test_buffers_are_aligned_read_only_and_used_again_when_nobody_holds_them(
    open_channel: Open,
) -> None:
    push, pull = pair(open_channel)
    inbox = Inbox(2, 256)
    addresses = []
    for round_ in range(6):
        view = receive(inbox, push, pull, bytes([round_]) * 100)
        assert view is not None
        assert view.readonly
        array = np.frombuffer(view, np.uint8)
        assert array.tolist() == [round_] * 100
        addresses.append(array.ctypes.data)
        del array, view
    assert all(address % 64 == 0 for address in addresses)
    assert len(set(addresses)) == 1, (
        'a free buffer is used again at once, while it is in the cache'
    )
    assert inbox.counters == {'truncated': 0, 'slots_replaced': 0}


def test_buffer_that_somebody_holds_is_never_written_again(open_channel: Open) -> None:
    push, pull = pair(open_channel)
    inbox = Inbox(2, 256)
    held = []
    for round_ in range(7):
        view = receive(inbox, push, pull, bytes([round_]) * 64)
        held.append(np.ndarray((8, 8), np.uint8, view)[2:])
        del view
    assert [int(array.max()) for array in held] == list(range(7))
    assert [int(array.min()) for array in held] == list(range(7))
    assert inbox.counters['slots_replaced'] == 5


def test_message_larger_than_the_buffers_is_counted_and_the_next_one_fits(
    open_channel: Open,
) -> None:
    push, pull = pair(open_channel)
    inbox = Inbox(2, 256)
    assert receive(inbox, push, pull, b'a' * 300) is None
    assert inbox.counters['truncated'] == 1
    assert 'a message of 300 B was lost' in pull.error
    view = receive(inbox, push, pull, b'b' * 300)
    assert view is not None
    assert bytes(view) == b'b' * 300


def test_message_above_the_bound_ends_the_connection_not_the_receiver(open_channel: Open) -> None:
    pull = open_channel(zmq.PULL, 'tcp://127.0.0.1:*', bind=True, max_message=1000)
    push = open_channel(zmq.PUSH, pull.endpoint, bind=False)
    inbox = Inbox(2, 4096)
    push.send(b'x' * 2000, 2000)
    assert inbox.recv(pull, 300) is None
    wait_until(
        lambda: push.send(b'ok', 100) and inbox.recv(pull, 200) is not None,
        5,
        'connection comes back',
    )
