# SPDX-License-Identifier: Apache-2.0
"""The feature frame: what the gateway sends for one event time, and its stage stamps."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt


class Stage(IntEnum):
    """Points on the path of a frame; each stamps the wall clock (ns UTC) into `stamps[stage]`."""

    INGEST = 0
    """The source handed the bar block over."""
    CLEANED = 1
    FEATURES = 2
    """Indicators computed and scaled."""
    ENCODED = 3
    """Factors computed: the frame is complete."""
    SENT = 4
    """Handed to the link or the topic."""
    RECEIVED = 5
    """Decoded on the compute board."""
    INFERRED = 6
    """All generators answered."""
    DECIDED = 7
    """The strategy answered, the decisions are handed to the link or the topic."""
    GATED = 8
    """The risk gate has received and judged the decisions."""
    COMMITTED = 9
    """The decisions are durable in the journal: signals may go out."""


N_STAGES = len(Stage)


def new_stamps() -> npt.NDArray[np.int64]:
    """Return an empty stamp array, int64 (N_STAGES,); 0 means not reached."""
    return np.zeros(N_STAGES, np.int64)


def stamp(stamps: npt.NDArray[np.int64], stage: Stage) -> None:
    """Write the wall clock into one stage."""
    stamps[stage] = time.time_ns()


@dataclass(slots=True)
class FeatureFrame:
    """One event time of S symbols on its way to the compute board.

    Attributes:
        stream: name of the producer's stream, part of every decision's key.
        epoch: start identity of the producer (uint64).
        seq: gap-free counter of the stream; it goes on across restarts of the producer.
        event_time_ns: close of the bar, ns UTC.
        revision: version of this event time.
        features_id: hash of feature spec, scaler, encoder file and engine class, 16 hex digits.
        symbols: S names.
        tensors: named arrays, first axis S. Always there: `features` float32 (S, F), `status`
            uint8 (S,) `BarStatus` codes, `close` float64 (S,) last raw close (NaN where there is
            none). Where price limits are known: `market` uint8 (S,), bits of `MarketFact`.
        stamps: int64 (N_STAGES,).
    """

    stream: str
    epoch: int
    seq: int
    event_time_ns: int
    revision: int
    features_id: str
    symbols: tuple[str, ...]
    tensors: dict[str, npt.NDArray[np.generic]]
    stamps: npt.NDArray[np.int64] = field(default_factory=new_stamps)
