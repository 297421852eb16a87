# SPDX-License-Identifier: Apache-2.0
"""Decisions: exactly one for each symbol of each frame, columnar, with their reasons."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, IntFlag

import numpy as np
import numpy.typing as npt

from heqis_core.frame import new_stamps


class Action(IntEnum):
    """What a decision says (uint8 on the wire)."""

    NONE = 0
    """No statement; changes no position. The reasons say why."""
    HOLD = 1
    """The model was asked and sees no case for a change."""
    BUY = 2
    SELL = 3


class Reason(IntFlag):
    """Why a decision is what it is (uint32 bit set on the wire); people see lower-case names."""

    WARMING = 1 << 0
    """The window is not full yet, or a feature has not seen enough bars."""
    GAP = 1 << 1
    """Frames are missing and could not be had again."""
    NO_BAR = 1 << 2
    SUSPENDED = 1 << 3
    REJECTED = 1 << 4
    """Cleaning refused this symbol's row."""
    STALE = 1 << 5
    """The decision was older than its `valid_until_ns` when it reached the risk gate."""
    HELD = 1 << 6
    """Output is on hold: the supervisor said so."""
    KILL_SWITCH = 1 << 7
    NOT_FINITE = 1 << 8
    """A model answered NaN or infinity."""
    UP = 1 << 9
    """The upper class passed the strategy's threshold."""
    DOWN = 1 << 10
    """The lower class passed the strategy's threshold."""
    INSIDE_BAND = 1 << 11
    """Neither class passed the threshold."""
    BOARD_AWAY = 1 << 12
    """The compute board of this symbol did not answer in time, or by another bundle than the rest
    of its frame."""
    AT_LIMIT_UP = 1 << 13
    """The bar ended at the upper price limit of its day: a fact, whatever the action is."""
    AT_LIMIT_DOWN = 1 << 14
    """The bar ended at the lower price limit of its day."""
    PRICE_LIMIT = 1 << 15
    """A BUY at the upper limit, or a SELL at the lower one: it could not be filled."""
    BLOCKED = 1 << 16
    """A BUY of a symbol that the risk rules block, or do not name in `only`."""
    MAX_POSITIONS = 1 << 17
    """A BUY that would open more positions than the risk rules allow at once."""
    MAX_BUYS = 1 << 18
    """A BUY beyond the best of its frame that the risk rules allow."""
    MAX_SIGNALS = 1 << 19
    """A BUY beyond the signals that the risk rules allow in a minute or a day."""


BOUNDS = Reason.BLOCKED | Reason.MAX_POSITIONS | Reason.MAX_BUYS | Reason.MAX_SIGNALS
"""Reasons that come of the risk rules; they refuse a BUY, never a SELL."""

REFUSALS = Reason.STALE | Reason.HELD | Reason.KILL_SWITCH | Reason.PRICE_LIMIT | BOUNDS
"""Reasons by which the risk gate turns a signal into NONE."""


def reason_names(bits: int) -> tuple[str, ...]:
    """Return the lower-case names of the set bits, lowest bit first."""
    return tuple(reason.name.lower() for reason in Reason if bits & reason and reason.name)


# Plain numbers: numpy is slow with enums, and this is done for every frame.
_REFUSAL_BITS = np.uint32(int(REFUSALS))
_REFUSAL_OF = [
    (name, np.uint32(1 << bit))
    for bit in range(32)
    for name in reason_names(int(REFUSALS) & 1 << bit)
]
_NONE = np.uint8(int(Action.NONE))


COLUMNS = (
    'action',
    'reasons',
    'score',
    'target_position',
    'probabilities',
    'predicted_return',
    'valid_until_ns',
)
"""Fields of `Decisions` that are arrays with first axis S, in their order."""

_OBJECTS_BYTES = 1800
"""The dataclass, its eight arrays and its numbers (measured, CPython 3.11)."""


@dataclass(slots=True)
class Decisions:
    """The decisions of one frame, columnar.

    The key of one decision is (stream, symbol, bar time, revision), where the bar time is
    `event_time_ns`.

    Attributes:
        stream, epoch, seq, event_time_ns, revision: as in the frame that was judged.
        bundle_id: id of the bundle that answered.
        generator: name of the generator (or ensemble) that was served.
        symbols: S names.
        action: uint8 (S,), `Action` codes.
        reasons: uint32 (S,), `Reason` bits.
        score: float32 (S,), P(up) − P(down); NaN where action is NONE.
        target_position: float32 (S,), 1 for BUY, 0 for SELL, NaN (leave it as it is) for HOLD and
            NONE.
        probabilities: float32 (S, 3), classes down, flat, up; NaN where action is NONE.
        predicted_return: float32 (S,), next-bar log return; NaN where action is NONE.
        valid_until_ns: int64 (S,), ns UTC.
        stamps: int64 (N_STAGES,).
    """

    stream: str
    epoch: int
    seq: int
    event_time_ns: int
    revision: int
    bundle_id: str
    generator: str
    symbols: tuple[str, ...]
    action: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint32]
    score: npt.NDArray[np.float32]
    target_position: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    predicted_return: npt.NDArray[np.float32]
    valid_until_ns: npt.NDArray[np.int64]
    stamps: npt.NDArray[np.int64] = field(default_factory=new_stamps)

    def is_signal(self) -> npt.NDArray[np.bool_]:
        """Return bool (S,): which decisions are a BUY or a SELL."""
        return self.action >= Action.BUY

    @property
    def nbytes(self) -> int:
        """Return about how much memory it holds: its columns, and the Python objects around."""
        columns = (
            *(self.action, self.reasons, self.score, self.target_position, self.probabilities),
            *(self.predicted_return, self.valid_until_ns, self.stamps),
        )
        return sum(column.nbytes for column in columns) + _OBJECTS_BYTES

    def is_refused(self) -> npt.NDArray[np.bool_]:
        """Return bool (S,): which decisions were signals until the risk gate refused them."""
        hit = ((self.reasons & _REFUSAL_BITS) != 0) & (self.action == _NONE)
        return np.asarray(hit, np.bool_)

    def refusals(self) -> dict[str, int]:
        """Return how many decisions the risk gate refused, by the name of its reason."""
        refused = self.is_refused()
        if not refused.any():
            return {}
        said = self.reasons[refused]
        counts = {name: int(np.count_nonzero(said & bit)) for name, bit in _REFUSAL_OF}
        return {name: n for name, n in counts.items() if n}

    def refuse(
        self, where: npt.NDArray[np.bool_], reason: Reason | npt.NDArray[np.uint32]
    ) -> Decisions:
        """Return a copy in which the signals at `where` are NONE for a reason, or each for its."""
        hit = where & self.is_signal()
        return replace(
            self,
            action=np.where(hit, np.uint8(Action.NONE), self.action),
            reasons=np.where(hit, self.reasons | np.asarray(reason, np.uint32), self.reasons),
            target_position=np.where(hit, np.float32(np.nan), self.target_position),
        )


@dataclass(slots=True)
class Predictions:
    """What every generator of a bundle answered for one frame, before the strategy.

    Attributes:
        stream, epoch, seq, event_time_ns, revision: as in the frame that was judged.
        bundle_id: id of the bundle that answered.
        generators: G names, in the order of the first axis of the arrays.
        served: the generator that the strategy used.
        symbols: S names.
        log_return: float32 (G, S), next-bar log return; NaN where the window was not ready.
        probabilities: float32 (G, S, 3), classes down, flat, up; NaN likewise.
    """

    stream: str
    epoch: int
    seq: int
    event_time_ns: int
    revision: int
    bundle_id: str
    generators: tuple[str, ...]
    served: str
    symbols: tuple[str, ...]
    log_return: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
