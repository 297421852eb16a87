# SPDX-License-Identifier: Apache-2.0
"""Packed frames: a row per VALID feature frame, symbol after symbol, so that a window is a slice.

A store is in memory, or a folder of `.npy` files that are mapped into memory; it is built from a
stream of frames, so that neither a whole market's frames nor its windows are ever held at once.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from io import BufferedRandom
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.bars import BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.pipeline import FeaturePipeline
from heqis_training.dataset import CHUNK_BYTES, labels
from heqis_training.dataset import Samples as Samples

_log = logging.getLogger(__name__)

STORE_FILE = 'store.json'
"""Says what the arrays beside it are; written last, so that with it a store is whole."""

FORMAT = 1
"""Raised when the files change."""

Frame = tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]
"""Features float32 (S, F) and status uint8 (S,) of one event time."""

Array = npt.NDArray[Any]


class StoreKey(msgspec.Struct, frozen=True):
    """What a store was made of; another one of the same key holds the same numbers.

    Attributes:
        fingerprint: of the bar table, see `dataset.fingerprint`.
        features_id: of what made the features out of bars: spec, scaler, encoder.
        names: F names of the features.
        horizons: H numbers of bars ahead, of the labels.
    """

    fingerprint: str
    features_id: str
    names: tuple[str, ...]
    horizons: tuple[int, ...]


class _About(msgspec.Struct, frozen=True):
    """The content of `STORE_FILE`."""

    format: int
    key: StoreKey
    symbols: tuple[str, ...]
    rows: int


class FrameStore:
    """The VALID feature frames of a bar table: R rows, symbol after symbol, oldest first.

    Attributes:
        key: what it was made of.
        symbols: S names.
        features: float32 (R, F).
        t: int64 (R,), row of the bar table.
        s: int64 (R,), symbol.
        close: float64 (R,), in the currency of the bars.
        past_return: float64 (R,), log(close / close of the symbol's bar before); 0 without one.
        future_return: float64 (R, H), log return to the h-th next bar of the symbol for each
            horizon h; NaN where the table has none.
        label_row: int64 (R,), row of the farthest of those bars; -1 where the table has none.

    Only VALID bars count as bars before and after. Writing into the arrays never changes a file.
    """

    def __init__(self, key: StoreKey, symbols: tuple[str, ...], arrays: Mapping[str, Array]):
        self.key = key
        self.symbols = symbols
        self.features: npt.NDArray[np.float32] = arrays['features']
        self.t: npt.NDArray[np.int64] = arrays['t']
        self.s: npt.NDArray[np.int64] = arrays['s']
        self.close: npt.NDArray[np.float64] = arrays['close']
        self.past_return: npt.NDArray[np.float64] = arrays['past_return']
        self.future_return: npt.NDArray[np.float64] = arrays['future_return']
        self.label_row: npt.NDArray[np.int64] = arrays['label_row']

    def __len__(self) -> int:
        """Return the number of rows R."""
        return len(self.t)

    @classmethod
    def build(
        cls,
        table: BarTable,
        frames: Iterable[Frame],
        key: StoreKey,
        folder: Path | str | None = None,
    ) -> FrameStore:
        """Build a store of T frames, in memory or in `folder`.

        A folder needs room for one row per VALID bar. Until the new store is whole, one that is
        there already stays as it is.

        Args:
            table: bars, T event times of S symbols.
            frames: one for each event time, see `frames`; VALID where the bar is, or nowhere.
            key: what the frames are made of.
            folder: made if need be; None keeps the arrays in memory.

        Raises DataError for frames that do not fit the table and for a folder that cannot be
        written, with the room that is needed.
        """
        if not key.horizons or min(key.horizons) < 1:
            raise ConfigError(
                f'horizons are {list(key.horizons)}, expected numbers of bars ahead, at least 1'
            )
        room = int((table.status == BarStatus.VALID).sum())
        if folder is not None:
            _write(Path(folder), table, frames, key, room)
            return cls.open(folder, key)
        columns = {name: _InMemory(*kind, room) for name, kind in _layout(key).items()}
        rows = _fill(table, frames, key, columns)
        arrays = {name: column.read(0, rows) for name, column in columns.items()}
        return cls(key, table.symbols, arrays)

    @classmethod
    def open(cls, folder: Path | str, key: StoreKey) -> FrameStore:
        """Map the store in `folder` into memory.

        Raises DataError if there is none, if it was made of something else than `key` says (each
        difference by name), and if a file is missing or not as long as it should be.
        """
        path = Path(folder) / STORE_FILE
        try:
            about = msgspec.json.decode(path.read_bytes(), type=_About)
        except (OSError, msgspec.DecodeError) as error:
            raise DataError(f'{path}: no frame store: {error}; build it') from error
        if about.format != FORMAT:
            raise DataError(f'{path}: format {about.format}, expected {FORMAT}; build it again')
        for field in StoreKey.__struct_fields__:
            found, expected = getattr(about.key, field), getattr(key, field)
            if found != expected:
                raise DataError(
                    f'{path}: {field} of the frame store: {_difference(found, expected)}; build '
                    'it again, or name another folder'
                )
        arrays = {
            name: _mapped(Path(folder) / f'{name}.npy', dtype, (about.rows, *width))
            for name, (dtype, width) in _layout(key).items()
        }
        return cls(about.key, about.symbols, arrays)

    @classmethod
    def is_there(cls, folder: Path | str, key: StoreKey) -> bool:
        """Return whether `open` would find a whole store of that key in `folder`."""
        try:
            cls.open(folder, key)
        except DataError:
            return False
        return True

    @staticmethod
    def remove(folder: Path | str) -> None:
        """Remove the store in `folder`, if there is one, and the folder if nothing else is in it.

        What cannot be removed (Windows: while its arrays are in use) is logged; it is no store.
        """
        target = Path(folder)
        names = (STORE_FILE, *(f'{name}.npy' for name in _layout(StoreKey('', '', (), ()))))
        try:
            for name in names:
                (target / name).unlink(missing_ok=True)
            if target.is_dir() and not any(target.iterdir()):
                target.rmdir()
        except OSError as error:
            _log.warning('%s: the frame store cannot be removed whole: %s', target, error)

    def samples(self, length: int, horizon: int) -> Samples:
        """Return every window of `length` rows of one symbol that lie within `horizon` frames.

        They are exactly the windows of `heqis_core.windows.window_index`; the newest ones have no
        label yet. For M windows and H horizons this takes 32 + 8 H bytes each.

        Raises ConfigError for sizes that cannot be.
        """
        if length < 1 or horizon < length:
            raise ConfigError(
                f'windows: length = {length}, horizon = {horizon}; expected at least one row, and '
                'a horizon of at least the length'
            )
        first, last = slice(0, max(0, len(self) - length + 1)), slice(length - 1, None)
        full = (self.s[first] == self.s[last]) & (self.t[last] - self.t[first] < horizon)
        end = np.flatnonzero(full) + (length - 1)
        # Rows are in order of symbols: a stable sort by time leaves them so within a time. Few
        # event times fit a small integer, and numpy then sorts in one pass.
        t = self.t[end]
        order = np.argsort(t.astype(np.min_scalar_type(t.max(initial=0))), kind='stable')
        end = end[order]
        return Samples(
            end, t[order], self.s[end], self.label_row[end], self.future_return[end], length
        )


def frames(pipeline: FeaturePipeline, table: BarTable) -> Iterator[Frame]:
    """Yield what the boards would compute of each event time, from the first one on."""
    for t in range(len(table)):
        tensors = pipeline.step(t, table.block(t))
        yield cast(Frame, (tensors['features'], tensors['status']))


class _Column(Protocol):
    """One array while it is built: rows are written and read anywhere."""

    def write(self, at: int, rows: Array) -> None: ...

    def read(self, at: int, count: int) -> Array: ...


class _InMemory:
    """A column in memory."""

    def __init__(self, dtype: npt.DTypeLike, width: tuple[int, ...], room: int) -> None:
        self._array = np.empty((room, *width), dtype)

    def write(self, at: int, rows: Array) -> None:
        self._array[at : at + len(rows)] = rows

    def read(self, at: int, count: int) -> Array:
        return self._array[at : at + count]


class _InFile:
    """A column in an `.npy` file, not mapped while written: a full disk is an error, no signal."""

    def __init__(self, dtype: npt.DTypeLike, width: tuple[int, ...], file: BufferedRandom) -> None:
        self._file, self._dtype, self._width = file, np.dtype(dtype), width
        self._stride = self._dtype.itemsize * math.prod(width)
        self._header(0)
        self._first = file.tell()

    def write(self, at: int, rows: Array) -> None:
        self._file.seek(self._first + at * self._stride)
        self._file.write(np.ascontiguousarray(rows, self._dtype).data)

    def read(self, at: int, count: int) -> Array:
        rows = np.empty((count, *self._width), self._dtype)
        self._file.seek(self._first + at * self._stride)
        self._file.readinto(rows.data)
        return rows

    def finish(self, rows: int) -> None:
        """Keep the first rows, durably."""
        self._file.truncate(self._first + rows * self._stride)
        self._file.seek(0)
        self._header(rows)
        assert self._file.tell() == self._first, 'numpy leaves room in a header for longer arrays'
        self._file.flush()
        os.fsync(self._file.fileno())

    def _header(self, rows: int) -> None:
        about = {'descr': self._dtype.str, 'fortran_order': False, 'shape': (rows, *self._width)}
        np.lib.format.write_array_header_1_0(self._file, about)


def _layout(key: StoreKey) -> dict[str, tuple[npt.DTypeLike, tuple[int, ...]]]:
    """Return dtype and shape of a row of each array."""
    return {
        'features': (np.float32, (len(key.names),)),
        't': (np.int64, ()),
        's': (np.int64, ()),
        'close': (np.float64, ()),
        'past_return': (np.float64, ()),
        'future_return': (np.float64, (len(key.horizons),)),
        'label_row': (np.int64, ()),
    }


def _write(
    folder: Path, table: BarTable, frames: Iterable[Frame], key: StoreKey, room: int
) -> None:
    """Write a store beside the one that may be there, then put it in its place."""
    layout = _layout(key)
    row = sum(np.dtype(dtype).itemsize * math.prod(width) for dtype, width in layout.values())
    need = f'a frame store of up to {room} rows needs {room * row / 1e6:.1f} MB'
    paths = {name: folder / f'{name}.npy' for name in layout}
    partial = {name: folder / f'{name}.npy.partial' for name in layout}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(folder).free) < room * row:
            raise DataError(f'{folder}: {need}, and {free / 1e6:.1f} MB are free; make room')
        with contextlib.ExitStack() as stack:
            columns = {
                name: _InFile(*kind, stack.enter_context(partial[name].open('w+b')))
                for name, kind in layout.items()
            }
            rows = _fill(table, frames, key, columns)
            for column in columns.values():
                column.finish(rows)
        about = folder / STORE_FILE
        about.unlink(missing_ok=True)
        for name, path in paths.items():
            partial[name].replace(path)
        whole = about.with_suffix('.partial')
        whole.write_bytes(msgspec.json.encode(_About(FORMAT, key, table.symbols, rows)))
        whole.replace(about)
    except OSError as error:
        raise DataError(f'{folder}: {need}: {error}; make room, or name another') from error
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)


def _fill(
    table: BarTable, frames: Iterable[Frame], key: StoreKey, columns: Mapping[str, _Column]
) -> int:
    """Write every row of the store and return how many there are.

    At first each symbol has room for all of its VALID bars; then the rows move together.
    """
    room = (table.status == BarStatus.VALID).sum(axis=0)
    start = np.cumsum(room) - room
    ready = _scatter(table, frames, len(key.names), start, columns['features'])
    rows = 0
    for s in range(len(ready)):
        t = np.flatnonzero(ready[s])
        count = len(t)
        columns['features'].write(rows, columns['features'].read(int(start[s]), count))
        columns['t'].write(rows, t)
        known = labels(table, s, key.horizons)
        bar = np.searchsorted(known.t, t)
        columns['s'].write(rows, np.full(count, s))
        columns['close'].write(rows, known.close[bar])
        columns['past_return'].write(rows, known.past_return[bar])
        columns['future_return'].write(rows, known.future_return[bar])
        columns['label_row'].write(rows, known.row[bar])
        rows += count
    return rows


def _scatter(
    table: BarTable,
    frames: Iterable[Frame],
    n_features: int,
    start: npt.NDArray[np.int64],
    column: _Column,
) -> npt.NDArray[np.bool_]:
    """Write the VALID rows of each symbol from `start` (S,) on; return which they are, (S, T).

    Some frames are collected, so that a symbol's rows are written in runs.
    """
    valid = table.status == BarStatus.VALID
    n_times, n_symbols = valid.shape
    step = max(1, min(n_times, CHUNK_BYTES // (4 * n_symbols * n_features)))
    features = np.empty((n_symbols, step, n_features), np.float32)
    ready = np.zeros((n_symbols, n_times), np.bool_)
    end = start.copy()
    t = 0
    for row, status in frames:
        if t == n_times:
            raise DataError(f'more frames than the {n_times} event times of the table')
        _check_frame(table, t, row, status, (n_symbols, n_features))
        features[:, t % step] = row
        ready[:, t] = status == BarStatus.VALID
        t += 1
        if t % step == 0 or t == n_times:
            now = ready[:, (t - 1) // step * step : t]
            for s in np.flatnonzero(now.any(axis=1)).tolist():
                rows = features[s, : now.shape[1]][now[s]]
                column.write(int(end[s]), rows)
                end[s] += len(rows)
    if t != n_times:
        raise DataError(f'{t} frames of a table of {n_times} event times; expected one for each')
    return ready


def _check_frame(
    table: BarTable,
    t: int,
    features: npt.NDArray[np.float32],
    status: npt.NDArray[np.uint8],
    shape: tuple[int, int],
) -> None:
    if features.shape != shape or status.shape != shape[:1]:
        raise DataError(
            f'frame {t} has features {features.shape} and status {status.shape}; expected '
            f'{shape} and {shape[:1]}'
        )
    wrong = (status == BarStatus.VALID) & (table.status[t] != BarStatus.VALID)
    if wrong.any():
        raise DataError(
            f'frame {t} is VALID for {table.symbols[int(np.argmax(wrong))]}, whose bar is not; '
            'the frames belong to another table'
        )


def _difference(found: Any, expected: Any) -> str:
    if isinstance(found, str):
        return f'{found[:16]}, expected {expected[:16]}'
    more = [name for name in found if name not in expected]
    less = [name for name in expected if name not in found]
    if not more and not less:
        return f'{found}, expected {expected}'
    return f'not expected {more[:6]}, missing {less[:6]}'


def _mapped(path: Path, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Array:
    try:
        # Copy on write: torch wants arrays that may be written, and the file stays as it is.
        array = np.load(path, mmap_mode='c', allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f'{path}: {error}; build the frame store again') from error
    if array.dtype != dtype or array.shape != shape:
        raise DataError(
            f'{path}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape}; build the '
            'frame store again'
        )
    return np.asarray(array)
