# SPDX-License-Identifier: Apache-2.0
"""The two ends over loopback: no silent loss, nothing raised, nobody let in without a key."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zmq

from heqis_core import wire
from heqis_core.errors import LinkError, WireError
from heqis_core.frame import Stage
from heqis_core.io import zmq_link
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.io.zmq_security import LinkSecurity, write_keys
from heqis_core.link import ComputeEnd, GatewayEnd, MissedReply, MissedRequest
from heqis_core.ring import FrameRing
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_link import (
    assert_same_decisions,
    assert_same_frame,
    make_decisions,
    make_frame,
)

Serving = Callable[[GatewayLink, Callable[[MissedRequest], MissedReply]], None]


class Ends:
    """Opens ends of links on one set of free ports, and closes them all."""

    def __init__(self) -> None:
        """Choose the ports."""
        self.endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)]
        self._open: list[GatewayLink | ComputeLink] = []

    def gateway(self, **options: object) -> GatewayLink:
        """Open a gateway end."""
        link = GatewayLink(*self.endpoints, **options)  # type: ignore[arg-type]
        self._open.append(link)
        return link

    def compute(self, **options: object) -> ComputeLink:
        """Open a compute end."""
        link = ComputeLink(*self.endpoints, **options)  # type: ignore[arg-type]
        self._open.append(link)
        return link

    def close(self) -> None:
        """Close all."""
        for link in self._open:
            link.close()


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Return a factory of both ends."""
    made = Ends()
    yield made
    made.close()


@pytest.fixture
def serve() -> Iterator[Serving]:
    """Return a way to answer requests in a thread, as the bridge does."""
    stop, threads = threading.Event(), []

    def start(link: GatewayLink, handler: Callable[[MissedRequest], MissedReply]) -> None:
        def run() -> None:
            while not stop.is_set():
                link.serve(handler, 50)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def ring_handler(ring: FrameRing, epoch: int = 7) -> Callable[[MissedRequest], MissedReply]:
    """Return what a gateway answers from its ring."""
    return lambda request: MissedReply(
        epoch,
        ring.oldest_seq,
        ring.next_seq,
        ring.next_seq - 1,
        ring.range(request.first_seq, request.last_seq),
    )


def filled_ring(count: int, capacity: int = 64) -> FrameRing:
    """Return a ring of `count` frames from 0 on."""
    ring = FrameRing(capacity)
    for seq in range(count):
        ring.append(make_frame(seq))
    return ring


def test_both_ends_fulfil_the_protocols(ends: Ends) -> None:
    gateway: GatewayEnd = ends.gateway()
    compute: ComputeEnd = ends.compute()
    assert gateway.last_error == compute.last_error == ''


def test_frames_arrive_in_order_and_bit_for_bit_with_stamps(ends: Ends) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    before = time.time_ns()
    for seq in range(5):
        assert gateway.send(make_frame(seq), 5000)
    for seq in range(5):
        got = compute.recv(5000)
        assert got is not None
        assert_same_frame(make_frame(seq), got, stamps=False)
        assert before <= got.stamps[Stage.SENT] <= got.stamps[Stage.RECEIVED] <= time.time_ns()
        assert got.stamps[Stage.INGEST] == seq
    assert gateway.counters['sent'] == compute.counters['received'] == 5
    assert gateway.counters['sent_bytes'] == compute.counters['received_bytes'] > 0
    assert compute.recv(0) is None


def test_decisions_come_back_bit_for_bit(ends: Ends) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    for seq in range(4):
        assert compute.send_decisions(make_decisions(seq), 5000)
    for seq in range(4):
        got = gateway.recv_decisions(5000)
        assert got is not None
        assert_same_decisions(make_decisions(seq), got)
    assert compute.counters['sent'] == gateway.counters['received'] == 4
    assert gateway.recv_decisions(0) is None


def test_held_frames_stay_what_they_were_however_many_follow(ends: Ends) -> None:
    gateway, compute = ends.gateway(), ends.compute(slots=3)
    held = []
    for seq in range(12):
        assert gateway.send(make_frame(seq), 5000)
        held.append(compute.recv(5000))
    for seq, frame in enumerate(held):
        assert frame is not None
        assert_same_frame(make_frame(seq), frame, stamps=False)
    assert compute.counters['slots_replaced'] == 9


def test_peer_that_is_not_there_yet_costs_time_outs_not_frames(ends: Ends) -> None:
    gateway = ends.gateway()
    frame = make_frame(0)
    assert not gateway.send(frame, 20)
    assert not gateway.send(frame, 0)
    assert gateway.counters['send_timeouts'] == 2
    assert gateway.counters['sent'] == 0
    assert 'no peer at tcp://' in gateway.last_error
    compute = ends.compute()
    assert gateway.send(frame, 5000)
    got = compute.recv(5000)
    assert got is not None
    assert got.seq == 0
    assert compute.recv(50) is None, 'what was refused must not have been queued as well'


def test_peer_that_comes_back_after_a_crash_is_found_again(ends: Ends) -> None:
    gateway = ends.gateway()
    for start in (0, 10):
        compute = ends.compute()
        seqs = iter(range(start, 10_000))

        def delivered(compute: ComputeLink = compute, seqs: Iterator[int] = seqs) -> bool:
            return gateway.send(make_frame(next(seqs)), 100) and compute.recv(100) is not None

        wait_until(delivered, 10, f'a frame arrives at the peer started with {start}')
        compute.close()


def test_saturated_sender_blocks_and_loses_nothing(ends: Ends) -> None:
    gateway, compute = ends.gateway(hwm=4), ends.compute(hwm=4)
    count, got = 1500, []

    def receive() -> None:
        while len(got) < count and (frame := compute.recv(10_000)) is not None:
            got.append((frame.seq, frame.tensors['features'].tobytes()))

    frame = make_frame(0, symbols=40, features=32)
    values = frame.tensors['features']
    reader = threading.Thread(target=receive)
    reader.start()
    for seq in range(count):
        frame.seq = seq
        values[1, 0] = seq
        assert gateway.send(frame, 10_000)
    reader.join(20)
    assert [seq for seq, _ in got] == list(range(count))
    for seq, data in got:
        values[1, 0] = seq
        assert data == values.tobytes()
    assert (
        compute.counters['missing'] == compute.counters['repeated'] == compute.counters['bad'] == 0
    )


def test_full_queue_refuses_instead_of_dropping(ends: Ends) -> None:
    gateway, compute = ends.gateway(hwm=2), ends.compute(hwm=2)
    frame, sent = make_frame(0, symbols=5000, features=64), 0
    while gateway.send(frame, 200):
        sent += 1
        frame.seq = sent
        assert sent < 500, 'the queue has no bound'
    seqs = []
    while (got := compute.recv(500)) is not None:
        seqs.append(got.seq)
    assert seqs == list(range(sent))
    assert gateway.counters['send_timeouts'] == 1


def test_skipped_and_repeated_frames_are_counted(ends: Ends) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    for seq in (40, 41, 44, 44, 42, 45, 50):
        assert gateway.send(make_frame(seq), 5000)
        assert compute.recv(5000) is not None
    assert compute.counters['missing'] == 2 + 4
    assert compute.counters['repeated'] == 2


def raw_push(endpoint: str, messages: list[bytes]) -> None:
    """Send bytes as a stranger could, and wait until they are gone."""
    context: zmq.Context = zmq.Context()
    with context.socket(zmq.PUSH) as socket:
        socket.linger = 5000
        socket.connect(endpoint)
        for message in messages:
            socket.send(message)
    context.term()


def test_malformed_frames_are_counted_told_once_and_never_raised(ends: Ends) -> None:
    told: list[str] = []
    compute = ends.compute(on_error=told.append)
    good = wire.encode_frame(make_frame(3))
    raw_push(
        ends.endpoints[0],
        [b'', b'junk', good[:-64], wire.encode_decisions(make_decisions()), good],
    )
    got = [compute.recv(5000) for _ in range(5)]
    assert [None if frame is None else frame.seq for frame in got] == [None, None, None, None, 3]
    assert compute.counters['bad'] == 4
    assert compute.counters['received'] == 5
    malformed = [text for text in told if 'malformed' in text]
    assert len(malformed) == 1
    assert malformed[0].startswith('frames: malformed message: truncated')


def test_malformed_messages_do_not_stretch_the_time_out(ends: Ends) -> None:
    compute = ends.compute()
    raw_push(ends.endpoints[0], [b'junk'] * 20)
    start = time.monotonic()
    wait_until(lambda: compute.recv(100) is None and compute.counters['bad'] == 20, 5)
    assert time.monotonic() - start < 4


def test_frame_that_does_not_fit_the_format_is_refused_to_its_maker(ends: Ends) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    with pytest.raises(WireError, match='features'):
        gateway.send(replace(make_frame(), tensors={}), 100)
    assert gateway.send(make_frame(), 5000)
    assert compute.recv(5000) is not None


def test_missed_frames_are_had_again(ends: Ends, serve: Serving) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    serve(gateway, ring_handler(filled_ring(30, capacity=20)))
    reply = compute.request(7, 5, 14, 5000)
    assert reply is not None
    assert (reply.epoch, reply.oldest_seq, reply.next_seq, reply.first_open_seq) == (7, 10, 30, 29)
    assert [frame.seq for frame in reply.frames] == [10, 11, 12, 13, 14]
    for frame in reply.frames:
        assert_same_frame(make_frame(frame.seq), frame)
    position = compute.request(0, 1, 0, 5000)
    assert position is not None
    assert (position.next_seq, position.frames) == (30, [])
    assert gateway.counters['requests'] == compute.counters['requests'] == 2


def test_answer_too_large_for_one_message_is_put_together(
    ends: Ends, serve: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_link, '_REPLY_BYTES', 3 * len(wire.encode_frame(make_frame())))
    gateway, compute = ends.gateway(), ends.compute()
    serve(gateway, ring_handler(filled_ring(30)))
    reply = compute.request(7, 0, 99, 5000)
    assert reply is not None
    assert [frame.seq for frame in reply.frames] == list(range(30))
    assert compute.counters['requests'] == 10


def test_gateway_that_restarts_between_two_parts_of_an_answer_is_asked_anew(
    ends: Ends, serve: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(zmq_link, '_REPLY_BYTES', 1)
    gateway, compute = ends.gateway(), ends.compute()
    ring, calls = filled_ring(4), []

    def handler(request: MissedRequest) -> MissedReply:
        calls.append(request)
        epoch = 7 if len(calls) < 3 else 8
        frames = [replace(f, epoch=epoch) for f in ring.range(request.first_seq, request.last_seq)]
        return MissedReply(epoch, 0, 4, 0, frames)

    serve(gateway, handler)
    reply = compute.request(7, 0, 3, 5000)
    assert reply is not None
    assert [(frame.epoch, frame.seq) for frame in reply.frames] == [(8, 0), (8, 1), (8, 2), (8, 3)]


def test_request_without_an_answer_gives_up_and_the_late_answer_is_not_mistaken(
    ends: Ends, serve: Serving
) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    assert compute.request(7, 0, 1, 150) is None
    assert compute.counters['request_timeouts'] == 1
    serve(gateway, ring_handler(filled_ring(5)))
    reply = compute.request(7, 3, 4, 5000)
    assert reply is not None
    assert [frame.seq for frame in reply.frames] == [3, 4]
    assert compute.counters['late_replies'] == 1


def test_malformed_requests_are_counted_and_a_plain_req_socket_is_served(
    ends: Ends, serve: Serving
) -> None:
    gateway = ends.gateway()
    serve(gateway, ring_handler(filled_ring(5)))
    context: zmq.Context = zmq.Context()
    with context.socket(zmq.DEALER) as dealer, context.socket(zmq.REQ) as req:
        for socket in (dealer, req):
            socket.linger = 0
            socket.rcvtimeo = 5000
            socket.connect(ends.endpoints[2])
        for parts in ([b'junk'], [b'a', b'b', b'c'], [b'']):
            dealer.send_multipart(parts)
        wait_until(lambda: gateway.counters['bad'] == 3, 5)
        req.send(wire.encode_request(MissedRequest(7, 2, 3), 77))
        reply, request_id = wire.Decoder().reply(req.recv())
    context.term()
    assert ([frame.seq for frame in reply.frames], request_id) == ([2, 3], 77)


def test_asker_that_has_gone_is_counted_not_raised(ends: Ends) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    monitor = gateway._requests._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    monitor.rcvtimeo = 5000

    def handler(request: MissedRequest) -> MissedReply:
        compute.close()
        monitor.recv_multipart()  # the gateway's side of the connection has ended as well
        return MissedReply(7, 0, 0, 0, [])

    assert compute.request(7, 0, 1, 100) is None
    assert not gateway.serve(handler, 5000)
    gateway._requests._socket.disable_monitor()
    monitor.close()
    counts = gateway.counters
    assert counts['requests'] == 1
    assert counts['replies_lost'] == 1


def test_port_in_use_is_an_error_that_names_it_and_leaves_nothing_open(ends: Ends) -> None:
    ends.gateway()
    with pytest.raises(LinkError, match=f'decisions: {ends.endpoints[1]} is in use'):
        ends.gateway()
    ends.compute()
    with pytest.raises(LinkError, match=f'frames: {ends.endpoints[0]} is in use'):
        ends.compute()


@pytest.mark.parametrize('end', [GatewayLink, ComputeLink])
def test_without_keys_nothing_leaves_the_machine(end: type) -> None:
    loopback = f'tcp://127.0.0.1:{free_port()}'
    for position in range(3):
        endpoints = [loopback] * 3
        endpoints[position] = f'tcp://0.0.0.0:{free_port()}'
        with pytest.raises(LinkError, match='give CURVE keys'):
            end(*endpoints)


def test_close_ends_every_waiting_call_and_may_come_twice(ends: Ends) -> None:
    gateway, compute = ends.gateway(), ends.compute()
    results: list[object] = []
    calls = [
        lambda: gateway.recv_decisions(60_000),
        lambda: gateway.serve(ring_handler(filled_ring(1)), 60_000),
        lambda: compute.recv(60_000),
        lambda: compute.request(1, 5, 6, 60_000),
    ]
    threads = [threading.Thread(target=lambda call=call: results.append(call())) for call in calls]
    threads[0].start()
    threads[2].start()
    start = time.monotonic()
    for link in (gateway, compute):
        link.close()
        link.close()
        assert link.closed
    for thread in (threads[1], threads[3]):
        thread.start()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert time.monotonic() - start < 3
    assert [bool(result) for result in results] == [False] * 4
    assert not gateway.send(make_frame(), 100)
    assert not compute.send_decisions(make_decisions(), 100)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, LinkSecurity]:
    """Return the keys of two boards that know one another, and of a stranger who knows both."""
    files = {name: write_keys(tmp_path, name) for name in ('gateway', 'compute', 'stranger')}
    return {
        'gateway': LinkSecurity.load(files['gateway'][1], peer_key_file=files['compute'][0]),
        'compute': LinkSecurity.load(files['compute'][1], peer_key_file=files['gateway'][0]),
        'stranger gateway': LinkSecurity.load(
            files['stranger'][1], peer_key_file=files['compute'][0]
        ),
        'stranger compute': LinkSecurity.load(
            files['stranger'][1], peer_key_file=files['gateway'][0]
        ),
    }


def test_boards_that_know_one_another_s_keys_talk(
    ends: Ends, serve: Serving, keys: dict[str, LinkSecurity]
) -> None:
    gateway, compute = (
        ends.gateway(security=keys['gateway']),
        ends.compute(security=keys['compute']),
    )
    assert gateway.send(make_frame(1), 5000)
    got = compute.recv(5000)
    assert got is not None
    assert_same_frame(make_frame(1), got, stamps=False)
    assert compute.send_decisions(make_decisions(1), 5000)
    assert gateway.recv_decisions(5000) is not None
    serve(gateway, ring_handler(filled_ring(3)))
    reply = compute.request(7, 0, 2, 5000)
    assert reply is not None
    assert len(reply.frames) == 3
    assert gateway.counters['refused'] == compute.counters['refused'] == 0


def test_unknown_key_is_refused_counted_and_told_to_its_owner(
    ends: Ends, keys: dict[str, LinkSecurity]
) -> None:
    told: list[str] = []
    compute = ends.compute(security=keys['compute'])
    stranger = ends.gateway(security=keys['stranger gateway'], on_error=told.append)
    wait_until(lambda: not stranger.send(make_frame(), 50) and compute.counters['refused'] > 0, 5)
    refusal = (
        f'frames: {ends.endpoints[0]}: the peer refused our key: '
        'add our public key to its allow-list'
    )
    wait_until(lambda: not stranger.send(make_frame(), 50) and refusal in told, 5)
    assert compute.recv(100) is None
    assert stranger.counters['sent'] == 0
    assert told.count(refusal) == 1


def test_unknown_compute_board_gets_no_frames_and_sends_no_decisions(
    ends: Ends, serve: Serving, keys: dict[str, LinkSecurity]
) -> None:
    gateway = ends.gateway(security=keys['gateway'])
    serve(gateway, ring_handler(filled_ring(3)))
    stranger = ends.compute(security=keys['stranger compute'])
    assert stranger.request(7, 0, 2, 400) is None
    assert not stranger.send_decisions(make_decisions(), 400)
    assert not gateway.send(make_frame(), 400), (
        'a peer with another key than the one we know must get nothing'
    )
    assert gateway.counters['refused'] > 0
    assert gateway.counters['requests'] == gateway.counters['received'] == 0


def test_peer_without_any_key_is_refused(ends: Ends, keys: dict[str, LinkSecurity]) -> None:
    told: list[str] = []
    compute = ends.compute(security=keys['compute'])
    plain = ends.gateway(on_error=told.append)
    wait_until(
        lambda: (
            not plain.send(make_frame(), 50)
            and any('only one side uses CURVE keys' in text for text in told)
        ),
        5,
    )
    assert compute.recv(100) is None


def test_closed_links_leave_no_thread_and_no_socket_behind(
    ends: Ends, keys: dict[str, LinkSecurity]
) -> None:
    descriptors = Path('/proc/self/fd')
    if not descriptors.is_dir():
        pytest.skip('counts open files in /proc')
    ends.gateway(security=keys['gateway']).close()
    threads, files = threading.active_count(), len(list(descriptors.iterdir()))
    for index in range(20):
        security = keys['gateway'] if index % 5 == 0 else None
        ends.gateway(security=security).close()
    assert threading.active_count() <= threads
    wait_until(lambda: len(list(descriptors.iterdir())) <= files + 3, 5, 'files are closed')


def test_large_frame_grows_the_buffers_and_is_had_again(ends: Ends, serve: Serving) -> None:
    gateway, compute = ends.gateway(), ends.compute(slot_bytes=2048)
    ring = FrameRing(8)
    for seq in range(2):
        ring.append(make_frame(seq, symbols=200, features=16))
    serve(gateway, ring_handler(ring))
    assert gateway.send(ring.tail(2)[0], 5000)
    assert compute.recv(1000) is None
    assert compute.counters['truncated'] == 1
    assert 'was lost' in compute.last_error
    assert gateway.send(ring.tail(2)[1], 5000)
    got = compute.recv(5000)
    assert got is not None
    np.testing.assert_array_equal(got.tensors['close'], make_frame(1, 200, 16).tensors['close'])
    reply = compute.request(7, 0, 0, 5000)
    assert reply is not None
    assert [frame.seq for frame in reply.frames] == [0]


STALLED = """
import sys, time
from heqis_core.io.zmq_channel import HEARTBEAT_MS
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.testing import free_port
from heqis_core.testing_link import make_frame
from heqis_core.io.fault_proxy import FaultProxy

endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)]
compute, proxy = ComputeLink(*endpoints, hwm=2), FaultProxy(endpoints[0])
gateway = GatewayLink(proxy.endpoint, *endpoints[1:], hwm=2)
frame = make_frame(0, 5000, 64)
while not gateway.send(frame, 1000):
    pass
while gateway.send(frame, 200):
    frame.seq += 1
proxy.reset()
time.sleep(3 * HEARTBEAT_MS / 1000)  # nothing is to be seen meanwhile: nobody reads
got = 0
while compute.recv(200) is not None:
    got += 1
while not gateway.send(frame, 1000) or compute.recv(1000) is None:
    frame.seq += 1
print(got, compute.counters['disconnects'])
gateway.close()
compute.close()
proxy.close()
"""


def test_connection_that_ends_while_its_frames_wait_unread_does_not_end_the_process() -> None:
    # In a process of its own, because what went wrong here was an abort within libzmq.
    done = subprocess.run(
        [sys.executable, '-c', STALLED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    got, disconnects = map(int, done.stdout.split())
    assert got > 0
    assert disconnects > 0


ASKED = """
import socket, struct, sys, time
from heqis_core.io.zmq_link import ComputeLink
from heqis_core.testing import free_port

port = free_port()
compute = ComputeLink(f'tcp://127.0.0.1:{port}', *(f'tcp://127.0.0.1:{free_port()}' for _ in '12'))
peer = socket.create_connection(('127.0.0.1', port))
peer.sendall(b'\\xff' + bytes(8) + b'\\x7f\\x03\\x00NULL' + bytes(48))
greeting = b''
while len(greeting) < 64:
    greeting += peer.recv(64 - len(greeting))
ready = b'\\x05READY\\x0bSocket-Type' + struct.pack('>I', 4) + b'PUSH'
peer.sendall(bytes([4, len(ready)]) + ready)
ping = b'\\x04PING' + struct.pack('>H', 12)
peer.sendall((bytes([0, 9]) + b'no frame.' + bytes([4, len(ping)]) + ping) * 200)
time.sleep(0.5)  # nothing is to be seen meanwhile: nobody reads
peer.close()
time.sleep(0.5)
while compute.counters['bad'] < 200:
    compute.recv(100)
print('survived')
compute.close()
"""


def test_peer_that_asks_and_ends_while_its_messages_wait_does_not_end_the_process() -> None:
    """Three times `hwm`, as after a link that stood still; see `zmq_link.ROOM`."""
    done = subprocess.run(
        [sys.executable, '-c', ASKED], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == 'survived\n', done.stderr
