# SPDX-License-Identifier: Apache-2.0
"""What tests of the journal share: frames that belong to an index, and writers that are killed.

The crash tests and `scripts/kill_journal.py` use the same functions.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import struct
import time
from pathlib import Path

import numpy as np

from heqis_core.decision import Action, Decisions, Reason
from heqis_core.frame import N_STAGES, Stage
from heqis_core.io.journal import Journal

SYMBOLS = ('000001.SZ', '600000.SH', '600519.SH')
DAY_NS = 86_400_000_000_000
_MOST_AT_ONCE = 14
"""Frames between two acknowledgements of `write_until_killed`."""


def make_frame(
    index: int, *, symbols: tuple[str, ...] = SYMBOLS, stream: str = 's', revision: int = 0
) -> Decisions:
    """Return the frame that belongs to an index: the same one every time."""
    rng = np.random.default_rng(index)
    n = len(symbols)
    action = rng.integers(0, 4, n).astype(np.uint8)
    probabilities = rng.dirichlet((1, 1, 1), n).astype(np.float32)
    none = action == Action.NONE
    probabilities[none] = np.nan
    return Decisions(
        stream=stream,
        epoch=(1 << 64) - 1 - index,
        seq=index,
        event_time_ns=1_600_000_000_000_000_000 + index * DAY_NS,
        revision=revision,
        bundle_id='0123456789abcdef',
        generator='gru',
        symbols=symbols,
        action=action,
        reasons=np.where(none, Reason.WARMING, Reason.UP).astype(np.uint32),
        score=probabilities[:, 2] - probabilities[:, 0],
        target_position=np.where(none, np.nan, 1).astype(np.float32),
        probabilities=probabilities,
        predicted_return=np.where(none, np.nan, rng.normal(size=n)).astype(np.float32),
        valid_until_ns=np.full(n, index, np.int64),
        stamps=np.arange(1, N_STAGES + 1, dtype=np.int64) * 1000 * (index + 1),
    )


def assert_same_frame(one: Decisions, other: Decisions) -> None:
    """Assert that two frames are the same bit for bit, but for the COMMITTED stamp."""
    for name in Decisions.__dataclass_fields__:
        left, right = getattr(one, name), getattr(other, name)
        if isinstance(left, np.ndarray):
            end = Stage.COMMITTED if name == 'stamps' else len(left)
            assert left[:end].tobytes() == right[:end].tobytes(), name
            assert left.dtype == right.dtype, name
        else:
            assert left == right, name


def write_until_killed(path: str, pipe: int) -> None:
    """Commit frames 0, 1, 2 … and acknowledge into a pipe what is durable, without end."""
    journal = Journal.open(path, check=False)
    index = int(journal.last_position())
    while True:
        batch = [make_frame(i) for i in range(index, index + 1 + index % 7)]
        for _ in range(1 + index % 2):  # some batches are delivered twice
            journal.commit(batch)
        index += len(batch)
        if index % 3 == 0:
            journal.mark_published()
        os.write(pipe, struct.pack('<I', index))


def kill_writer(path: Path, rng: random.Random, most_s: float = 0.05) -> int:
    """Start a process that writes, kill it at a random time; return what it acknowledged."""
    reader, writer = os.pipe()
    child = multiprocessing.get_context('fork').Process(
        target=write_until_killed, args=(str(path), writer)
    )
    child.start()
    os.close(writer)
    said = os.read(reader, 4)  # it writes
    end_s = time.monotonic() + rng.random() * most_s
    while time.monotonic() < end_s:
        time.sleep(0.0005)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    child.close()
    while chunk := os.read(reader, 65536):
        said += chunk
    os.close(reader)
    whole = len(said) // 4 * 4
    acknowledged: int = struct.unpack_from('<I', said, whole - 4)[0]
    return acknowledged


def check_after_crash(path: Path, acknowledged: int) -> int:
    """Assert that what was acknowledged is there, once and as it was made; return the frames."""
    with Journal.open(path) as journal:
        found = list(journal.frames())
        signals = journal.counts()['signals']
    assert [frame.seq for frame in found] == list(range(len(found))), 'no hole, nothing twice'
    assert len(found) >= acknowledged, 'every acknowledged frame is there'
    assert len(found) <= acknowledged + _MOST_AT_ONCE, 'no more than what was being written'
    for frame in found:
        assert_same_frame(frame, make_frame(frame.seq))
    assert signals == sum(int(frame.is_signal().sum()) for frame in found)
    return len(found)
