# SPDX-License-Identifier: Apache-2.0
"""Several sources as one: each in its own thread, aligned on event time. No ROS.

One that fails is opened again with back-off and stops nobody; one that is silent is waited for as
long as it deserves, then its symbols are missing until it speaks again. What is refused is counted
by source and reason, and kept in the quarantine file.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from heqis_core.align import ALWAYS_NS, KEPT_APART, Aligner, Channel
from heqis_core.bars import BarBlock
from heqis_core.clean import clean_block
from heqis_core.errors import DataError
from heqis_core.io.quarantine import Quarantine, QuarantineRow
from heqis_core.readings import Reading
from heqis_core.source import Cursor, EndOfStream
from heqis_gateway.member import Joined, JoinedBars, Member

AHEAD_NS = 60_000_000_000
"""How far a live event time may lie ahead of this clock: clocks differ, but not by more."""


class SourceGroup:
    """Hand over the blocks of several sources, in order of event time (a `Source`).

    Args:
        joined: the sources; those of bars must not share a symbol.
        channels: readings to join onto the bars, in order.
        amend: see `Aligner`.
        quarantine: takes what is refused.
        log: told of problems of sources, once each.

    Raises ConfigError for sources that cannot be aligned.
    """

    def __init__(
        self,
        joined: Sequence[Joined],
        channels: Sequence[Channel] = (),
        *,
        amend: int = 0,
        quarantine: Quarantine | None = None,
        log: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self._joined = tuple(joined)
        self._channels = tuple(channels)
        self.amend = amend
        self._quarantine = quarantine
        self._arrived = threading.Event()
        self._log = log
        self._members: tuple[Member, ...] = ()
        self._reset()

    # --- what a source is ---

    @property
    def symbols(self) -> tuple[str, ...]:
        """Return the symbols of all sources of bars, source by source."""
        return self._aligner.symbols

    @property
    def channels(self) -> tuple[str, ...]:
        """Return the names of the channels that are joined onto the bars."""
        return self._aligner.channels

    @property
    def finite(self) -> bool:
        """Return whether every source of bars ends by itself."""
        return all(one.source.finite for one in self._joined if isinstance(one, JoinedBars))

    @property
    def total(self) -> int | None:
        """Return None: how many event times the sources share shows in the end."""
        return None

    @property
    def counts(self) -> dict[str, int]:
        """Return what was refused, as `source.reason`."""
        counts: dict[str, int] = {}
        for one in self._joined:
            name = one.feed.name
            fates = self._aligner.ledger.counts[name]
            lost = {fate.value: fates[fate.value] for fate in KEPT_APART if fates[fate.value]}
            own = one.source.counts if isinstance(one, JoinedBars) else {}
            # Copies, here and below: the timer of a node reads what another thread writes.
            total = Counter(own) + Counter(lost) + Counter(self._rejected[name])
            counts.update({f'{name}.{reason}': n for reason, n in total.items()})
        return counts

    @property
    def fates(self) -> dict[str, int]:
        """Return what became of every bar and reading, as `source.fate`."""
        return {
            f'{name}.{fate}': n
            for name, counts in self._aligner.ledger.counts.items()
            for fate, n in dict(counts).items()
        }

    @property
    def problems(self) -> dict[str, str]:
        """Return the sources that give nothing now, and why."""
        return {m.name: m.condition.problem for m in self._members if m.condition.problem}

    @property
    def restarts(self) -> dict[str, int]:
        """Return how often each source was opened again."""
        return {member.name: member.condition.restarts for member in self._members}

    @property
    def own_counts(self) -> dict[str, int]:
        """Return what the sources count themselves, as `source.count`; refused bars are apart."""
        return {
            f'{one.feed.name}.{name}': n
            for one in self._joined
            for name, n in dict(
                one.counters if isinstance(one, JoinedBars) else one.source.counts
            ).items()
        }

    def open(self, cursor: Cursor | None) -> None:
        """Start every source, where `cursor` says; raise DataError if it is not of a group."""
        self.close()
        self._reset()
        cursors: dict[str, Any] = {}
        if cursor is not None:
            try:
                cursors = dict(cursor['sources'])
                self._aligner.load(cursor['align'])
                for name, counts in cursor['rejected'].items():
                    self._rejected.get(name, Counter()).update(counts)
            except (KeyError, TypeError, ValueError) as error:
                raise DataError(
                    f'cursor {str(cursor)[:200]} is not of several sources: {error!r}: '
                    'remove the checkpoint'
                ) from error
        self._cursors.update({name: at for name, at in cursors.items() if name in self._rejected})
        self._members = tuple(Member(one, self._arrived, self._log) for one in self._joined)
        for member in self._members:
            member.start(self._cursors.get(member.name))

    def poll(self, timeout_s: float) -> BarBlock | None:
        """Return the next block, or None if none is due in time; EndOfStream after the last."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._arrived.clear()
            self._fill()
            block = self._aligner.pop(self._ignored())
            if block is not None:
                self._note(block)
                return block
            if self._over():
                raise EndOfStream
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return None
            # Not longer: that a source was waited for long enough shows without any arrival.
            self._arrived.wait(min(left_s, 0.05))

    def cursor(self) -> Cursor:
        """Return where each source goes on after the last block, and the state of alignment."""
        return {
            'kind': 'group',
            'sources': dict(self._cursors),
            'align': self._aligner.save(),
            'rejected': {name: dict(counts) for name, counts in self._rejected.items()},
            'counts': self.counts,
        }

    def close(self) -> None:
        """Stop every source."""
        for member in self._members:
            member.close()
        self._keep_refused()

    # --- inside ---

    def _reset(self) -> None:
        self._aligner = Aligner(
            [one.feed for one in self._joined], self._channels, amend=self.amend
        )
        self._rejected: dict[str, Counter[str]] = {
            one.feed.name: Counter() for one in self._joined
        }
        self._cursors: dict[str, Cursor | None] = {}
        # Of each source: the event times of blocks that are not out, and the cursors after them.
        self._ahead: dict[str, deque[tuple[int, Cursor | None]]] = {
            one.feed.name: deque() for one in self._joined
        }
        self._silent: set[str] = set()
        self._waiting_s: float | None = None

    def _fill(self) -> None:
        """Move items into the alignment: from those that hold it up, else one from each."""
        while True:
            wanted = self._aligner.waits_for() or tuple(m.name for m in self._members)
            moved = [self._move(member) for member in self._members if member.name in wanted]
            for member in self._members:
                if member.ended:
                    self._aligner.advance(member.name, ALWAYS_NS)
            if not any(moved) or not self._aligner.waits_for():
                break
        self._keep_refused()

    def _move(self, member: Member) -> bool:
        item = member.take()
        if item is None:
            return False
        name, joined = member.name, member.joined
        self._silent.discard(name)
        not_after_ns = time.time_ns() + AHEAD_NS if joined.live else ALWAYS_NS
        if isinstance(item.given, BarBlock):
            block = self._clean(name, item.given) if joined.live else item.given
            # What is refused never comes out: its cursor may be passed with the next block.
            refused = block.event_time_ns > not_after_ns
            self._ahead[name].append((0 if refused else block.event_time_ns, item.cursor))
            self._aligner.put_readings(name, _readings(block), not_after_ns)
            self._aligner.put_block(name, block, not_after_ns)
        else:
            self._aligner.put_readings(name, item.given, not_after_ns)
            self._aligner.advance(name, item.complete_ns)
        return True

    def _clean(self, name: str, block: BarBlock) -> BarBlock:
        cleaned, rejected = clean_block(block)
        for bar in rejected:
            self._rejected[name][bar.reason] += 1
            self._keep(QuarantineRow(name, *bar))
        return cleaned

    def _ignored(self) -> frozenset[str]:
        """Return the sources that the next block no longer waits for."""
        held_up = set(self._aligner.waits_for(frozenset(self._silent)))
        if not held_up:
            self._waiting_s = None
            return frozenset(self._silent)
        now_s = time.monotonic()
        if self._waiting_s is None:
            self._waiting_s = now_s
        waited_s = now_s - self._waiting_s
        for member in self._members:
            limit_s = member.joined.wait_s
            if member.name in held_up and limit_s is not None and waited_s >= limit_s:
                # It stays left out until it speaks: not every block waits for it anew.
                self._silent.add(member.name)
        return frozenset(self._silent)

    def _note(self, block: BarBlock) -> None:
        self._waiting_s = None
        for name, ahead in self._ahead.items():
            while ahead and ahead[0][0] <= block.event_time_ns:
                self._cursors[name] = ahead.popleft()[1]

    def _over(self) -> bool:
        bars = [m for m in self._members if isinstance(m.joined, JoinedBars)]
        return bool(bars) and all(m.ended for m in bars) and not self._aligner.waits_for()

    def _keep_refused(self) -> None:
        for fate, one in self._aligner.ledger.take_refused():
            field = one.channel or 'close'
            self._keep(
                QuarantineRow(
                    one.feed, one.symbol, one.event_time_ns, fate.value, field, one.value
                )
            )

    def _keep(self, row: QuarantineRow) -> None:
        if self._quarantine is not None:
            self._quarantine.keep(row)


def _readings(block: BarBlock) -> list[Reading]:
    """Return what a source of bars says beside them, as readings of the same event time."""
    if block.extra is None:
        return []
    said = np.argwhere(np.isfinite(block.extra)).tolist()
    return [
        Reading(block.event_time_ns, block.symbols[s], block.channels[c], float(block.extra[c, s]))
        for c, s in said
    ]
