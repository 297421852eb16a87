# SPDX-License-Identifier: Apache-2.0
"""Two boards over a network that drops, doubles, reorders, cuts and alters what they say.

Both ends are as the nodes run them: the gateway sends again what has no decisions, the compute
board asks for what is missing. What it decides must be bit for bit what it decides undisturbed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import BarStatus
from heqis_core.bundle import Bundle
from heqis_core.decider import Decider
from heqis_core.decision import Decisions
from heqis_core.frame import FeatureFrame
from heqis_core.intake import Delivery, Intake
from heqis_core.io.fault_proxy import MILD, Fault, FaultProxy, Plan, seeded
from heqis_core.io.ort_engine import open_engine
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.io.zmq_security import LinkSecurity, write_keys
from heqis_core.link import MissedReply, MissedRequest
from heqis_core.ring import FrameRing
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_bundle import write_test_bundle
from heqis_core.testing_link import COLUMNS

SYMBOLS, FRAMES, HARMED, IN_FLIGHT = 5, 120, 80, 16
ENOUGH_S = 25
COMPARED = [name for name in COLUMNS if name != 'stamps']


@pytest.fixture(scope='module')
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle.load(write_test_bundle(tmp_path_factory.mktemp('bundle')))


@pytest.fixture(scope='module')
def frames(bundle: Bundle) -> list[FeatureFrame]:
    """Return frames with a gap in one symbol's status here and there."""
    rng = np.random.default_rng(3)
    columns = len(bundle.manifest.features.names)
    made = []
    for seq in range(FRAMES):
        status = np.full(SYMBOLS, BarStatus.VALID, np.uint8)
        if seq % 17 == 5:
            status[seq % SYMBOLS] = BarStatus.SUSPENDED
        tensors = {
            'features': rng.standard_normal((SYMBOLS, columns)).astype(np.float32),
            'status': status,
            'close': rng.uniform(1, 9, SYMBOLS),
        }
        symbols = tuple(f'{600000 + i}.SH' for i in range(SYMBOLS))
        made.append(FeatureFrame('daily', 7, seq, seq * 10**9, 0, 'f' * 16, symbols, tensors))
    return made


@pytest.fixture(scope='module')
def undisturbed(bundle: Bundle, frames: list[FeatureFrame]) -> list[tuple[bytes, ...]]:
    decider = Decider.of(bundle, frames[0].symbols, open_engine, threads=1)
    decided = [decider.decide(frame)[0] for frame in frames]
    decider.close()
    assert sum(int(d.is_signal().sum()) for d in decided) > FRAMES
    return [content(d) for d in decided]


def content(decisions: Decisions) -> tuple[bytes, ...]:
    """Return what two equal decisions have in common."""
    return tuple(getattr(decisions, name).tobytes() for name in COMPARED)


class Boards:
    """Both boards with a proxy before each of the three sockets."""

    def __init__(
        self,
        bundle: Bundle,
        frames: list[FeatureFrame],
        gateway_keys: LinkSecurity | None = None,
        compute_keys: LinkSecurity | None = None,
    ) -> None:
        """Connect them through proxies that harm nothing yet."""
        real = [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)]
        self.proxies = [FaultProxy(endpoint, seed=i) for i, endpoint in enumerate(real)]
        self.frames_proxy, self.decisions_proxy, self.requests_proxy = self.proxies
        via = [proxy.endpoint for proxy in self.proxies]
        self.told: list[str] = []
        self.gateway = GatewayLink(via[0], real[1], real[2], security=gateway_keys)
        self.compute = ComputeLink(
            real[0], via[1], via[2], security=compute_keys, on_error=self.told.append
        )
        self.decider = Decider.of(bundle, frames[0].symbols, open_engine, threads=1)
        self.intake = Intake(bundle.manifest.window.horizon)
        self.decided: dict[int, Decisions] = {}
        self.known: dict[int, Decisions] = {}
        """What the gateway has heard of."""
        self.contradicted: list[int] = []
        self.limit = 0
        self._frames = frames
        self._ring = FrameRing(len(frames))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._loop, args=(step,))
            for step in (self._send, self._hear, self._serve, self._judge)
        ]
        self._next, self._sent_s = 0, [0.0] * len(frames)
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """End all; a thread that has died of an exception fails the test by itself."""
        self._stop.set()
        for thread in self._threads:
            thread.join(10)
        for end in (self.gateway, self.compute, *self.proxies, self.decider):
            end.close()

    def harm(self, plan: Plan | None) -> None:
        """Let the same happen on every way."""
        for proxy in self.proxies:
            proxy.forth = proxy.back = plan

    def run_to(self, limit: int) -> None:
        """Let frames up to `limit` flow until the gateway has heard of their decisions."""
        self.limit = limit
        wait_until(lambda: len(self.known) >= limit, ENOUGH_S, 'not every frame was decided')

    def _loop(self, step: Callable[[], object]) -> None:
        while not self._stop.is_set():
            step()

    def _send(self) -> None:
        """Send new frames, and those again that have been open for long."""
        now_s = time.monotonic()
        open_seqs = [seq for seq in range(self._next) if seq not in self.known]
        late = [seq for seq in open_seqs if now_s - self._sent_s[seq] > 0.3]
        if late:
            seq = late[0]
        elif self._next < self.limit and len(open_seqs) < IN_FLIGHT:
            seq = self._next
            self._ring.append(self._frames[seq])
            self._next += 1
        else:
            self._stop.wait(0.005)
            return
        if self.gateway.send(self._frames[seq], 50):
            self._sent_s[seq] = now_s

    def _hear(self) -> None:
        decisions = self.gateway.recv_decisions(50)
        if decisions is not None:
            before = self.known.setdefault(decisions.seq, decisions)
            if content(before) != content(decisions):
                self.contradicted.append(decisions.seq)

    def _serve(self) -> None:
        self.gateway.serve(self._answer, 50)

    def _answer(self, request: MissedRequest) -> MissedReply:
        ring = self._ring
        first_open = next((s for s in range(self._next) if s not in self.known), self._next)
        held = ring.range(request.first_seq, request.last_seq)
        return MissedReply(7, ring.oldest_seq, ring.next_seq, first_open, held)

    def _judge(self) -> None:
        frame = self.compute.recv(20)
        if frame is not None:
            deliveries, repeat = self.intake.offer(frame)
            self._decide(deliveries)
            if repeat is not None and repeat in self.decided:
                self.compute.send_decisions(self.decided[repeat], 50)
        asked = None
        while (question := self.intake.wanted()) is not None and question != asked:
            asked = question
            reply = self.compute.request(*question, timeout_ms=150)
            if reply is None:
                return
            self._decide(self.intake.answer(reply))

    def _decide(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            if delivery.restart:
                self.decider.restart()
            if delivery.after_hole:
                self.decider.hole(delivery.frame.seq)
            if not delivery.decide:
                self.decider.warm(delivery.frame)
                continue
            decisions, _ = self.decider.decide(delivery.frame)
            self.decided[decisions.seq] = decisions
            self.compute.send_decisions(decisions, 50)


@pytest.fixture
def boards(bundle: Bundle, frames: list[FeatureFrame]) -> Iterator[Boards]:
    made = Boards(bundle, frames)
    yield made
    made.close()


@pytest.fixture
def guarded(bundle: Bundle, frames: list[FeatureFrame], tmp_path: Path) -> Iterator[Boards]:
    """Return boards with CURVE keys."""
    files = {name: write_keys(tmp_path, name) for name in ('gateway', 'compute')}
    made = Boards(
        bundle,
        frames,
        LinkSecurity.load(files['gateway'][1], peer_key_file=files['compute'][0]),
        LinkSecurity.load(files['compute'][1], peer_key_file=files['gateway'][0]),
    )
    yield made
    made.close()


def check(boards: Boards, undisturbed: list[tuple[bytes, ...]]) -> None:
    """Every frame was decided, exactly as without faults."""
    assert sorted(boards.known) == list(range(FRAMES))
    assert [content(boards.known[seq]) for seq in range(FRAMES)] == undisturbed
    assert boards.contradicted == []
    assert boards.intake.waiting == boards.intake.counters.lost == 0


def every(n: int, fault: Fault) -> Plan:
    """Return a plan that harms one message in `n`."""
    return lambda index: fault if index % n == n - 1 else None


def test_a_network_without_faults_changes_nothing(boards, undisturbed):
    boards.run_to(FRAMES)
    check(boards, undisturbed)
    counters = boards.compute.counters
    assert counters['bad'] == counters['missing'] == 0


@pytest.mark.parametrize('fault', list(Fault))
def test_one_kind_of_fault_is_counted_and_changes_no_decision(fault, boards, undisturbed):
    boards.frames_proxy.forth = every(7, fault)
    boards.run_to(HARMED)
    boards.frames_proxy.forth = None
    boards.run_to(FRAMES)
    check(boards, undisturbed)
    done, counters = boards.frames_proxy.counts[fault], boards.compute.counters
    assert done >= 4
    if fault in (Fault.TRUNCATE, Fault.FLIP, Fault.VERSION):
        assert counters['bad'] == done
        assert any('malformed message' in text for text in boards.told)
        assert counters['missing'] > 0
    elif fault is Fault.DOUBLE:
        assert counters['repeated'] >= done
        assert boards.intake.counters.duplicate >= done
    elif fault in (Fault.GARBLE, Fault.CUT):
        assert counters['disconnects'] >= 3
        assert any('a connection has ended' in text for text in boards.told)
    else:
        assert counters['missing'] >= done
        assert boards.intake.counters.gaps > 0
        assert boards.intake.counters.recovered > 0


@pytest.mark.parametrize('seed', range(3))
def test_a_mix_of_faults_on_every_way_changes_no_decision(seed, boards, undisturbed):
    boards.harm(seeded(seed, 0.15, MILD))
    boards.run_to(HARMED)
    boards.harm(None)
    boards.run_to(FRAMES)
    check(boards, undisturbed)
    done = sum((proxy.counts for proxy in boards.proxies), start=boards.frames_proxy.counts)
    assert len(done) == len(MILD)
    assert boards.compute.counters['bad'] + boards.gateway.counters['bad'] > 0


def test_connections_that_break_again_and_again_change_no_decision(boards, undisturbed):
    boards.harm(seeded(5, 0.08))
    boards.run_to(HARMED)
    boards.harm(None)
    for proxy in boards.proxies:
        proxy.reset()
    boards.run_to(FRAMES)
    check(boards, undisturbed)
    assert boards.compute.counters['disconnects'] > 0
    assert boards.gateway.counters['disconnects'] > 0


def test_an_answer_that_is_no_zmtp_does_not_end_the_asking_for_good(boards, undisturbed):
    """libzmq never connects again after such bytes from a peer it connected to: the link does."""
    boards.frames_proxy.forth = every(9, Fault.DROP)
    boards.requests_proxy.back = lambda index: Fault.GARBLE if index == 1 else None
    boards.run_to(FRAMES)
    check(boards, undisturbed)
    assert boards.requests_proxy.counts[Fault.GARBLE] == 1
    assert boards.compute.counters['disconnects'] >= 1
    assert boards.intake.counters.recovered > 0


@pytest.mark.parametrize('fault', [Fault.FLIP, Fault.TRUNCATE, Fault.DOUBLE])
def test_with_keys_what_is_altered_or_repeated_never_reaches_the_decoder(
    fault, guarded, undisturbed
):
    """CURVE authenticates each message; libzmq is deaf after a bad one until heartbeats end it."""
    guarded.frames_proxy.forth = lambda index: fault if index == 12 else None
    guarded.run_to(FRAMES)
    check(guarded, undisturbed)
    counters = guarded.compute.counters
    assert guarded.frames_proxy.counts[fault] == 1
    assert counters['bad'] == 0
    assert counters['handshakes_failed'] + counters['disconnects'] > 0
    assert any('a peer was refused' in text for text in guarded.told)


def test_with_keys_a_lost_message_changes_no_decision(guarded, undisturbed):
    guarded.frames_proxy.forth = every(9, Fault.DROP)
    guarded.run_to(FRAMES)
    check(guarded, undisturbed)
    assert guarded.compute.counters['missing'] >= guarded.frames_proxy.counts[Fault.DROP] >= 4


def test_a_half_open_network_is_noticed_at_both_ends_and_recovers(boards, undisturbed):
    boards.run_to(HARMED)
    for proxy in boards.proxies:
        proxy.freeze()
    started_s = time.monotonic()
    wait_until(lambda: noticed(boards), 5, 'an end took a dead connection for a living one')
    assert time.monotonic() - started_s < 2
    for proxy in boards.proxies:
        proxy.thaw()
    boards.run_to(FRAMES)
    check(boards, undisturbed)


def test_a_half_open_network_with_keys_is_noticed_at_both_ends(guarded, undisturbed):
    guarded.run_to(HARMED)
    for proxy in guarded.proxies:
        proxy.freeze()
    started_s = time.monotonic()
    wait_until(lambda: noticed(guarded), 5, 'an end took a dead connection for a living one')
    assert time.monotonic() - started_s < 2
    for proxy in guarded.proxies:
        proxy.thaw()
    guarded.run_to(FRAMES)
    check(guarded, undisturbed)


def noticed(boards: Boards) -> bool:
    """Whether both ends know of every connection that they have made that it is dead.

    Sockets that bind send no heartbeats of their own (docs/wire-format.md): they may not know.
    """
    connecting = {boards.gateway: 1, boards.compute: 2}
    return all(
        end.counters['disconnects'] >= n and 'a connection has ended' in end.last_error
        for end, n in connecting.items()
    )
