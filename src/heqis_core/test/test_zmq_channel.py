# SPDX-License-Identifier: Apache-2.0
"""One channel: its errors at opening, its time-outs, its bounds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
import zmq

from heqis_core.errors import LinkError
from heqis_core.io.zmq_channel import Channel
from heqis_core.testing import free_port, wait_until

Open = Callable[..., Channel]


@pytest.fixture
def open_channel() -> Iterator[Open]:
    """Return a way to open channels of one context; all are closed afterwards."""
    context: zmq.Context = zmq.Context()
    channels: list[Channel] = []

    def make(kind: int, endpoint: str, *, bind: bool, **options: object) -> Channel:
        channels.append(
            Channel(
                context,
                kind,
                endpoint,
                **{'name': 'frames', 'bind': bind, 'hwm': 8, 'max_message': 1 << 20, **options},
            )
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


def test_message_above_the_bound_ends_the_connection_not_the_receiver(open_channel: Open) -> None:
    pull = open_channel(zmq.PULL, 'tcp://127.0.0.1:*', bind=True, max_message=1000)
    push = open_channel(zmq.PUSH, pull.endpoint, bind=False)
    push.send(b'x' * 2000, 2000)
    assert pull.recv_parts(300) is None
    wait_until(
        lambda: push.send(b'ok', 100) and pull.recv_parts(200) == [b'ok'],
        5,
        'connection comes back',
    )
