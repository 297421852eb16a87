# SPDX-License-Identifier: Apache-2.0
"""What the page knows of bars and decisions: bounded, safe between threads. No ROS, no browser.

Bars and decisions come from topics, which may lose some, and again from the gateway's history and
the journal, which have all: whatever comes twice changes nothing, and the order does not matter.
Every change gets the next number, so that a page asks for what changed since the last one it saw.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, insort
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from heqis_core.bars import BarBlock
from heqis_core.decision import Decisions
from heqis_dashboard.marks import VALID, Candle, Mark, candle_of, mark_of, place_of

MAX_STREAMS = 16
"""A stream beyond these is refused and counted: names come from the wire."""
KEEP_SIGNALS = 200
"""Newest signals, of all symbols, that are kept for the table."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What became known of one symbol since a change.

    Attributes:
        change: where the next question starts.
        whole: the lists hold everything that is kept, not only what changed.
        candles: by time.
        marks: by time, each with the candle it stands on: a mark without one waits for it.
    """

    change: int
    whole: bool
    candles: list[Candle]
    marks: list[tuple[Mark, Candle]]


@dataclass(slots=True)
class _Moment:
    """One event time of a stream, with the numbers of the changes that brought its parts."""

    block: BarBlock | None = None
    decisions: Decisions | None = None
    block_change: int = 0
    decisions_change: int = 0


@dataclass(slots=True)
class _Stream:
    symbols: tuple[str, ...] = ()
    symbols_of: tuple[bool, int] = (False, -(1 << 63))
    """What named the symbols: whether it was bars, and of which event time."""
    places: dict[str, int] = field(default_factory=dict)
    moments: dict[int, _Moment] = field(default_factory=dict)
    times: list[int] = field(default_factory=list)
    dropped_ns: int = -(1 << 63)
    """The newest event time that was dropped."""
    log: deque[tuple[int, int]] = field(default_factory=deque)
    """(change, event time), oldest first."""
    forgotten: int = 0
    """The newest change that the log no longer holds, or that took something back."""
    seqs: set[int] = field(default_factory=set)
    """Seq of the bar blocks seen, as far as they may still be asked for."""


class Feed:
    """The newest bars and decisions of every stream.

    Args:
        history: event times of each stream that are kept.
        max_bytes: bound of all bars and decisions; the oldest event time of the largest stream
            goes first, one of each stream stays.
    """

    def __init__(self, history: int, max_bytes: int) -> None:
        self._history = history
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._bytes = 0
        self._signals: list[tuple[int, str, str, Mark]] = []
        self.change = 0
        """Grows with whatever became known."""
        self.universe = 0
        """Grows when `choices` has other symbols to offer."""
        self.counters = {'bars': 0, 'frames': 0, 'streams_refused': 0, 'moments_dropped': 0}

    # --- in ---

    def add_bars(self, stream: str, seq: int, block: BarBlock) -> bool:
        """Take a bar block; return whether it was new. A higher revision replaces a lower one."""
        with self._lock:
            found = self._stream(stream)
            if found is None:
                return False
            self._note_seq(found, seq)
            if self._too_old(found, block.event_time_ns):
                return False
            moment = self._moment(found, block.event_time_ns)
            if moment.block is not None and moment.block.revision >= block.revision:
                return False
            others = self._take_symbols(found, (True, block.event_time_ns), block.symbols)
            anew = others or moment.block is not None
            self._bytes += _size(block) - _size(moment.block)
            moment.block = block
            moment.block_change = self._changed(found, block.event_time_ns, anew)
            self.counters['bars'] += 1
            self._forget()
            return True

    def skip_bars(self, stream: str, seq: int) -> None:
        """Ask no more for a bar block that came and cannot be read."""
        with self._lock:
            found = self._stream(stream)
            if found is not None:
                self._note_seq(found, seq)

    def add_decisions(self, decisions: Decisions) -> bool:
        """Take the decisions of one frame; return whether they were new."""
        with self._lock:
            found = self._stream(decisions.stream)
            if found is None or self._too_old(found, decisions.event_time_ns):
                return False
            moment = self._moment(found, decisions.event_time_ns)
            if moment.decisions is not None and moment.decisions.revision >= decisions.revision:
                return False
            head = (decisions.event_time_ns, decisions.stream)
            others = self._take_symbols(found, (False, head[0]), decisions.symbols)
            anew = others or moment.decisions is not None
            if moment.decisions is not None:
                self._signals = [row for row in self._signals if row[:2] != head]
            self._bytes += _size(decisions) - _size(moment.decisions)
            moment.decisions = decisions
            moment.decisions_change = self._changed(found, decisions.event_time_ns, anew)
            self.counters['frames'] += 1
            self._keep_signals(decisions)
            self._forget()
            return True

    # --- out ---

    def choices(self) -> tuple[tuple[str, str], ...]:
        """Return (stream, symbol) of everything that can be shown, sorted."""
        with self._lock:
            return tuple(
                (name, symbol)
                for name in sorted(self._streams)
                for symbol in sorted(self._streams[name].places)
            )

    def changes(self, stream: str, symbol: str, since: int, limit: int) -> Changes:
        """Return what became known of a symbol since a change, or its last `limit` candles.

        All of it comes for `since` < 0, for one so old that it is no longer known what changed,
        and after a higher revision or another universe: they may take back what was told.
        """
        with self._lock:
            found = self._streams.get(stream)
            place = None if found is None else found.places.get(symbol)
            if found is None or place is None:
                return Changes(self.change, True, [], [])
            whole = since < found.forgotten
            times = _last_candles(found, symbol, place, limit) if whole else _since(found, since)
            candles: list[Candle] = []
            marks: list[tuple[Mark, Candle]] = []
            for time_ns in times:
                moment = found.moments[time_ns]
                candle = candle_of(moment.block, symbol, place)
                if candle is None:
                    continue
                bar_is_new = whole or moment.block_change > since
                if bar_is_new:
                    candles.append(candle)
                if bar_is_new or moment.decisions_change > since:
                    mark = mark_of(moment.decisions, symbol, place)
                    if mark is not None:
                        marks.append((mark, candle))
            return Changes(self.change, whole, candles, marks)

    def signals(self, n: int) -> list[Mark]:
        """Return the newest `n` BUY and SELL of all symbols, newest first."""
        with self._lock:
            return [row[-1] for row in self._signals[: -n - 1 : -1]]

    def last_time_ns(self) -> int:
        """Return the newest event time of any stream, 0 if there is none."""
        with self._lock:
            return max((s.times[-1] for s in self._streams.values() if s.times), default=0)

    def missing_bars(self, stream: str, oldest_seq: int, next_seq: int) -> tuple[int, int] | None:
        """Return the newest run of bar blocks in [oldest, next) that never came, if there is one.

        What is older than the history, or of a stream that is refused, is not asked for. Both ends
        of the run are inclusive.
        """
        oldest_seq = max(oldest_seq, next_seq - self._history)
        with self._lock:
            found = self._streams.get(stream)
            if found is None and len(self._streams) >= MAX_STREAMS:
                return None
            seqs: set[int] = set() if found is None else found.seqs
            if found is not None:
                seqs.intersection_update(range(oldest_seq, next_seq + self._history))
            last = next_seq - 1
            while last >= oldest_seq and last in seqs:
                last -= 1
            first = last
            while first > oldest_seq and first - 1 not in seqs:
                first -= 1
            return (first, last) if last >= oldest_seq else None

    @property
    def n_bytes(self) -> int:
        """Return how many bytes the bars and decisions hold."""
        return self._bytes

    # --- inside; the lock is held ---

    def _stream(self, name: str) -> _Stream | None:
        found = self._streams.get(name)
        if found is None:
            if len(self._streams) >= MAX_STREAMS:
                self.counters['streams_refused'] += 1
                return None
            found = self._streams[name] = _Stream()
        return found

    def _note_seq(self, stream: _Stream, seq: int) -> None:
        stream.seqs.add(seq)
        if len(stream.seqs) > 2 * self._history:
            stream.seqs = set(sorted(stream.seqs)[-self._history :])

    def _too_old(self, stream: _Stream, time_ns: int) -> bool:
        full = len(stream.times) >= self._history
        return time_ns <= stream.dropped_ns or (full and time_ns < stream.times[0])

    def _moment(self, stream: _Stream, time_ns: int) -> _Moment:
        moment = stream.moments.get(time_ns)
        if moment is None:
            moment = stream.moments[time_ns] = _Moment()
            insort(stream.times, time_ns)
        return moment

    def _take_symbols(
        self, stream: _Stream, of: tuple[bool, int], symbols: tuple[str, ...]
    ) -> bool:
        # The newest bars say what there is, until bars come the newest decisions.
        if of < stream.symbols_of:
            return False
        stream.symbols_of = of
        if symbols is stream.symbols or symbols == stream.symbols:
            return False
        self.universe += 1
        stream.symbols = symbols
        stream.places = {symbol: place for place, symbol in enumerate(symbols)}
        return True

    def _changed(self, stream: _Stream, time_ns: int, anew: bool) -> int:
        self.change += 1
        if anew:
            stream.forgotten = self.change
            stream.log.clear()
            return self.change
        stream.log.append((self.change, time_ns))
        if len(stream.log) > 4 * self._history:
            stream.forgotten = stream.log.popleft()[0]
        return self.change

    def _keep_signals(self, decisions: Decisions) -> None:
        for place in np.flatnonzero(decisions.is_signal())[-KEEP_SIGNALS:]:
            symbol = decisions.symbols[place]
            mark = mark_of(decisions, symbol, int(place))
            if mark is None:  # an action that nobody knows
                continue
            key = (decisions.event_time_ns, decisions.stream, symbol)
            at = bisect_left(self._signals, key)
            if at < len(self._signals) and self._signals[at][:3] == key:
                self._signals[at] = (*key, mark)
            else:
                self._signals.insert(at, (*key, mark))
        del self._signals[:-KEEP_SIGNALS]

    def _forget(self) -> None:
        for stream in self._streams.values():
            while len(stream.times) > self._history:
                self._drop(stream)
        while self._bytes > self._max_bytes:
            largest = max(self._streams.values(), key=lambda stream: len(stream.times))
            if len(largest.times) < 2:
                return
            self._drop(largest)

    def _drop(self, stream: _Stream) -> None:
        stream.dropped_ns = stream.times.pop(0)
        moment = stream.moments.pop(stream.dropped_ns)
        self._bytes -= _size(moment.block) + _size(moment.decisions)
        self.counters['moments_dropped'] += 1


def _size(part: BarBlock | Decisions | None) -> int:
    return 0 if part is None else part.nbytes


def _since(stream: _Stream, since: int) -> list[int]:
    times = set()
    for change, time_ns in reversed(stream.log):
        if change <= since:
            break
        if time_ns in stream.moments:
            times.add(time_ns)
    return sorted(times)


def _last_candles(stream: _Stream, symbol: str, place: int, limit: int) -> list[int]:
    found: list[int] = []
    for time_ns in reversed(stream.times):
        if len(found) == limit:
            break
        block = stream.moments[time_ns].block
        at = None if block is None else place_of(block.symbols, symbol, place)
        if block is not None and at is not None and block.status[at] == VALID:
            found.append(time_ns)
    return found[::-1]
