# SPDX-License-Identifier: Apache-2.0
"""What a model learns from: labels of the bars that follow, windows, the scaler, enough of both.

Packed frames live in `store`, the parts of the data in `splits`, batches in `tensors`.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.errors import DataError
from heqis_core.features.spec import FeatureSpec
from heqis_core.features.state import FeatureState
from heqis_core.scaler import Scaler
from heqis_training.settings import SplitSettings

DOWN, FLAT, UP = range(3)
"""Classes of the next bar, in the order of a probability array."""

MIN_TRAINING_WINDOWS = 64
MIN_VALIDATION_WINDOWS = 16

CHUNK_BYTES = 32 * 2**20
"""About how much of a data set is worked on at a time, so that a whole market needs no more."""


def head(table: BarTable, stop: int) -> BarTable:
    """Return a copy of the first `stop` event times; what follows cannot be reached from it."""
    return BarTable(
        table.symbols,
        table.event_time_ns[:stop].copy(),
        table.values[:stop].copy(),
        table.status[:stop].copy(),
        table.channels,
        None if table.extra is None else table.extra[:stop].copy(),
    )


def fingerprint(table: BarTable) -> str:
    """Return the sha256 of symbols, event times, bars, statuses and channels, 64 hex digits."""
    digest = hashlib.sha256('\n'.join(table.symbols).encode())
    arrays: list[npt.NDArray[np.generic]] = [table.event_time_ns, table.values, table.status]
    if table.extra is not None:
        digest.update('\n'.join(table.channels).encode())
        arrays.append(table.extra)
    for array in arrays:
        digest.update(str(array.shape).encode())
        rows = max(1, CHUNK_BYTES // max(1, array[:1].nbytes))
        for start in range(0, len(array), rows):
            part = array[start : start + rows]
            if part.dtype.kind == 'f':
                part = np.where(np.isnan(part), np.nan, part)  # one bit pattern for NaN
            digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


class Labels(NamedTuple):
    """The B VALID bars of one symbol, and what came before and after each of them.

    Attributes:
        t: int64 (B,), rows of the table.
        close: float64 (B,).
        past_return: float64 (B,), log(close / close of the bar before); 0 for the first bar.
        future_return: float64 (B, H), log(close of the h-th bar after / close) for each horizon h;
            NaN where the table has none.
        row: int64 (B,), row of the farthest of those bars; -1 where the table has none.
    """

    t: npt.NDArray[np.int64]
    close: npt.NDArray[np.float64]
    past_return: npt.NDArray[np.float64]
    future_return: npt.NDArray[np.float64]
    row: npt.NDArray[np.int64]


def labels(table: BarTable, symbol: int, horizons: Sequence[int]) -> Labels:
    """Return the labels of one symbol, whatever number of bars without trade lies in between.

    Args:
        table: bars.
        symbol: place of the symbol in the table.
        horizons: H numbers of VALID bars ahead, each at least 1.
    """
    t = np.flatnonzero(table.status[:, symbol] == BarStatus.VALID)
    close = np.ascontiguousarray(table.values[t, CLOSE, symbol])
    level = np.log(close)
    past = np.zeros(len(t))
    past[1:] = level[1:] - level[:-1]
    future = np.full((len(t), len(horizons)), np.nan)
    row = np.full(len(t), -1, np.int64)
    for k, ahead in enumerate(horizons):
        future[:-ahead, k] = level[ahead:] - level[:-ahead]
    farthest = max(horizons)
    row[:-farthest] = t[farthest:]
    return Labels(t, close, past, future, row)


def flat_band(log_return: npt.NDArray[np.float64], share: float = 1 / 3) -> float:
    """Return the band within which `share` of these returns lie, so that no class starves.

    Raises DataError if every return is zero: then there is nothing to tell apart.
    """
    size = np.abs(log_return[np.isfinite(log_return)])
    band = float(np.quantile(size, share)) if len(size) else 0.0
    if band <= 0:
        moves = size[size > 0]
        if not len(moves):
            raise DataError(
                f'all {len(size)} returns of the training part are zero; check the close column'
            )
        band = float(moves.min()) / 2
    return band


def classify(log_return: npt.NDArray[np.float64], band: float) -> npt.NDArray[np.int64]:
    """Return the class of each return: DOWN below -band, UP above band, else FLAT."""
    return np.where(log_return > band, UP, np.where(log_return < -band, DOWN, FLAT))


@dataclass(frozen=True)
class Samples:
    """Windows of a frame store, M of them, ordered by time, then by symbol.

    Attributes:
        end: int64 (M,), packed row of the window's last frame.
        t: int64 (M,), its row of the bar table: the decision's bar.
        s: int64 (M,), symbol.
        label_row: int64 (M,), row of the farthest bar that a label is taken from; -1 where the
            table has none yet.
        log_return: float64 (M, H), the labels; NaN where the table has none yet.
        length: W, packed rows that each window surely has, the last one included.
    """

    end: npt.NDArray[np.int64]
    t: npt.NDArray[np.int64]
    s: npt.NDArray[np.int64]
    label_row: npt.NDArray[np.int64]
    log_return: npt.NDArray[np.float64]
    length: int = 1

    def __len__(self) -> int:
        """Return the number of windows M."""
        return len(self.t)

    def where(self, keep: npt.NDArray[np.bool_]) -> Samples:
        """Return the windows at `keep`, bool (M,)."""
        return Samples(
            self.end[keep],
            self.t[keep],
            self.s[keep],
            self.label_row[keep],
            self.log_return[keep],
            self.length,
        )

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """Return bool (M,): which windows have a label for every horizon."""
        known: npt.NDArray[np.bool_] = self.label_row >= 0
        return known & np.isfinite(self.log_return).all(axis=1)


def fit_scaler(
    table: BarTable, spec: FeatureSpec, validation_from: int, folder: Path | str | None = None
) -> Scaler:
    """Fit the scaler on the rows of the training part that have every indicator.

    Indicators are computed some event times after another and kept by column in a temporary file,
    8 bytes a number, so that a whole market needs memory for a few columns only. The result is
    that of `Scaler.fit` on these rows, in order of time, then of symbol.

    Args:
        table: bars; those from `validation_from` on are not read.
        spec: indicators.
        validation_from: first row that must not be seen.
        folder: where the temporary file goes; None takes that of the system.

    Raises DataError that names the indicators that no bar has, if a bar would have had to have
    them; if there is no row with every indicator; and if the file cannot be written.
    """
    known = table.head(validation_from)
    valid = known.status == BarStatus.VALID
    room = int(valid.sum())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            seen, count = np.zeros(len(spec.names), np.bool_), 0
            for whole, finite in _raw_rows(known, spec):
                seen |= finite
                for f, column in enumerate(whole.T):
                    file.seek(8 * (f * room + count))
                    file.write(np.ascontiguousarray(column).data)
                count += len(whole)
            _refuse_empty(spec, seen, valid, count)
            fits = []
            for f, name in enumerate(spec.names):
                column = np.empty(count)
                file.seek(8 * f * room)
                file.readinto(column.data)
                fits.append(Scaler.fit((name,), column[:, None]))
    except OSError as error:
        needed = 8 * room * len(spec.names) / 1e6
        raise DataError(
            f'cannot keep {needed:.0f} MB of indicators in a temporary file in '
            f'{folder or tempfile.gettempdir()}: {error}; make room, or set TMPDIR'
        ) from error
    return Scaler(spec.names, [fit.mean[0] for fit in fits], [fit.scale[0] for fit in fits])


def _raw_rows(
    table: BarTable, spec: FeatureSpec
) -> Iterator[tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]]:
    """Yield, some event times after another, the rows that have every indicator, float64 (n, F).

    With them, bool (F,): which indicators had a value at all.
    """
    state = FeatureState(spec, len(table.symbols), table.channels)
    step = max(1, CHUNK_BYTES // (8 * len(table.symbols) * len(spec.names)))
    for start in range(0, len(table), step):
        now = slice(start, start + step)
        extra = None if table.extra is None else table.extra[now]
        raw = state.batch(table.values[now], table.status[now], table.event_time_ns[now], extra)
        rows = raw[table.status[now] == BarStatus.VALID]
        finite = np.isfinite(rows)
        yield rows[finite.all(axis=1)], finite.any(axis=0)


def _refuse_empty(
    spec: FeatureSpec, seen: npt.NDArray[np.bool_], valid: npt.NDArray[np.bool_], count: int
) -> None:
    """Raise DataError for indicators that no bar has although there are bars enough for them."""
    longest = int(valid.sum(axis=0).max(initial=0))
    never = [
        column.name
        for k, column in enumerate(spec.outputs)
        if column.warm_up < longest and not seen[k]
    ]
    if never:
        raise DataError(
            f'no bar of the training part has a value of {", ".join(never[:6])}'
            f'{" …" if len(never) > 6 else ""}: a cross-section needs `min_symbols` symbols at '
            'once, turnover and channels need their column; leave these features out, or bring '
            'the data'
        )
    if not count:
        raise DataError(
            f'no bar of the training part has all {len(spec.names)} features: they need '
            f'{spec.warmup_bars} clean bars of one symbol before it, and the longest symbol has '
            f'{longest} there; give a longer series'
        )


def bars_needed(warm_up: int, settings: SplitSettings, farthest: int = 1) -> int:
    """Return how many bars one symbol alone needs.

    Args:
        warm_up: bars after which its window is full.
        settings: how the bars are split.
        farthest: bars ahead of the farthest label.
    """
    share = settings.train_fraction * (1 - settings.validation_fraction)
    left_out = farthest + settings.embargo
    for_training = math.ceil((warm_up + MIN_TRAINING_WINDOWS + left_out) / share)
    for_validation = math.ceil(
        (MIN_VALIDATION_WINDOWS + left_out)
        / (settings.train_fraction * settings.validation_fraction)
    )
    return max(for_training, for_validation) + 2  # rounding of the two cuts


def require_windows(
    symbols: tuple[str, ...],
    bars: npt.NDArray[np.int64],
    n_training: int,
    n_validation: int,
    needed: int,
) -> None:
    """Raise DataError with the bars there are and those needed, if the windows are too few.

    Args:
        symbols: S names.
        bars: int64 (S,), clean bars of each in the whole data set.
        n_training: windows that may train.
        n_validation: windows that may validate.
        needed: bars that one symbol alone needs, see `bars_needed`.
    """
    if n_training >= MIN_TRAINING_WINDOWS and n_validation >= MIN_VALIDATION_WINDOWS:
        return
    listed = ', '.join(f'{name} {count}' for name, count in zip(symbols[:5], bars, strict=False))
    more = f' and {len(bars) - 5} more symbols' if len(bars) > 5 else ''
    raise DataError(
        f'too little data to train on: clean bars: {listed}{more}. The part for training gives '
        f'{n_training} training windows (at least {MIN_TRAINING_WINDOWS} are needed) and '
        f'{n_validation} validation windows (at least {MIN_VALIDATION_WINDOWS}); one symbol alone '
        f'needs {needed} clean bars; give a longer series or more symbols'
    )
