# SPDX-License-Identifier: Apache-2.0
"""What a page draws of one symbol, out of bar blocks and decisions: candles and marks."""

from __future__ import annotations

from dataclasses import dataclass

from heqis_core.bars import BarBlock, BarStatus
from heqis_core.decision import REFUSALS, Action, Decisions, reason_names
from heqis_core.frame import Stage

# Plain numbers: a look at an enum costs more than everything else that is done for a candle.
VALID, _NONE = int(BarStatus.VALID), int(Action.NONE)
_KINDS = {int(action): action.name for action in (Action.BUY, Action.SELL)}
_REFUSALS = int(REFUSALS)


@dataclass(frozen=True, slots=True)
class Candle:
    """One bar of one symbol; prices in CNY (or their currency), volume in shares or None."""

    time_ns: int
    open: float
    high: float
    low: float
    close: float
    volume: float | None


@dataclass(frozen=True, slots=True)
class Mark:
    """A BUY or SELL of one symbol, or what would have been one and was refused.

    Attributes:
        stream, symbol, time_ns: its key, with the bar time in ns UTC.
        kind: BUY, SELL or REFUSED.
        score: P(up) − P(down).
        probabilities: of down, flat, up.
        predicted_return: next-bar log return.
        reasons: lower-case names.
        bundle_id, generator: who answered.
        valid_until_ns: ns UTC.
        released_ns: wall clock of the journal's commit, ns UTC; 0 if unknown.
    """

    stream: str
    symbol: str
    time_ns: int
    kind: str
    score: float
    probabilities: tuple[float, float, float]
    predicted_return: float
    reasons: tuple[str, ...]
    bundle_id: str
    generator: str
    valid_until_ns: int
    released_ns: int


def place_of(symbols: tuple[str, ...], symbol: str, guess: int) -> int | None:
    """Return where a symbol stands; the universe may change in the course of a stream."""
    if guess < len(symbols) and symbols[guess] == symbol:
        return guess
    return symbols.index(symbol) if symbol in symbols else None


def candle_of(block: BarBlock | None, symbol: str, place: int) -> Candle | None:
    """Return the candle of a symbol that stands at about `place`; None if it has no clean bar."""
    at = None if block is None else place_of(block.symbols, symbol, place)
    if block is None or at is None or block.status[at] != VALID:
        return None
    opened, high, low, close, volume, _ = block.values[:, at].tolist()
    return Candle(
        block.event_time_ns, opened, high, low, close, volume if volume == volume else None
    )


def mark_of(decisions: Decisions | None, symbol: str, place: int) -> Mark | None:
    """Return the mark of a symbol that stands at about `place`; None if there is nothing to mark.

    A code that is neither BUY nor SELL, whatever a wire may bring, is no mark.
    """
    at = None if decisions is None else place_of(decisions.symbols, symbol, place)
    if decisions is None or at is None:
        return None
    action, reasons = int(decisions.action[at]), int(decisions.reasons[at])
    refused = action == _NONE and bool(reasons & _REFUSALS)
    if action not in _KINDS and not refused:
        return None
    down, flat, up = decisions.probabilities[at].tolist()
    return Mark(
        decisions.stream,
        symbol,
        decisions.event_time_ns,
        'REFUSED' if refused else _KINDS[action],
        float(decisions.score[at]),
        (down, flat, up),
        float(decisions.predicted_return[at]),
        reason_names(reasons),
        decisions.bundle_id,
        decisions.generator,
        int(decisions.valid_until_ns[at]),
        int(decisions.stamps[Stage.COMMITTED]),
    )
