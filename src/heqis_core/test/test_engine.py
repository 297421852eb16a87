# SPDX-License-Identifier: Apache-2.0
"""Inference on padded tiles: every row comes back once, in order, whatever the number of rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.engine import Arrays, TensorSpec, infer_tiled
from heqis_core.errors import EngineError

F32 = np.dtype(np.float32)


class SquareEngine:
    """Engine that squares its tile, sums its rows, and keeps what it was given."""

    kind = 'square'

    def __init__(self, tile: int, width: int, n_inputs: int = 1) -> None:
        """Make an engine of that tile, with `n_inputs` inputs of that width."""
        self.tiles: list[np.ndarray] = []
        self.inputs = tuple(TensorSpec(f'x{i}', F32, (tile, width)) for i in range(n_inputs))
        self.outputs = (
            TensorSpec('square', F32, (tile, width)),
            TensorSpec('total', F32, (tile,)),
        )

    def load(self, path: Path) -> None:
        """Do nothing."""

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the specs."""
        return self.inputs, self.outputs

    def infer(self, inputs: Arrays) -> Arrays:
        """Return square and row sums."""
        x = inputs['x0']
        self.tiles.append(x.copy())
        return {'square': x * x, 'total': x.sum(axis=1)}

    def close(self) -> None:
        """Do nothing."""


@given(n=st.integers(0, 40), tile=st.integers(1, 16), width=st.integers(1, 5))
def test_every_row_comes_back_once_and_padding_is_zero(n: int, tile: int, width: int) -> None:
    engine = SquareEngine(tile, width)
    rows = np.random.default_rng(n).normal(size=(n, width)).astype(np.float32)
    result = infer_tiled(engine, rows, tile)
    np.testing.assert_array_equal(result['square'], rows * rows)
    assert result['total'].shape == (n,)
    assert len(engine.tiles) == -(-n // tile)
    assert all(seen.shape == (tile, width) for seen in engine.tiles)
    if n % tile:
        assert not engine.tiles[-1][n % tile :].any()


def test_rows_of_an_earlier_tile_do_not_leak_into_the_padding() -> None:
    engine = SquareEngine(4, 1)
    infer_tiled(engine, np.full((5, 1), 7, np.float32), 4)
    np.testing.assert_array_equal(engine.tiles[1], [[7], [0], [0], [0]])


@pytest.mark.parametrize(('engine_tile', 'n_inputs'), [(4, 1), (8, 2)])
def test_another_tile_or_a_second_input_is_refused(engine_tile: int, n_inputs: int) -> None:
    with pytest.raises(EngineError, match='not one input with a tile of 8'):
        infer_tiled(SquareEngine(engine_tile, 2, n_inputs), np.zeros((3, 2), np.float32), 8)
