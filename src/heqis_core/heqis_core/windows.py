# SPDX-License-Identifier: Apache-2.0
"""Windows: the last W rows of each symbol in one array, and the same windows of a whole table.

The window of a symbol at frame seq k is its last W valid rows, all of them with a seq in
(k - horizon, k] and none before a hole. A row that is not valid is not there: it neither breaks
nor fills a window. Because nothing older than the horizon counts, `Windows` that were fed the last
`horizon` frames answer like ones that saw everything.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt

from heqis_core.errors import ConfigError
from heqis_core.jit import one_layout, strict_njit

_NEVER = np.int64(-(2**62))
"""Seq before every seq."""

Index = npt.NDArray[np.int64]
Rows = npt.NDArray[np.float32]


class Windows:
    """Keep the last `length` valid rows of each of `n_symbols` symbols.

    Args:
        n_symbols: S.
        length: W, rows of a window.
        n_features: F, columns of a row.
        horizon: frames within which the W rows must lie, at least W.

    Raises ConfigError for sizes that cannot be.
    """

    def __init__(self, n_symbols: int, length: int, n_features: int, horizon: int) -> None:
        _check_sizes(length, horizon, n_symbols=n_symbols, n_features=n_features)
        self.length = length
        self.horizon = horizon
        self.n_features = n_features
        self._rows = np.zeros((n_symbols, length * n_features), np.float32)
        self._seqs = np.full((n_symbols, length), _NEVER, np.int64)
        # Per symbol: the slot of the oldest row, which the next row overwrites.
        self._oldest = np.zeros(n_symbols, np.int64)
        self._last_seq = int(_NEVER)
        self._hole_seq = int(_NEVER)
        # Compiles before the first frame is due: without kept code that takes seconds.
        self._take(0, np.empty((0, n_features), np.float32), np.empty(0, np.bool_))
        nobody = np.empty(0, np.int64)
        self.gather(nobody)
        self.gather_columns(nobody, np.empty((0, n_features, 1, length), np.float32))
        self.ready(0)

    @property
    def last_seq(self) -> int | None:
        """Return the seq of the last push, None before the first."""
        return None if self._last_seq == _NEVER else self._last_seq

    def push(self, seq: int, rows: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> None:
        """Take in frame `seq`: float32 (S, F) rows, of which those count that are `valid` (S,).

        Raises ValueError for a wrong shape, for a seq that is not above the last one, and for one
        that leaves some out without a `hole` that says so: no window may silently span a gap.
        """
        s = len(self._rows)
        if rows.shape != (s, self.n_features) or valid.shape != (s,):
            raise ValueError(
                f'rows {rows.shape} and valid {valid.shape}; '
                f'expected ({s}, {self.n_features}) and ({s},)'
            )
        if self._last_seq != _NEVER:
            if seq <= self._last_seq:
                raise ValueError(f'seq {seq} after {self._last_seq}; expected a later one')
            if seq > max(self._last_seq + 1, self._hole_seq):
                raise ValueError(
                    f'seq {seq} after {self._last_seq}: push what is missing, or call hole({seq})'
                )
        self._take(seq, rows, valid)
        self._last_seq = int(seq)

    def ready(self, seq: int) -> npt.NDArray[np.bool_]:
        """Return bool (S,): whose last W rows lie within the horizon of `seq` and after the hole.

        Raises ValueError if `seq` is before the last push: what it had is overwritten.
        """
        if seq < self._last_seq:
            raise ValueError(f'seq {seq} is before the last push {self._last_seq}')
        since = max(self._hole_seq, seq - self.horizon + 1, int(_NEVER) + 1)
        return _ready(np.int64(since), self._seqs, self._oldest)

    def gather(
        self, which: npt.NDArray[np.integer], out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Return the windows of the n symbols `which`, float32 (n, W, F), oldest row first.

        Args:
            which: integer (n,), symbol indices.
            out: C-contiguous float32 (n, W, F) to write into (and to return); with fewer rows than
                W the newest ones are written. None allocates.

        Raises ValueError for a symbol without W rows, for a mask in the place of indices, and for
        an `out` that does not fit. Whether the rows are recent enough is for `ready` to say.
        """
        index = _indices(which)
        if out is None:
            out = np.empty((len(index), self.length, self.n_features), np.float32)
        rows = out.shape[1] if out.ndim == 3 and out.shape[1] <= self.length else self.length
        _check_out(out, (len(index), rows, self.n_features))
        flat = out.reshape(len(index), rows * self.n_features)
        self._refuse(
            index, _gather(index, self.n_features, self._rows, self._seqs, self._oldest, flat)
        )
        return out

    def gather_columns(
        self, which: npt.NDArray[np.integer], out: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Write the windows of `which` into C-contiguous float32 (n, F, 1, W), and return it.

        That is what a convolution along time reads. Raises as `gather` does.
        """
        index = _indices(which)
        _check_out(out, (len(index), self.n_features, 1, self.length))
        flat = out.reshape(len(index), self.n_features * self.length)
        self._refuse(
            index,
            _gather_columns(index, self.n_features, self._rows, self._seqs, self._oldest, flat),
        )
        return out

    def hole(self, seq: int) -> None:
        """Let nothing before `seq` count any more; an earlier hole stays."""
        self._hole_seq = max(self._hole_seq, int(seq))

    def reset(self) -> None:
        """Forget every row, hole and seq: the next push may have any seq."""
        self._rows.fill(0)
        self._seqs.fill(_NEVER)
        self._oldest.fill(0)
        self._last_seq = int(_NEVER)
        self._hole_seq = int(_NEVER)

    def save(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the whole state as arrays, so that `load` continues bit for bit."""
        return {
            'rows': self._rows.copy(),
            'seqs': self._seqs.copy(),
            'oldest': self._oldest.copy(),
            'marks': np.array([self._last_seq, self._hole_seq, self.horizon], np.int64),
        }

    def load(self, saved: dict[str, npt.NDArray[np.generic]]) -> None:
        """Continue from `save`; raise ConfigError, and change nothing, if the sizes differ."""
        expected = {name: (value.dtype, value.shape) for name, value in self._arrays().items()}
        expected['marks'] = (np.dtype(np.int64), (3,))
        for name, (dtype, shape) in expected.items():
            array = saved.get(name)
            if array is None or array.dtype != dtype or array.shape != shape:
                found = 'nothing' if array is None else f'{array.dtype} {array.shape}'
                raise ConfigError(f'saved windows: {name} is {found}; expected {dtype} {shape}')
        last_seq, hole_seq, horizon = (int(mark) for mark in saved['marks'])
        if horizon != self.horizon:
            raise ConfigError(f'saved windows: horizon {horizon}; expected {self.horizon}')
        oldest = saved['oldest']
        if oldest.size and (oldest.min() < 0 or oldest.max() >= self.length):
            raise ConfigError(f'saved windows: oldest outside 0..{self.length - 1}')
        for name, target in self._arrays().items():
            target[...] = saved[name]
        self._last_seq, self._hole_seq = last_seq, hole_seq

    def _take(self, seq: int, rows: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> None:
        _push(
            np.int64(seq),
            one_layout(rows, np.float32),
            one_layout(valid, np.bool_),
            self._rows,
            self._seqs,
            self._oldest,
        )

    def _refuse(self, index: Index, bad: int) -> None:
        if bad >= 0:
            raise ValueError(
                f'symbol {index[bad]} of {len(self._rows)} has no window of {self.length} rows; '
                'gather only what is ready'
            )

    def _arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        return {'rows': self._rows, 'seqs': self._seqs, 'oldest': self._oldest}


def window_index(
    valid: npt.NDArray[np.bool_], length: int, horizon: int
) -> tuple[Index, Index, Index]:
    """Find every full window of a whole table: what `Windows` gives when row t is pushed as seq t.

    Args:
        valid: bool (T, S), which rows count.
        length: W, rows of a window.
        horizon: frames within which the W rows must lie, at least W.

    Returns t int64 (M,), s int64 (M,), rows int64 (M, W): at valid row t of symbol s the window is
    ready and consists of the rows `rows` of s, oldest first, the last one being t. In order of t,
    then s.
    Raises ConfigError for sizes that cannot be.
    """
    _check_sizes(length, horizon)
    if valid.ndim != 2:
        raise ConfigError(f'valid has shape {valid.shape}; expected (T, S)')
    mask = one_layout(valid, np.bool_)
    count = _find_windows(mask, length, horizon, *_room_for(0, length))  # no room: only counts
    found = _room_for(count, length)
    _find_windows(mask, length, horizon, *found)
    return found


def _room_for(count: int, length: int) -> tuple[Index, Index, Index]:
    rows = np.empty((count, length), np.int64)
    return np.empty(count, np.int64), np.empty(count, np.int64), rows


def _indices(which: npt.NDArray[np.integer]) -> Index:
    if which.ndim != 1 or which.dtype.kind not in 'iu':
        raise ValueError(f'which is {which.dtype} {which.shape}; expected integers (n,)')
    if which.dtype == np.int64 and which.flags.carray:
        return cast('Index', which)
    return one_layout(which, np.int64)


def _check_out(out: npt.NDArray[np.float32], shape: tuple[int, ...]) -> None:
    if out.shape != shape or out.dtype != np.float32 or not out.flags.carray:
        raise ValueError(
            f'out is {out.dtype} {out.shape}; expected writable C-contiguous float32 {shape}'
        )


def _check_sizes(length: int, horizon: int, **sizes: int) -> None:
    for name, value in {'length': length, 'horizon': horizon, **sizes}.items():
        if value < 1:
            raise ConfigError(f'windows: {name} = {value}; expected at least 1')
    if horizon < length:
        raise ConfigError(
            f'windows: horizon = {horizon}; expected at least the length of a window, {length}'
        )


# Offsets below are unsigned: an index that might be negative keeps numba from copying in blocks.


@strict_njit
def _push(
    seq: np.int64, rows: Rows, valid: npt.NDArray[np.bool_], kept: Rows, seqs: Index, oldest: Index
) -> None:
    """Write rows (S, F) into kept (S, W * F)."""
    length = seqs.shape[1]
    n_features = np.uint64(rows.shape[1])
    for s in range(len(valid)):
        if valid[s]:
            slot = oldest[s]
            start = np.uint64(slot) * n_features
            source, target = rows[s], kept[s]
            for f in range(n_features):
                target[start + f] = source[f]
            seqs[s, slot] = seq
            oldest[s] = slot + 1 if slot + 1 < length else 0


@strict_njit
def _ready(since: np.int64, seqs: Index, oldest: Index) -> npt.NDArray[np.bool_]:
    ready = np.empty(len(oldest), np.bool_)
    for s in range(len(oldest)):
        ready[s] = seqs[s, oldest[s]] >= since
    return ready


@strict_njit
def _gather(
    which: Index, n_features: int, kept: Rows, seqs: Index, oldest: Index, out: Rows
) -> int:
    """Copy the newest rows from kept (S, W * F) to out (n, rows * F).

    Returns the first bad place in which, or -1.
    """
    size, wanted = np.uint64(kept.shape[1]), np.uint64(out.shape[1])
    for i in range(len(which)):
        s = which[i]
        if s < 0 or s >= len(oldest) or seqs[s, oldest[s]] == _NEVER:
            return i
        start = (np.uint64(oldest[s] * n_features) + size - wanted) % size
        older = min(size - start, wanted)
        source, target = kept[s], out[i]
        for k in range(older):
            target[k] = source[start + k]
        for k in range(wanted - older):
            target[older + k] = source[k]
    return -1


@strict_njit
def _gather_columns(
    which: Index, n_features: int, kept: Rows, seqs: Index, oldest: Index, out: Rows
) -> int:
    """Copy kept (S, W * F) to out (n, F * W); return the first bad place in which, or -1."""
    width, length = np.uint64(n_features), np.uint64(seqs.shape[1])
    for i in range(len(which)):
        s = which[i]
        if s < 0 or s >= len(oldest) or seqs[s, oldest[s]] == _NEVER:
            return i
        source, target = kept[s], out[i]
        for w in range(length):
            start = (np.uint64(oldest[s]) + w) % length * width
            for f in range(width):
                target[f * length + w] = source[start + f]
    return -1


@strict_njit
def _find_windows(
    valid: npt.NDArray[np.bool_],
    length: int,
    horizon: int,
    out_t: Index,
    out_s: Index,
    out_rows: Index,
) -> int:
    ring = np.full((valid.shape[1], length), _NEVER, np.int64)
    oldest = np.zeros(valid.shape[1], np.int64)
    found = 0
    for t in range(valid.shape[0]):
        for s in range(valid.shape[1]):
            if not valid[t, s]:
                continue
            ring[s, oldest[s]] = t
            oldest[s] = oldest[s] + 1 if oldest[s] + 1 < length else 0
            if ring[s, oldest[s]] <= t - horizon:
                continue
            if found < len(out_t):
                out_t[found] = t
                out_s[found] = s
                older = length - oldest[s]
                out_rows[found, :older] = ring[s, oldest[s] :]
                out_rows[found, older:] = ring[s, : oldest[s]]
            found += 1
    return found
