# SPDX-License-Identifier: Apache-2.0
"""Frames and decisions for tests of the link, and how to compare them.

Nothing outside a test imports this.
"""

from __future__ import annotations

import numpy as np

from heqis_core.decision import Decisions
from heqis_core.frame import N_STAGES, FeatureFrame

COLUMNS = (
    'action', 'reasons', 'score', 'target_position', 'probabilities', 'predicted_return',
    'valid_until_ns', 'stamps',
)  # fmt: skip


def make_frame(seq: int = 0, symbols: int = 3, features: int = 5, epoch: int = 7) -> FeatureFrame:
    """Return a frame whose values follow from `seq` and its shape; its first row is NaN."""
    rng = np.random.default_rng([seq, symbols, features])
    values = rng.standard_normal((symbols, features)).astype(np.float32)
    status = rng.integers(0, 5, symbols).astype(np.uint8)
    close = rng.uniform(1, 100, symbols)
    values[0], close[0] = np.nan, np.nan
    return FeatureFrame(
        stream='ashare',
        epoch=epoch,
        seq=seq,
        event_time_ns=1_600_000_000_000_000_000 + seq,
        revision=0,
        features_id='0123456789abcdef',
        symbols=tuple(f'{600000 + i}.SH' for i in range(symbols)),
        tensors={'features': values, 'status': status, 'close': close},
        stamps=np.arange(N_STAGES, dtype=np.int64) + seq,
    )


def make_decisions(seq: int = 0, symbols: int = 3, epoch: int = 7) -> Decisions:
    """Return decisions whose values follow from `seq` and the number of symbols."""
    rng = np.random.default_rng([seq, symbols])
    return Decisions(
        stream='ashare',
        epoch=epoch,
        seq=seq,
        event_time_ns=1_600_000_000_000_000_000 + seq,
        revision=1,
        bundle_id='fedcba9876543210',
        generator='gru',
        symbols=tuple(f'{600000 + i}.SH' for i in range(symbols)),
        action=rng.integers(0, 4, symbols).astype(np.uint8),
        reasons=rng.integers(0, 1 << 12, symbols).astype(np.uint32),
        score=rng.uniform(-1, 1, symbols).astype(np.float32),
        target_position=np.full(symbols, np.nan, np.float32),
        probabilities=rng.uniform(0, 1, (symbols, 3)).astype(np.float32),
        predicted_return=rng.standard_normal(symbols).astype(np.float32),
        valid_until_ns=rng.integers(0, 1 << 62, symbols),
        stamps=np.arange(N_STAGES, dtype=np.int64) * 3,
    )


def assert_same_frame(a: FeatureFrame, b: FeatureFrame, stamps: bool = True) -> None:
    """Compare two frames bit for bit (NaN equals NaN)."""
    for name in ('stream', 'epoch', 'seq', 'event_time_ns', 'revision', 'features_id', 'symbols'):
        assert getattr(a, name) == getattr(b, name), name
    assert list(a.tensors) == list(b.tensors)
    for name, array in a.tensors.items():
        other = b.tensors[name]
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert array.tobytes() == other.tobytes(), name
    if stamps:
        assert a.stamps.tolist() == b.stamps.tolist()


def assert_same_decisions(a: Decisions, b: Decisions) -> None:
    """Compare two messages of decisions bit for bit."""
    for name in (
        'stream',
        'epoch',
        'seq',
        'event_time_ns',
        'revision',
        'bundle_id',
        'generator',
        'symbols',
    ):
        assert getattr(a, name) == getattr(b, name), name
    for name in COLUMNS:
        array, other = getattr(a, name), getattr(b, name)
        assert (array.dtype, array.shape) == (other.dtype, other.shape), name
        assert array.tobytes() == other.tobytes(), name
