# SPDX-License-Identifier: Apache-2.0
"""Heartbeats and stamps as the tests of a graph's state need them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from heqis_core.control import NodeBeat, NodeState, ProcessBeat
from heqis_core.frame import Stage, new_stamps


def make_beat(
    process: str,
    start_id: int,
    count: int,
    board: str = 'gateway',
    node: str | None = None,
    state: int = NodeState.ACTIVE,
    **counters: int,
) -> ProcessBeat:
    """Return heartbeat number `count` of one start of a process with one node."""
    name = f'/heqis/{node or process}'
    return ProcessBeat(
        board=board,
        process=process,
        host='h',
        pid=1000 + start_id,
        start_id=start_id,
        count=count,
        stamp_ns=0,
        boot_id='b',
        nodes=(NodeBeat(name, state, counters=counters, info=f'{process} {count}'),),
    )


def make_stamps(*reached: tuple[Stage, int]) -> npt.NDArray[np.int64]:
    """Return stage stamps, ns, int64 (N_STAGES,)."""
    row = new_stamps()
    for stage, ns in reached:
        row[stage] = ns
    return row
