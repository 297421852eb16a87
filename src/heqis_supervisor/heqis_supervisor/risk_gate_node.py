# SPDX-License-Identifier: Apache-2.0
"""The risk gate: proposed decisions in; judged, durable and only then published.

A frame that comes again is only answered with `committed`. Frames that a kill may have caught
between their commit and their publication are published once more at the next start, so
`signals` and `decisions` are at-least-once: whoever acts on them looks at the key.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rclpy.duration import Duration

from heqis_core.control import Event, Level
from heqis_core.decision import Decisions
from heqis_core.errors import JournalError, WireError
from heqis_core.io import journal_format as fmt
from heqis_msgs import msg as m
from heqis_msgs import srv
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
from heqis_supervisor.kill_switch import (
    KillSwitch,
    Origin,
    Word,
    decode_word,
    encode_word,
    one_reason,
)
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
_KEPT_AS = {Origin.SERVICE: fmt.KILL_SWITCH, Origin.FILE: 'kill_file'}
"""Names of the switch's words in the journal."""
_STOPPED = GateState(kill_switch=True)
_NAMED = 8
_ORIGIN_BITS = {Origin.SERVICE: 1, Origin.FILE: 2}
"""The counter `kill_switch` is their sum: 0 is not engaged."""


class RiskGateNode(ManagedNode):
    """Lets decisions out after the journal's commit."""

    PARAMS = RISK_GATE

    def __init__(self, store: Store) -> None:
        """Create an unconfigured node over the process's store."""
        super().__init__()
        self._store = store
        self._gate = GateState()
        self._bounds = Bounds(RiskRules())
        self._switch = KillSwitch(None, {}, time.time_ns)
        self._event_clock = EventClock()
        self._activated_s = self._gateway_s = self._reader_s = self._heard_s = 0.0
        self._alone = False

    def configure(self, params: Any) -> None:
        """Read the rules, open the journal and the ports; the kill switch is as it was left."""
        self._bounds = Bounds(load_risk_rules(params.rules))
        self._store.open(params.path)
        self.defer(self._store.close)
        self._gate = GateState()
        self._switch = self._kept_switch(params.kill_file)
        self._signals = self.publisher(m.Signals, 'signals', qos.SIGNALS)
        self._decisions = self.publisher(m.Decisions, 'decisions', qos.DECISIONS)
        self._committed = self.publisher(m.Committed, 'committed', qos.COMMITTED)
        self._events = self.publisher(m.Event, 'events', qos.EVENTS)
        self.subscription(m.Decisions, 'decisions/proposed', qos.DECISIONS, self._on_proposed)
        self._ears = Ears(self, lambda _, process: process == 'supervisor')
        self.defer(self._ears.close)
        self.service(srv.KillSwitch, '~/kill_switch', self._on_kill_switch)
        self.timer(REPORT_S, self._report)
        if self._switch.look():
            self.get_logger().warning(f'kill switch is {self._switch.text()}')

    def activate(self) -> None:
        """Begin to let decisions through."""
        self._event_clock = EventClock()
        with self._store.reading() as journal:
            self._event_clock.resume(journal.newest().values())
            held = [(row.stream, row.symbol) for row in journal.holdings()]
            self._bounds.resume(held, journal.last_committed(), journal.released_since)
        self._activated_s = self._gateway_s = self._reader_s = time.monotonic()
        self._heard_s = self._activated_s  # whoever activated this node was the supervisor
        self._leave_alone(False)
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
            self._heard_s = time.monotonic()
            if beat.hold != self._gate.hold:
                self._gate = replace(self._gate, hold=beat.hold)
                held = 'output is held' if beat.hold else 'output is no longer held'
                self.get_logger().warning(f'{held}, the supervisor says')
        silent_s = time.monotonic() - self._heard_s
        lease_s = self.params.supervisor_lease_ms / 1000
        alone = self.params.require_supervisor and silent_s > lease_s
        if alone and not self._alone:
            self.get_logger().warning(f'no supervisor for {silent_s:.1f} s: decisions wait')
        elif self._alone and not alone:
            self.get_logger().info('the supervisor is heard again: decisions are judged')
        self._leave_alone(alone)

    def _leave_alone(self, alone: bool) -> None:
        """Let decisions wait while nobody could hold them: they are neither let out nor refused.

        A refusal would be for good: a supervisor that was killed and is back within seconds must
        not change what is decided. What waited too long is refused as stale when it is judged.
        """
        if alone != self._alone:
            self._alone = alone
            self._store.pause(alone)

    # --- the kill switch ---

    def _kept_switch(self, kill_file: str) -> KillSwitch:
        file = Path(kill_file) if kill_file else None
        if file is not None and not os.path.isdir(file.parent):
            self.get_logger().warning(
                f'parameter kill_file is {kill_file}, but there is no folder '
                f'{file.parent.absolute()}: make it, or nobody can make the file'
            )
        now_ns = time.time_ns()
        kept = {
            origin: decode_word(self._store.get_meta(name), now_ns)
            for origin, name in _KEPT_AS.items()
        }
        return KillSwitch(file, kept, time.time_ns)

    def _on_kill_switch(
        self, request: srv.KillSwitch.Request, response: srv.KillSwitch.Response
    ) -> srv.KillSwitch.Response:
        reason = one_reason(request.reason)
        trouble = self._engage(reason) if request.engage else self._lift()
        engaged = self._switch.look()
        if request.engage or not trouble:
            self._tell_switch(Origin.SERVICE, request.engage, reason)
        text = 'every signal is refused' if engaged else 'signals go out again'
        response.engaged = engaged
        response.message = '; '.join(filter(None, (trouble, self._switch.text(), text)))
        return response

    def _engage(self, reason: str) -> str:
        # First in memory: whatever becomes of the journal, nothing goes out.
        word = self._switch.say(Origin.SERVICE, reason)
        try:
            self._keep_word(Origin.SERVICE, word)
        except JournalError as error:
            return f'this will not outlive a restart of the risk gate: {error}'
        return ''

    def _lift(self) -> str:
        # First in the journal: what cannot be written there stays engaged.
        try:
            self._keep_word(Origin.SERVICE, Word(False, '', time.time_ns()))
        except JournalError as error:
            # It may still be written later: then the old word is written after it.
            with suppress(JournalError):
                word = encode_word(self._switch.word(Origin.SERVICE))
                self._store.set_meta(_KEPT_AS[Origin.SERVICE], word, timeout_s=0.0)
            return f'not cleared: {error}'
        self._switch.say(Origin.SERVICE, None)
        return ''

    def _keep_word(self, origin: Origin, word: Word) -> None:
        self._store.set_meta(_KEPT_AS[origin], encode_word(word))

    def _tell_file_changes(self) -> None:
        self._switch.look()
        while self._switch.changes:
            word = self._switch.changes.popleft()
            self._tell_switch(Origin.FILE, word.engaged, word.reason)
            try:
                self._keep_word(Origin.FILE, word)
            except JournalError as error:
                # The file itself outlives a restart; then this is told once more.
                self.get_logger().warning(f'the word of the kill file was not kept: {error}')

    def _tell_switch(self, origin: Origin, engaged: bool, reason: str) -> None:
        text = f'{"engaged" if engaged else "cleared"} by {origin.value}'
        text = f'{text}: {reason}' if reason else text
        if not engaged and (others := self._switch.origins()):
            text += f'; still engaged by {", ".join(other.value for other in others)}'
        self._tell(text)

    def _tell(self, text: str) -> None:
        name = self.get_name()
        event = Event(time.time_ns(), Level.WARN, name, 'kill_switch', name, text)
        self.get_logger().warning(f'kill switch {text}')
        if not (self.active and self.publish(self._events, event_to_msg(event))):
            self._store.put_event(event)

    def _report(self) -> None:
        self._store.check()
        self._listen()
        self._tell_file_changes()
        republished = self._store.counters['republished']
        if republished > self.vitals.counters().get('republished', 0):
            self.get_logger().warning(f'{republished} frames were published once more')
        for name, value in self._store.counters.items():
            self.set_counter(name, value)
        origins = self._switch.origins()
        self.set_counter('kill_switch', sum(_ORIGIN_BITS[origin] for origin in origins))
        self.set_counter('hold', int(self._gate.hold))
        self.set_counter('waiting_for_supervisor', int(self._alone))
        self._report_bounds()
        self.set_pending(self._store.pending)
        self.stage_us('commit', self._store.commit_us)
        stopped = f'kill switch {self._switch.text()}' if origins else ''
        waits = 'decisions wait: the supervisor is silent' if self._alone else ''
        trouble = '; '.join(filter(None, (stopped, waits, self._store.error)))
        self.set_info(trouble or f'{self.params.clock} clock', degraded=bool(trouble))

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
        # The file may have come since the last report: looked at for each frame.
        gate = replace(self._gate, kill_switch=self._switch.look())
        return self._bounds.judge(judge(decisions, now_ns, gate))

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
        withheld: list[Decisions] = []
        stopped = self._switch.look()
        for item, fresh in zip(decisions, new, strict=True):
            closed.setdefault((item.stream, item.epoch), []).append(item.seq)
            if not fresh:
                continue
            if stopped and item.is_signal().any():
                withheld.append(item)
                item = judge(item, 0, _STOPPED)
            signals = signals_from(item)
            if signals.signals:
                self.count('signals', len(signals.signals))
                done &= self.publish(self._signals, signals)
            if listened:
                done &= self.publish(self._decisions, decisions_to_msg(item))
        for (stream, epoch), seqs in closed.items():
            done &= self.publish(self._committed, committed_to_msg(stream, epoch, seqs))
        self.progress(len(decisions))
        if withheld:
            self._tell_withheld(withheld)
        return done

    def _tell_withheld(self, frames: Sequence[Decisions]) -> None:
        # Judged before the switch was engaged, caught between the journal and the topics.
        n = sum(int(frame.is_signal().sum()) for frame in frames)
        self.count('signals_withheld', n)
        of = ', '.join(f'{frame.stream} seq {frame.seq}' for frame in frames[:_NAMED])
        more = f' and {len(frames) - _NAMED} more frames' if len(frames) > _NAMED else ''
        self._tell(f'withheld {n} signals that were durable before: {of}{more}')
