# SPDX-License-Identifier: Apache-2.0
"""Frames split over several compute boards, their decisions put together. Pure: no clock, socket.

A frame is published whole and once: one `Decisions` of every symbol, in the frame's order, by one
bundle. That is what the journal keys a frame by, so a part alone is never published. What a board
does not say in time, or says by another bundle, is NONE with `Reason.BOARD_AWAY`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.decision import COLUMNS, Action, Decisions, Reason
from heqis_core.frame import FeatureFrame
from heqis_core.rendezvous import split

REMEMBER = 64
"""Frames kept, the newest offered: as many as a stream may have open (`max_in_flight`)."""


class Share(NamedTuple):
    """What one board serves of a frame: `places` (int64) are those of `symbols` in the frame."""

    symbols: tuple[str, ...]
    places: npt.NDArray[np.int64]


class Shares:
    """The shares of the boards, worked out once for each tuple of symbols."""

    def __init__(self, boards: Sequence[str]) -> None:
        """Remember the boards."""
        self._boards = tuple(boards)
        self._symbols: tuple[str, ...] = ()
        self._shares: dict[str, Share] = {}

    def of(self, symbols: tuple[str, ...]) -> dict[str, Share]:
        """Return the share of each board that has one, in the order of the boards."""
        if symbols is not self._symbols and symbols != self._symbols:
            self._shares = {
                board: Share(tuple(symbols[place] for place in places), places)
                for board, places in split(symbols, self._boards).items()
            }
            self._symbols = symbols
        return self._shares


def part_of(frame: FeatureFrame, share: Share) -> FeatureFrame:
    """Return the rows of a frame that a board serves; the stamps stay the frame's own."""
    if len(share.places) == len(frame.symbols):
        return frame
    tensors = {name: array[share.places] for name, array in frame.tensors.items()}
    return replace(frame, symbols=share.symbols, tensors=tensors)


@dataclass(slots=True)
class BoardCounters:
    """What became of one board's answers; each is counted once, in one of the first five."""

    merged: int = 0
    repeated: int = 0
    """Came again because the frame was sent again."""
    late: int = 0
    """Came after their frame was published without them, or for a frame long gone."""
    refused: int = 0
    """Not what this board was asked: another stream, event time or other symbols."""
    other_bundle: int = 0
    """Named another bundle or generator than their frame's other decisions."""
    frames_none: int = 0
    """Frames published with NONE for this board's symbols."""
    absences: int = 0
    """Times that the board was found to be away."""


@dataclass(slots=True)
class _Entry:
    """A frame and what its boards have said; the parts give way to `merged`."""

    frame: FeatureFrame
    shares: dict[str, Share]
    parts: dict[str, Decisions | None] = field(default_factory=dict)
    first_part_s: float = math.nan
    merged: Decisions | None = None


class Merge:
    """Book of the frames whose decisions come in parts.

    The first board that answers a frame starts the lease of the others: one whose part does not
    come within it is away. Nobody waits for a board that is away; it is back with its first part
    that comes within the lease. While no board answers no lease runs: frames wait, as with one
    board.

    Args:
        boards: names, in a fixed order.
        lease_s: seconds that the first part of a frame waits for the others.
        remember: frames kept, to be published again when they are offered again.
    """

    def __init__(self, boards: Sequence[str], lease_s: float, remember: int = REMEMBER) -> None:
        self.shares = Shares(boards)
        self.counters = {board: BoardCounters() for board in boards}
        self.away: set[str] = set()
        self._lease_s = lease_s
        self._remember = remember
        self._epoch = 0
        self._entries: OrderedDict[int, _Entry] = OrderedDict()

    def offer(self, frame: FeatureFrame) -> Decisions | None:
        """Take note of a frame that goes out; return its decisions if they are known already.

        A frame comes again until its decisions are durable: what was published and lost is here.
        """
        if frame.epoch != self._epoch:
            self._epoch = frame.epoch
            self._entries.clear()
        entry = self._entries.get(frame.seq)
        if entry is None or entry.frame.event_time_ns != frame.event_time_ns:
            entry = self._entries[frame.seq] = _Entry(frame, self.shares.of(frame.symbols))
        self._entries.move_to_end(frame.seq)
        while len(self._entries) > self._remember:
            self._entries.popitem(last=False)
        return entry.merged

    def missing(self, seq: int) -> dict[str, Share]:
        """Return the shares of an offered frame that were not answered yet, by board."""
        entry = self._entries[seq]
        return {name: share for name, share in entry.shares.items() if name not in entry.parts}

    def part(self, board: str, part: Decisions, now_s: float) -> Decisions | None:
        """Take what a board says; return the decisions of the frame that this completes."""
        counters = self.counters[board]
        entry = self._entries.get(part.seq) if part.epoch == self._epoch else None
        if entry is None:
            counters.late += 1
            return None
        if not _answers(part, entry.frame, entry.shares.get(board)):
            counters.refused += 1
            return None
        if board in entry.parts:
            counters.repeated += 1
            return None
        if math.isnan(entry.first_part_s):
            entry.first_part_s = now_s
        if now_s - entry.first_part_s <= self._lease_s:
            self.away.discard(board)
        if entry.merged is not None:
            counters.late += 1
            return None
        entry.parts[board] = part
        return self._merged(entry)

    def overdue(self, board: str, now_s: float) -> list[Decisions]:
        """Say that a board has said nothing more; return the frames that need not wait for it."""
        if board in self.away:
            return []
        waiting = [entry for entry in self._entries.values() if _waits_for(entry, board)]
        if all(now_s - entry.first_part_s <= self._lease_s for entry in waiting):
            return []
        self.away.add(board)
        self.counters[board].absences += 1
        found = (self._merged(entry) for entry in sorted(waiting, key=lambda e: e.frame.seq))
        return [decisions for decisions in found if decisions is not None]

    def _merged(self, entry: _Entry) -> Decisions | None:
        missing = entry.shares.keys() - entry.parts.keys()
        if not missing <= self.away:
            return None
        parts = {name: part for name, part in entry.parts.items() if part is not None}
        used = _of_one_bundle(parts, entry.shares)
        for name in parts:
            self.counters[name].merged += name in used
            self.counters[name].other_bundle += name not in used
        for name in entry.shares.keys() - used.keys():
            self.counters[name].frames_none += 1
        entry.merged = put_together(
            entry.frame, [(entry.shares[name], part) for name, part in used.items()]
        )
        entry.parts = dict.fromkeys(entry.parts)
        return entry.merged


def put_together(frame: FeatureFrame, parts: Iterable[tuple[Share, Decisions]]) -> Decisions:
    """Return the decisions of a whole frame from at least one part, all by one bundle.

    Symbols that no part names are NONE with BOARD_AWAY. A stage is stamped when the last part had
    reached it.
    """
    parts = list(parts)
    first, n = parts[0][1], len(frame.symbols)
    whole = replace(
        first,
        symbols=frame.symbols,
        action=np.full(n, Action.NONE, np.uint8),
        reasons=np.full(n, Reason.BOARD_AWAY, np.uint32),
        score=np.full(n, np.nan, np.float32),
        target_position=np.full(n, np.nan, np.float32),
        probabilities=np.full((n, 3), np.nan, np.float32),
        predicted_return=np.full(n, np.nan, np.float32),
        valid_until_ns=np.full(n, first.valid_until_ns[0], np.int64),
        stamps=np.max([part.stamps for _, part in parts], axis=0),
    )
    for share, part in parts:
        for column in COLUMNS:
            getattr(whole, column)[share.places] = getattr(part, column)
    return whole


def _of_one_bundle(
    parts: Mapping[str, Decisions], shares: Mapping[str, Share]
) -> dict[str, Decisions]:
    """Return the parts by the bundle and generator that speak for most symbols.

    During a swap boards may differ for a while, and `Decisions` names one bundle. Of two that
    speak for as many symbols, the one of the first board is taken.
    """
    votes: dict[tuple[str, str], int] = {}
    for name in shares:
        if (part := parts.get(name)) is not None:
            maker = (part.bundle_id, part.generator)
            votes[maker] = votes.get(maker, 0) + len(part.symbols)
    chosen = max(votes, key=lambda maker: votes[maker])
    return {
        name: part for name, part in parts.items() if (part.bundle_id, part.generator) == chosen
    }


def _waits_for(entry: _Entry, board: str) -> bool:
    return (
        entry.merged is None
        and bool(entry.parts)
        and board in entry.shares
        and board not in entry.parts
    )


def _answers(part: Decisions, frame: FeatureFrame, share: Share | None) -> bool:
    return (
        share is not None
        and part.stream == frame.stream
        and part.event_time_ns == frame.event_time_ns
        and part.revision == frame.revision
        and part.symbols == share.symbols
    )
