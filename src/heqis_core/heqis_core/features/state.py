# SPDX-License-Identifier: Apache-2.0
"""The streaming state of a feature spec: S symbols advance by one bar a call, or by many.

The arithmetic lives in `kernels` and `cross`, the order of it in `program`. This module holds the
state, checks what comes in, saves and restores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BAR_FIELDS
from heqis_core.errors import ConfigError
from heqis_core.features import cross, kernels
from heqis_core.features.program import compile_spec
from heqis_core.features.spec import FeatureSpec
from heqis_core.jit import one_layout

LAYOUT_VERSION = 2
"""Raised whenever the kernels read the state in another way: an older state is then refused."""

_BLOCK = 512
"""Most symbols that go through the features together, while their state is in the cache."""
_LANES = 32
"""A block has room for a multiple of so many: compiled loops take them in rounds of 32 numbers."""
_LINE = 8
"""Numbers in a line of the cache; a small block has room for a multiple of so many."""
_STRIDE = 8
"""Bars that a block advances before the next one does, where no bar needs all of them."""

Arrays = dict[str, npt.NDArray[np.generic]]
Floats = npt.NDArray[np.float64]


class FeatureState:
    """Advance the features of S symbols bar by bar.

    A symbol whose status is not VALID does not advance and gets a row of NaN, and so does one
    whose high, low or close is not a number: what follows is as if that bar had not been there. A
    bar without some other number (a volume, a channel, a column of an earlier item that is NaN)
    has no features of it, and nothing else is touched by that.

    Args:
        spec: what to compute, F columns.
        n_symbols: S.
        channels: C names of what `extra` holds, see `BarBlock.channels`.

    Raises ConfigError if there is no symbol, and if a channel that the spec reads is not there.
    """

    def __init__(self, spec: FeatureSpec, n_symbols: int, channels: Sequence[str] = ()) -> None:
        if n_symbols < 1:
            raise ConfigError(f'features: n_symbols = {n_symbols}; expected at least 1')
        self.spec = spec
        self._n_symbols = n_symbols
        # Without a channel that is read, nothing is asked of `extra`.
        self._n_channels = len(channels) if spec.channels else 0
        self._program = compile_spec(spec, channels)
        lanes = _LANES if n_symbols > _LANES else _LINE
        width = _up(-(-n_symbols // (_up(n_symbols, _BLOCK) // _BLOCK)), lanes)
        n_blocks = _up(n_symbols, width) // width
        self._state = _planes(n_blocks, self._program.state_planes, width)
        self._cells = _planes(n_blocks, self._program.cell_planes, width)
        self._bars = 0
        # Compiles before the first bar is due: without kept code that takes many seconds.
        self._stage(
            0,
            np.empty((0, len(BAR_FIELDS), n_symbols)),
            np.empty((0, n_symbols), np.uint8),
            np.empty(0, np.int64),
            np.empty((0, self._n_channels, n_symbols)),
            np.empty((0, n_symbols, len(spec.names))),
        )
        cross.cross_section(np.empty((0, cross.CROSS_WIDTH), np.int64), self._cells, n_symbols)

    @property
    def nbytes(self) -> int:
        """Return how much memory the state takes."""
        return self._state.nbytes

    def step(
        self,
        values: Floats,
        status: npt.NDArray[np.uint8],
        event_time_ns: int = 0,
        extra: Floats | None = None,
    ) -> Floats:
        """Advance by one bar block; return float64 (S, F), NaN where a feature has no value.

        Args:
            values: float64 (6, S), see `BarBlock.values`.
            status: uint8 (S,), `BarStatus` codes.
            event_time_ns: of the block, ns UTC; needed by calendar features only.
            extra: float64 (C, S), see `BarBlock.extra`; needed if the spec reads a channel.

        Raises ValueError for other shapes, and for an event time or channels that are missing.
        """
        self._check(values.shape, status.shape, None if extra is None else extra.shape, ())
        if self.spec.needs_event_time and event_time_ns == 0:
            raise ValueError('event_time_ns is missing; the calendar features need it')
        rows: Floats = self._advance(
            values[None],
            status[None],
            np.array([event_time_ns], np.int64),
            self._channels(extra, 1),
        )[0]
        return rows

    def batch(
        self,
        values: Floats,
        status: npt.NDArray[np.uint8],
        event_time_ns: npt.NDArray[np.int64] | None = None,
        extra: Floats | None = None,
    ) -> Floats:
        """Advance by T bar blocks; return float64 (T, S, F), bit for bit what T steps return.

        Args:
            values: float64 (T, 6, S).
            status: uint8 (T, S).
            event_time_ns: int64 (T,), ns UTC; needed by calendar features only.
            extra: float64 (T, C, S); needed if the spec reads a channel.

        Raises ValueError for other shapes, and for event times or channels that are missing.
        """
        n_times = len(values)
        self._check(values.shape, status.shape, None if extra is None else extra.shape, (n_times,))
        if event_time_ns is None:
            if self.spec.needs_event_time:
                raise ValueError('event_time_ns is missing; the calendar features need it')
            event_time_ns = np.zeros(n_times, np.int64)
        elif event_time_ns.shape != (n_times,):
            raise ValueError(f'event_time_ns {event_time_ns.shape}; expected {(n_times,)}')
        return self._advance(values, status, event_time_ns, self._channels(extra, n_times))

    def reset(self) -> None:
        """Forget every bar."""
        self._state.fill(0.0)
        self._bars = 0

    def save(self) -> Arrays:
        """Return the whole state as arrays, so that `load` continues bit for bit."""
        return {
            'version': np.array([LAYOUT_VERSION], np.int64),
            'spec_id': np.frombuffer(self.spec.id.encode(), np.uint8).copy(),
            'size': np.array([self._n_symbols, self._bars], np.int64),
            'state': self._state.copy(),
        }

    def load(self, saved: Arrays) -> None:
        """Continue from `save`.

        Raises ConfigError, and changes nothing, if it belongs to another spec, number of symbols
        or version of the layout.
        """
        if missing := {'version', 'spec_id', 'state'} - set(saved):
            raise ConfigError(f'saved features: {sorted(missing)} not there; start without it')
        version = saved['version'].tolist()
        spec_id = bytes(saved['spec_id'].astype(np.uint8)).decode(errors='replace')
        size = saved['size'].tolist() if 'size' in saved else []  # before version 2
        state = saved['state']
        for name, found, expected in (
            ('layout version', version, [LAYOUT_VERSION]),
            ('feature spec id', spec_id, self.spec.id),
            ('number of symbols', size[:1], [self._n_symbols]),
            ('state shape (blocks, planes, symbols)', state.shape, self._state.shape),
            ('state dtype', state.dtype, self._state.dtype),
        ):
            if found != expected:
                raise ConfigError(
                    f'saved features: {name} is {found!r}; expected {expected!r}; '
                    'start without it, or with the spec and symbols that it belongs to'
                )
        self._state[...] = state
        self._bars = size[1]

    def _check(
        self,
        values: tuple[int, ...],
        status: tuple[int, ...],
        extra: tuple[int, ...] | None,
        times: tuple[int, ...],
    ) -> None:
        s = self._n_symbols
        expected = (*times, len(BAR_FIELDS), s), (*times, s)
        if (values, status) != expected:
            raise ValueError(
                f'values {values} and status {status}; expected {expected[0]} and {expected[1]}'
            )
        if self._n_channels and extra != (*times, self._n_channels, s):
            raise ValueError(f'extra {extra}; expected {(*times, self._n_channels, s)}')

    def _channels(self, extra: Floats | None, n_times: int) -> Floats:
        shape = (n_times, self._n_channels, self._n_symbols)
        return extra.reshape(shape) if extra is not None and self._n_channels else np.empty(shape)

    def _advance(
        self,
        values: Floats,
        status: npt.NDArray[np.uint8],
        event_time_ns: npt.NDArray[np.int64],
        extra: Floats,
    ) -> Floats:
        values = one_layout(values, np.float64)
        status = one_layout(status, np.uint8)
        extra = one_layout(extra, np.float64)
        event_time_ns = one_layout(event_time_ns, np.int64)
        out = np.empty((*status.shape, len(self.spec.names)))
        # Without a cross-section a symbol need not wait for the others: some bars at once.
        stages = self._program.stages
        stride = 1 if len(stages) > 1 else _STRIDE
        for t in range(0, len(values), stride):
            now = slice(t, t + stride)
            for k, stage in enumerate(stages):
                last = k == len(stages) - 1
                given = out[now] if last else out[:0]
                self._stage(k, values[now], status[now], event_time_ns[now], extra[now], given)
                if not last:
                    cross.cross_section(stage.cross, self._cells, self._n_symbols)
            self._bars += len(values[now])
        return out

    def _stage(
        self,
        k: int,
        values: Floats,
        status: npt.NDArray[np.uint8],
        event_time_ns: npt.NDArray[np.int64],
        extra: Floats,
        out: Floats,
    ) -> None:
        rows, weights, _ = self._program.stages[k]
        kernels.advance(
            rows,
            weights,
            self._program.series,
            values,
            status,
            extra,
            event_time_ns,
            self._bars,
            self._state,
            self._cells,
            out,
        )


def _up(n: int, to: int) -> int:
    """Return the least multiple of `to` that is not below n."""
    return -(-n // to) * to


def _planes(blocks: int, planes: int, width: int) -> Floats:
    """Return zeros (blocks, planes, width), each plane at the beginning of a line of the cache."""
    numbers = blocks * planes * width
    room = np.zeros(numbers + _LINE)
    skipped = -room.ctypes.data % (_LINE * room.itemsize) // room.itemsize
    return room[skipped : skipped + numbers].reshape(blocks, planes, width)
