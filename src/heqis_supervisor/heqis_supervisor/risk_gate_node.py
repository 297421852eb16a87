# SPDX-License-Identifier: Apache-2.0
"""The risk gate: proposed decisions in; judged, durable and only then published.

A frame that comes again is only answered with `committed`. Frames that a kill may have caught
between their commit and their publication are published once more at the next start, so
`signals` and `decisions` are at-least-once: whoever acts on them looks at the key.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from rclpy.duration import Duration

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions
from heqis_core.errors import JournalError, WireError
from heqis_msgs import msg as m
from heqis_msgs.srv import KillSwitch
from heqis_ros import qos
from heqis_ros.convert import (
    committed_to_msg,
    decisions_to_msg,
    msg_to_decisions,
    signals_from,
)
from heqis_ros.convert_health import event_to_msg
from heqis_ros.ears import Ears
from heqis_ros.node import ManagedNode
from heqis_supervisor.bounds import Bounds, RiskRules, load_risk_rules
from heqis_supervisor.params import RISK_GATE
from heqis_supervisor.risk_gate import EventClock, GateState, judge
from heqis_supervisor.store import Store

REPORT_S = 0.1
WAIT_FOR_GATEWAY_S = 10.0
"""Without a gateway there is nothing to do; after a kill it may take seconds to find it."""
WAIT_FOR_OTHERS_S = 1.0
"""After a start, readers that are there already get this long to find the new publishers."""
SETTLE_S = 0.2
"""A publisher knows a reader a moment before that reader knows it."""
ACK_WAIT = Duration(nanoseconds=20_000_000)
"""Readers acknowledge some 5 ms after the last message."""
_KILL_SWITCH = 'kill_switch'


class RiskGateNode(ManagedNode):
    """Lets decisions out after the journal's commit."""

    PARAMS = RISK_GATE

    def __init__(self, store: Store) -> None:
        """Create an unconfigured node over the process's store."""
        super().__init__()
        self._store = store
        self._gate = GateState()
        self._bounds = Bounds(RiskRules())
        self._event_clock = EventClock()
        self._activated_s = self._gateway_s = self._reader_s = 0.0

    def configure(self, params: Any) -> None:
        """Read the rules, open the journal and the ports; the kill switch is as it was left."""
        self._bounds = Bounds(load_risk_rules(params.rules))
        self._store.open(params.path)
        self.defer(self._store.close)
        kept = json.loads(self._store.get_meta(_KILL_SWITCH) or '{}')
        self._gate = GateState(kill_switch=bool(kept.get('engaged')))
        self._signals = self.publisher(m.Signals, 'signals', qos.SIGNALS)
        self._decisions = self.publisher(m.Decisions, 'decisions', qos.DECISIONS)
        self._committed = self.publisher(m.Committed, 'committed', qos.COMMITTED)
        self._events = self.publisher(m.Event, 'events', qos.EVENTS)
        self.subscription(m.Decisions, 'decisions/proposed', qos.DECISIONS, self._on_proposed)
        self._ears = Ears(self, lambda _, process: process == 'supervisor')
        self.defer(self._ears.close)
        self.service(KillSwitch, '~/kill_switch', self._on_kill_switch)
        self.timer(REPORT_S, self._report)
        if self._gate.kill_switch:
            self.get_logger().warning(f'kill switch is engaged: {kept.get("reason")}')

    def activate(self) -> None:
        """Begin to let decisions through."""
        self._event_clock = EventClock()
        with self._store.reading() as journal:
            self._event_clock.resume(journal.newest().values())
            held = [(row.stream, row.symbol) for row in journal.holdings()]
            self._bounds.resume(held, journal.last_committed(), journal.released_since)
        self._activated_s = self._gateway_s = self._reader_s = time.monotonic()
        self._store.attach(self, batch=self.params.batch, queue=self.params.queue)

    def deactivate(self) -> None:
        """Let nothing through; what waits stays open at the gateway."""
        self._store.detach()
        self.set_pending(0)

    # --- in: the executor's thread ---

    def _on_proposed(self, message: m.Decisions) -> None:
        try:
            item = msg_to_decisions(message)
        except WireError as error:
            self.count('bad_messages')
            self.get_logger().warning(f'not judged: {error}', throttle_duration_sec=5.0)
            return
        self._store.put_decisions(item)
        self.set_pending(self._store.pending)

    def _listen(self) -> None:
        for beat in self._ears.take():
            if beat.hold != self._gate.hold:
                self._gate = GateState(self._gate.kill_switch, beat.hold)
                held = 'output is held' if beat.hold else 'output is no longer held'
                self.get_logger().warning(f'{held}, the supervisor says')

    def _on_kill_switch(
        self, request: KillSwitch.Request, response: KillSwitch.Response
    ) -> KillSwitch.Response:
        kept = {'engaged': request.engage, 'reason': request.reason, 'stamp_ns': time.time_ns()}
        if request.engage:
            self._gate = GateState(True, self._gate.hold)
        try:
            self._store.set_meta(_KILL_SWITCH, json.dumps(kept))
        except JournalError as error:
            response.engaged = self._gate.kill_switch
            done = 'engaged, but not across a restart' if request.engage else 'not cleared'
            response.message = f'{done}: {error}'
            return response
        self._gate = GateState(request.engage, self._gate.hold)
        response.engaged = request.engage
        response.message = 'every signal is refused' if request.engage else 'signals go out again'
        self._tell_kill_switch(request)
        return response

    def _tell_kill_switch(self, request: KillSwitch.Request) -> None:
        done = 'engaged' if request.engage else 'cleared'
        text = f'{done}: {request.reason or "no reason given"}'
        event = Event(
            time.time_ns(), Level.WARN, self.get_name(), 'kill_switch', self.get_name(), text
        )
        self.get_logger().warning(f'kill switch {text}')
        if not (self.active and self.publish(self._events, event_to_msg(event))):
            self._store.put_event(event)

    def _report(self) -> None:
        self._store.check()
        self._listen()
        republished = self._store.counters['republished']
        if republished > self.vitals.counters().get('republished', 0):
            self.get_logger().warning(f'{republished} frames were published once more')
        for name, value in self._store.counters.items():
            self.set_counter(name, value)
        self.set_counter('kill_switch', int(self._gate.kill_switch))
        self.set_counter('hold', int(self._gate.hold))
        self._report_bounds()
        self.set_pending(self._store.pending)
        self.stage_us('commit', self._store.commit_us)
        state = 'kill switch engaged' if self._gate.kill_switch else f'{self.params.clock} clock'
        self.set_info(self._store.error or state)

    def _report_bounds(self) -> None:
        self.set_counter('positions', self._bounds.positions)
        unknown = self._bounds.unknown
        if len(unknown) != self.vitals.counters().get('rules_unknown', 0) and unknown:
            names = ', '.join(unknown[:8]) + (', …' if len(unknown) > 8 else '')
            self.get_logger().warning(
                f'{self.params.rules}: no stream has {names}; write symbols as in the universe'
            )
        self.set_counter('rules_unknown', len(unknown))

    # --- out: the store's thread ---

    def judge(self, decisions: Decisions) -> Decisions:
        """Refuse what may not go out."""
        replay = self.params.clock == 'event'
        now_ns = self._event_clock.now_ns(decisions) if replay else time.time_ns()
        return self._bounds.judge(judge(decisions, now_ns, self._gate))

    def settle(self, durable: bool) -> None:
        """Let what was judged count as released, or not."""
        self._bounds.settle(durable)

    def ready(self) -> bool:
        """Whether those who listened before this start have found it, or had the time to."""
        now_s = time.monotonic()
        if not self._committed.get_subscription_count():
            self._gateway_s = now_s
            return now_s - self._activated_s > WAIT_FOR_GATEWAY_S
        if not self._signals.get_subscription_count():
            self._reader_s = now_s
        heard = now_s - self._reader_s > SETTLE_S or now_s - self._gateway_s > WAIT_FOR_OTHERS_S
        return heard and now_s - self._gateway_s > SETTLE_S

    def acknowledged(self) -> bool:
        """Whether every reader has received what was published."""
        topics = (self._signals, self._decisions)
        return all(topic.wait_for_all_acked(ACK_WAIT) for topic in topics)

    def publish_frames(self, decisions: Sequence[Decisions], new: Sequence[bool]) -> bool:
        """Publish what is durable: new frames whole, of the others that they are."""
        done = True
        listened = self._decisions.get_subscription_count() > 0
        closed: dict[tuple[str, int], list[int]] = {}
        for item, fresh in zip(decisions, new, strict=True):
            closed.setdefault((item.stream, item.epoch), []).append(item.seq)
            if not fresh:
                continue
            signals = signals_from(item)
            if signals.signals:
                self.count('signals', len(signals.signals))
                done &= self.publish(self._signals, signals)
            if listened:
                done &= self.publish(self._decisions, decisions_to_msg(item))
        for (stream, epoch), seqs in closed.items():
            done &= self.publish(self._committed, committed_to_msg(stream, epoch, seqs))
        self.progress(len(decisions))
        return done
