# SPDX-License-Identifier: Apache-2.0
"""What a PLC reads: the latest decision of each symbol and the graph's health as registers.

Pure: time is an argument. docs/modbus.md gives every register. Values of several registers have
their most significant word first. What is old or held shows in the registers themselves, also
when nobody writes them any more: age and flags are worked out when they are read.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from enum import IntFlag
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.decision import Action, Decisions
from heqis_core.errors import ConfigError

LAYOUT_VERSION = 1
MAGIC = (0x4845, 0x5149)
"""`HEQI` in ASCII."""
HEADER_WORDS = 32
RECORDS_AT, RECORD_WORDS = 256, 32
SYMBOLS_AT, SYMBOL_WORDS = 50_000, 8
MOST_SYMBOLS = 1500
"""As many records as fit below the symbol table."""
LEASE_S = 1.0
"""Silence of whoever looks after the graph until it counts as dead."""
NO_AGE = 0xFFFFFFFF
NO_NUMBER = 0x8000
"""A scaled int16 that is none."""
_SCALE = 10_000
_OLD_EPOCHS = 16

(_ACTION, _FLAGS, _SIGNAL, _TARGET, _SCORE, _REVISION) = range(6)
_REASONS, _TARGET_F, _SCORE_F, _RETURN_F = (slice(at, at + 2) for at in (6, 8, 10, 12))
_BAR_TIME, _VALID_UNTIL, _SIGNAL_TIME = (slice(at, at + 4) for at in (14, 18, 22))
_AGE, _SEQ = slice(26, 28), slice(28, 30)
_DECIDED, _CHECK = 30, 31

Words = npt.NDArray[np.uint16]


class Status(IntFlag):
    """Header register 3."""

    ALIVE = 1 << 0
    """Every node that must run was heard lately and is active; only then the counter advances."""
    HELD = 1 << 1
    """The supervisor holds all output."""
    KILL_SWITCH = 1 << 2
    STALE = 1 << 3
    """The newest frame of decisions is older than `stale_after_ms`."""
    NO_DECISION = 1 << 4
    """No decision has come since the start."""
    SYMBOLS_LEFT_OUT = 1 << 5
    """There are more symbols than records."""


class Flag(IntFlag):
    """Register 1 of a record."""

    CURRENT = 1 << 0
    """The record may be acted on: none of the other flags is set."""
    NO_DECISION = 1 << 1
    STALE = 1 << 2
    """Its validity has ended, or it is older than `stale_after_ms`."""
    HELD = 1 << 3
    KILL_SWITCH = 1 << 4
    GRAPH_DEAD = 1 << 5
    """The header's status is not ALIVE."""


class Health(NamedTuple):
    """How the graph is now.

    Attributes:
        required: number of nodes that must run.
        active: how many of them were heard lately and are active.
        held: output is on hold.
        kill_switch: the kill switch is engaged.
    """

    required: int
    active: int
    held: bool = False
    kill_switch: bool = False

    @property
    def alive(self) -> bool:
        """Whether everything that must run does."""
        return self.active >= self.required


class RegisterImage:
    """The registers; written by one thread, read by another, every read of one moment."""

    def __init__(
        self,
        max_symbols: int,
        symbols: Sequence[str] = (),
        *,
        stream: str = '',
        stale_after_s: float = 60.0,
        event_clock: bool = False,
    ) -> None:
        """Make empty records.

        Args:
            max_symbols: number of records.
            symbols: names whose records come first, in this order, whether heard of or not.
            stream: whose decisions are shown; empty: the first one that is heard.
            stale_after_s: longest time without a new decision.
            event_clock: validity ends by the newest event time (replay), not by the wall clock.
        """
        if not 1 <= max_symbols <= MOST_SYMBOLS:
            raise ConfigError(f'max_symbols: {max_symbols}, expected 1 to {MOST_SYMBOLS}')
        if len(symbols) > max_symbols or len(set(symbols)) != len(symbols):
            raise ConfigError(
                f'symbols: {len(symbols)} names, expected at most {max_symbols} (max_symbols), '
                'each once'
            )
        self.counters = dict.fromkeys(
            ('frames', 'frames_missed', 'frames_repeated', 'other_streams', 'left_out'), 0
        )
        self.stream = stream
        self._stale_after_s = stale_after_s
        self._event_clock = event_clock
        self._lock = threading.Lock()
        self._words: Words = np.zeros(SYMBOLS_AT + SYMBOL_WORDS * max_symbols, np.uint16)
        self._header = self._words[:HEADER_WORDS]
        end = RECORDS_AT + RECORD_WORDS * max_symbols
        self._records = self._words[RECORDS_AT:end].reshape(max_symbols, RECORD_WORDS)
        self._names = self._words[SYMBOLS_AT:].reshape(max_symbols, SYMBOL_WORDS)
        self._readable = (
            (0, HEADER_WORDS),
            (RECORDS_AT, end),
            (SYMBOLS_AT, SYMBOLS_AT + SYMBOL_WORDS * max_symbols),
        )
        self._rows: dict[str, int] = {}
        self._known: tuple[str, ...] = ()
        self._known_rows: npt.NDArray[np.intp] = np.zeros(0, np.intp)
        self._heard_s = np.full(max_symbols, -np.inf)
        self._valid_until_ns = np.zeros(max_symbols, np.int64)
        self._newest_ns = self._epoch = 0
        self._seq = -1
        self._old_epochs: deque[int] = deque(maxlen=_OLD_EPOCHS)
        self._newest_s = self._alive_s = -np.inf
        self._health = Health(1, 0)
        self._header[:3] = (*MAGIC, LAYOUT_VERSION)
        self._header[6] = max_symbols
        self._header[8:12] = RECORDS_AT, RECORD_WORDS, SYMBOLS_AT, SYMBOL_WORDS
        self._clear(np.arange(max_symbols))
        self._add_symbols(symbols)

    def take(self, decisions: Decisions, now_s: float) -> bool:
        """Show the decisions of a frame; return False, counted, for one that is not newer.

        `now_s` is monotonic.
        """
        with self._lock:
            if not self._is_newer(decisions):
                return False
            rows = self._rows_of(decisions.symbols)
            shown = rows >= 0
            self._write(rows[shown], decisions, shown, now_s)
            self.counters['frames'] += 1
            return True

    def set_health(self, health: Health, now_s: float) -> None:
        """Say how the graph is; must come several times within `LEASE_S`. `now_s` is monotonic."""
        with self._lock:
            self._health = health
            if health.alive:
                self._alive_s = now_s
                self._header[4] = (int(self._header[4]) + 1) & 0xFFFF

    def read(self, address: int, count: int, now_s: float, now_ns: int) -> list[int] | None:
        """Return `count` registers from `address` as they are now, None if one does not exist.

        `now_s` is monotonic, `now_ns` the wall clock.
        """
        end = address + count
        if count < 1 or not any(low <= address < end <= high for low, high in self._readable):
            return None
        with self._lock:
            self._refresh(now_s, now_ns)
            words: list[int] = self._words[address:end].tolist()
            return words

    # --- decisions ---

    def _is_newer(self, decisions: Decisions) -> bool:
        if decisions.stream != (self.stream or decisions.stream):
            self.counters['other_streams'] += 1
            return False
        self.stream = decisions.stream
        epoch, seq = decisions.epoch, decisions.seq
        # The gateway's counter goes on when it starts again; one that begins anew is a new stream.
        known = epoch == self._epoch or epoch in self._old_epochs
        if known and (epoch != self._epoch or seq <= self._seq):
            self.counters['frames_repeated'] += 1
            return False
        if epoch != self._epoch:
            self._old_epochs.append(self._epoch)
            self._epoch, self._newest_ns = epoch, 0
        if seq > self._seq >= 0:
            self.counters['frames_missed'] += seq - self._seq - 1
        self._seq = seq
        return True

    def _rows_of(self, symbols: tuple[str, ...]) -> npt.NDArray[np.intp]:
        if symbols != self._known:
            self._add_symbols(symbols)
            self._known = symbols
            self._known_rows = np.array([self._rows.get(s, -1) for s in symbols], np.intp)
            self.counters['left_out'] = int((self._known_rows < 0).sum())
        return self._known_rows

    def _add_symbols(self, symbols: Sequence[str]) -> None:
        new = [symbol for symbol in symbols if symbol not in self._rows]
        for symbol in new[: len(self._records) - len(self._rows)]:
            row = self._rows[symbol] = len(self._rows)
            code = symbol.encode('ascii', 'replace')[: 2 * SYMBOL_WORDS].ljust(2 * SYMBOL_WORDS)
            self._names[row] = np.frombuffer(code, '>u2')
            self._header[7] += 1
        self._header[5] = len(self._rows)

    def _write(
        self,
        rows: npt.NDArray[np.intp],
        decisions: Decisions,
        shown: npt.NDArray[np.bool_],
        now_s: float,
    ) -> None:
        records, n = self._records, len(rows)
        action, target = decisions.action[shown], decisions.target_position[shown]
        score = decisions.score[shown]
        seq = _words(np.full(n, decisions.seq & 0xFFFFFFFF), '>u4')
        bar_time = _words(np.full(n, decisions.event_time_ns), '>i8')
        records[rows, _DECIDED] = action
        records[rows, _SCORE] = _scaled(score)
        records[rows, _REVISION] = decisions.revision & 0xFFFF
        records[rows, _REASONS] = _words(decisions.reasons[shown], '>u4')
        records[rows, _SCORE_F] = _words(score, '>f4')
        records[rows, _RETURN_F] = _words(decisions.predicted_return[shown], '>f4')
        records[rows, _BAR_TIME] = bar_time
        records[rows, _VALID_UNTIL] = _words(decisions.valid_until_ns[shown], '>i8')
        records[rows, _SEQ] = seq
        records[rows, _CHECK] = seq[:, 1]
        signal = action >= Action.BUY
        records[rows[signal], _SIGNAL] = action[signal]
        records[rows[signal], _TARGET] = _scaled(target[signal])
        records[rows[signal], _TARGET_F] = _words(target[signal], '>f4')
        records[rows[signal], _SIGNAL_TIME] = bar_time[signal]
        self._heard_s[rows] = self._newest_s = now_s
        self._valid_until_ns[rows] = decisions.valid_until_ns[shown]
        self._newest_ns = max(self._newest_ns, decisions.event_time_ns)
        self._header[18:22] = _words(np.array([decisions.event_time_ns]), '>i8')[0]
        self._header[26:28] = _words(np.array([decisions.seq & 0xFFFFFFFF]), '>u4')[0]

    def _clear(self, rows: npt.NDArray[np.intp]) -> None:
        self._records[rows, _TARGET] = self._records[rows, _SCORE] = NO_NUMBER
        nan = _words(np.full(1, np.nan), '>f4')
        for field in (_TARGET_F, _SCORE_F, _RETURN_F):
            self._records[rows, field] = nan

    # --- what depends on the time of the read ---

    def _refresh(self, now_s: float, now_ns: int) -> None:
        age_s = now_s - self._heard_s
        heard = np.isfinite(age_s)
        valid_ns = self._newest_ns if self._event_clock else now_ns
        stale = (age_s > self._stale_after_s) | (self._valid_until_ns < valid_ns)
        common = self._common_flags(now_s)
        flags = np.where(heard, np.where(stale, Flag.STALE, 0) | common, Flag.NO_DECISION | common)
        flags = np.where(flags == 0, Flag.CURRENT, flags)
        self._records[:, _FLAGS] = flags
        current = flags == Flag.CURRENT
        self._records[:, _ACTION] = np.where(current, self._records[:, _DECIDED], Action.NONE)
        self._records[:, _AGE] = _words(_milliseconds(age_s), '>u4')
        self._refresh_header(now_s, now_ns, common)

    def _common_flags(self, now_s: float) -> int:
        health = self._health
        alive = health.alive and now_s - self._alive_s <= LEASE_S
        return (
            (Flag.HELD if health.held else 0)
            | (Flag.KILL_SWITCH if health.kill_switch else 0)
            | (0 if alive else Flag.GRAPH_DEAD)
        )

    def _refresh_header(self, now_s: float, now_ns: int, common: int) -> None:
        ages_s = np.array([now_s - self._newest_s, now_s - self._alive_s])
        status = 0 if common & Flag.GRAPH_DEAD else Status.ALIVE
        status |= Status.HELD if common & Flag.HELD else 0
        status |= Status.KILL_SWITCH if common & Flag.KILL_SWITCH else 0
        if self._seq < 0:
            status |= Status.NO_DECISION
        elif ages_s[0] > self._stale_after_s:
            status |= Status.STALE
        status |= Status.SYMBOLS_LEFT_OUT if self.counters['left_out'] else 0
        self._header[3] = status
        self._header[12:14] = self._health.required, self._health.active
        self._header[14:18] = _words(_milliseconds(ages_s), '>u4').reshape(-1)
        self._header[22:26] = _words(np.array([now_ns]), '>i8')[0]
        counts = [self.counters[name] & 0xFFFFFFFF for name in ('frames', 'frames_missed')]
        self._header[28:32] = _words(np.array(counts), '>u4').reshape(-1)


def _words(values: npt.NDArray[Any], dtype: str) -> npt.NDArray[np.uint16]:
    """Return N numbers as registers (N, words), the most significant word first."""
    raw = np.ascontiguousarray(values.astype(dtype)).view('>u2')
    return raw.reshape(len(values), np.dtype(dtype).itemsize // 2).astype(np.uint16)


def _scaled(values: npt.NDArray[np.float32]) -> Words:
    """Return numbers × 10000 as int16 bits, `NO_NUMBER` for NaN; what is larger is cut off."""
    none = np.isnan(values)
    scaled = np.clip(np.rint(np.where(none, 0, values) * _SCALE), -32_767, 32_767)
    return np.where(none, np.uint16(NO_NUMBER), scaled.astype(np.int16).view(np.uint16))


def _milliseconds(ages_s: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Return ages in ms, `NO_AGE` for infinity, one less for what is too long to say."""
    finite = np.isfinite(ages_s)
    whole = np.clip(np.where(finite, ages_s, 0) * 1000, 0, NO_AGE - 1).astype(np.int64)
    return np.where(finite, whole, NO_AGE)
