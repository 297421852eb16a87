# SPDX-License-Identifier: Apache-2.0
"""What a model learns from: the chronological split, labels of the next bar, window samples.

Features, scaler and windows are heqis_core's; networks and loops live in `models` and `train`.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.windows import window_index

DOWN, FLAT, UP = range(3)
"""Classes of the next bar, in the order of a probability array."""

MIN_TRAINING_WINDOWS = 64
MIN_VALIDATION_WINDOWS = 16


@dataclass(frozen=True)
class Split:
    """Which event times may be used for what.

    Attributes:
        validation_from: rows before this one train.
        stop: rows from `validation_from` to before this one validate; from here on nothing is
            touched.
    """

    validation_from: int
    stop: int


def split_rows(n_rows: int, train_fraction: float, validation_fraction: float) -> Split:
    """Split event times: the first `train_fraction` may be used, and its tail is for validation.

    Args:
        n_rows: event times T.
        train_fraction: part that training may touch at all, in (0, 1].
        validation_fraction: part of that part, at its end, in (0, 1).

    Raises ConfigError for a fraction out of range.
    """
    if not 0 < train_fraction <= 1:
        raise ConfigError(f'train_fraction is {train_fraction}, expected 0 < x <= 1')
    if not 0 < validation_fraction < 1:
        raise ConfigError(f'validation_fraction is {validation_fraction}, expected 0 < x < 1')
    stop = math.floor(n_rows * train_fraction)
    return Split(stop - math.ceil(stop * validation_fraction), stop)


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
    values = np.where(np.isnan(table.values), np.nan, table.values)  # one bit pattern for NaN
    arrays = [table.event_time_ns, values, table.status]
    if table.extra is not None:
        digest.update('\n'.join(table.channels).encode())
        arrays.append(np.where(np.isnan(table.extra), np.nan, table.extra))
    for array in arrays:
        digest.update(str(array.shape).encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Labels:
    """What comes next, for each row and symbol of a table.

    Attributes:
        row: int64 (T, S), row of the symbol's next VALID bar; -1 where the table has none.
        log_return: float64 (T, S), log(close there / close here); NaN where there is no next bar
            or the row itself is not VALID.
    """

    row: npt.NDArray[np.int64]
    log_return: npt.NDArray[np.float64]


def next_bar_labels(table: BarTable) -> Labels:
    """Return the labels of a table, whatever number of bars without trade lies in between."""
    valid = table.status == BarStatus.VALID
    close = table.values[:, CLOSE, :]
    row = np.full(valid.shape, -1, np.int64)
    next_close = np.full(valid.shape, np.nan)
    following = np.full(valid.shape[1], -1, np.int64)
    price = np.full(valid.shape[1], np.nan)
    for t in range(len(valid) - 1, -1, -1):
        row[t], next_close[t] = following, price
        following = np.where(valid[t], t, following)
        price = np.where(valid[t], close[t], price)
    log_return = np.where(valid, np.log(next_close) - np.log(close), np.nan)
    return Labels(np.where(valid, row, -1), log_return)


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
    """Windows of a table, M of them, in order of time.

    Attributes:
        t: int64 (M,), row of the last bar of the window: the decision's bar.
        s: int64 (M,), symbol.
        rows: int64 (M, W), rows of the window, oldest first.
        label_row: int64 (M,), row of the bar that the label is taken from; -1 without labels.
        log_return: float64 (M,), the label.
    """

    t: npt.NDArray[np.int64]
    s: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    label_row: npt.NDArray[np.int64]
    log_return: npt.NDArray[np.float64]

    def __len__(self) -> int:
        """Return the number of windows M."""
        return len(self.t)

    def where(self, keep: npt.NDArray[np.bool_]) -> Samples:
        """Return the windows at `keep`, bool (M,)."""
        return Samples(
            self.t[keep],
            self.s[keep],
            self.rows[keep],
            self.label_row[keep],
            self.log_return[keep],
        )


def make_samples(
    status: npt.NDArray[np.uint8], labels: Labels, length: int, horizon: int
) -> Samples:
    """Return every full window of a frame table, with its label where there is one.

    Args:
        status: uint8 (T, S), of the frames: only VALID rows enter a window.
        labels: of the bars of the same table.
        length: W, rows of a window.
        horizon: frames within which those rows must lie.
    """
    t, s, rows = window_index(status == BarStatus.VALID, length, horizon)
    return Samples(t, s, rows, labels.row[t, s], labels.log_return[t, s])


def split_samples(samples: Samples, split: Split) -> tuple[Samples, Samples]:
    """Return the labelled windows for training and for validation.

    A training window and its label lie wholly before the validation part; what would reach into it
    is purged. A validation window is judged inside that part, and its label lies before `stop`;
    its older rows may lie before, as they do when the model is used.
    """
    labelled = (samples.label_row >= 0) & np.isfinite(samples.log_return)
    training = labelled & (samples.label_row < split.validation_from)
    validation = labelled & (samples.t >= split.validation_from) & (samples.label_row < split.stop)
    return samples.where(training), samples.where(validation)


def split_windows(samples: Samples, split: Split) -> tuple[Samples, Samples]:
    """Return the windows for unsupervised training and validation; no label is asked for."""
    return (
        samples.where(samples.t < split.validation_from),
        samples.where((samples.t >= split.validation_from) & (samples.t < split.stop)),
    )


def bars_needed(warm_up: int, train_fraction: float, validation_fraction: float) -> int:
    """Return how many bars one symbol alone needs, if its window is full after `warm_up` bars."""
    share = train_fraction * (1 - validation_fraction)
    for_training = math.ceil((warm_up + MIN_TRAINING_WINDOWS + 1) / share)
    for_validation = math.ceil(
        (MIN_VALIDATION_WINDOWS + 1) / (train_fraction * validation_fraction)
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
