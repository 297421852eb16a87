# SPDX-License-Identifier: Apache-2.0
"""What conversions are calibrated and judged on: windows and frames of a bundle on market data.

Calibration windows come from bars up to the end of the bundle's training, of every symbol. What is
measured comes from later bars where there are enough of them, of a seeded choice of symbols.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heqis_core.bars import BarStatus, BarTable
from heqis_core.bundle import NO_ENGINE, Bundle
from heqis_core.decider import Decider
from heqis_core.engine import Arrays, Engine
from heqis_core.errors import DataError
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import open_engine
from heqis_core.windows import Windows, window_index

Floats = npt.NDArray[np.float32]
Told = Callable[[int, int], None]

CALIBRATION_WINDOWS = 2048
"""Of the encoder: a quarter with the largest inputs, a quarter with the largest factors, and a
seeded half of the rest. Ranges come from extremes, so a plain sample would cut them off."""
GENERATOR_WINDOWS = 512
HEADROOM = 1.25
"""Calibration windows are stretched by this: later bars go beyond those of the training, and what
lies outside an int8 range is cut off. It costs a third of a bit (docs/conversion.md)."""
MIN_LATER_BARS = 400
"""Bars after the training below which training bars are measured, and the report says so."""


class Verdicts(NamedTuple):
    """Decisions of T event times and S symbols: `action` uint8 and `score` float32, (T, S)."""

    action: npt.NDArray[np.uint8]
    score: Floats


class Study(NamedTuple):
    """Frames of the chosen symbols, computed in float32, and windows out of them.

    Attributes:
        bundle: whose.
        symbols: S chosen names.
        times: int64 (T,), event times in ns UTC.
        features: float32 (T, S, F + K).
        status: uint8 (T, S).
        known: rows up to the end of the training.
        judged_from: first row whose decisions are compared; windows reach back from it.
        calibration: float32 (C, F, 1, encoder window), of every symbol, C up to
            `CALIBRATION_WINDOWS`; empty without an encoder.
        windows: float32 (M, F, 1, encoder window), what the encoder sees from the first row that
            a judged window can reach; empty without an encoder.
        at: rows t and symbols s of those, int64 (M,) each.
        notes: what a reader of the figures must know.
    """

    bundle: Bundle
    symbols: tuple[str, ...]
    times: npt.NDArray[np.int64]
    features: Floats
    status: npt.NDArray[np.uint8]
    known: int
    judged_from: int
    calibration: Floats
    windows: Floats
    at: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
    notes: tuple[str, ...]

    @property
    def factors(self) -> Floats:
        """Return what the float32 encoder answers to `windows`, (M, K, 1, 1)."""
        part = self.bundle.manifest.encoder
        rows = self.features[self.at]
        return rows[:, rows.shape[1] - (part.factors if part else 0) :][:, :, None, None]

    def with_factors(self, factors: Floats) -> Floats:
        """Return a copy of `features` with other factors (M, K, 1, 1) in the rows of `windows`."""
        features = self.features.copy()
        rows = features[self.at]
        rows[:, rows.shape[1] - factors.shape[1] :] = factors[:, :, 0, 0]
        features[self.at] = rows
        return features

    def generator_windows(self, length: int, from_row: int, to_row: int, most: int) -> Floats:
        """Return windows (n, length, F + K) that end in these rows, seeded, `most` at most."""
        whole = self.bundle.manifest.window
        t, s, rows = window_index(self.status == BarStatus.VALID, whole.length, whole.horizon)
        places = np.flatnonzero((t >= from_row) & (t < to_row))
        chosen = np.sort(_random(self.bundle).permutation(places)[:most])
        return self.features[rows[chosen, -length:], s[chosen, None]]

    def decide(
        self,
        features: Floats,
        make_engine: Callable[[Path], Engine] = open_engine,
        told: Told = lambda done, total: None,
    ) -> Verdicts:
        """Let the bundle's decider judge every row from `judged_from` on.

        `features` are this study's or other ones of their shape; `make_engine` gets the path of
        each canonical generator.
        """
        horizon = self.bundle.manifest.window.horizon
        first = max(0, self.judged_from - horizon)
        decider = Decider.of(self.bundle, self.symbols, make_engine)
        features_id = self.bundle.features_id(NO_ENGINE)
        actions, scores = [], []
        try:
            for t in range(first, len(self.times)):
                tensors: Arrays = {'features': features[t], 'status': self.status[t]}
                frame = FeatureFrame(
                    'convert', 0, t, int(self.times[t]), 0, features_id, self.symbols, tensors
                )
                if t < self.judged_from:
                    decider.warm(frame)
                    continue
                decisions, _ = decider.decide(frame)
                actions.append(decisions.action)
                scores.append(decisions.score)
                told(len(actions), len(self.times) - self.judged_from)
        finally:
            decider.close()
        return Verdicts(np.stack(actions), np.stack(scores))


class Collector:
    """Keeps calibration windows of the many that an encoder sees.

    Args:
        n: windows to keep.
        shape: of a window.
        seed: of those that are drawn.
    """

    def __init__(self, n: int, shape: tuple[int, ...], seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._largest = [_Largest(n // 4, shape) for _ in ('inputs', 'factors')]
        self._drawn = np.empty((n - 2 * (n // 4), *shape), np.float32)
        self._seen = 0

    def offer(self, windows: Floats, factors: Floats) -> None:
        """Take in windows (n, F, 1, T) and their factors (n, K)."""
        for largest, of in zip(self._largest, (windows, factors), strict=True):
            largest.offer(windows, np.abs(of).max(axis=tuple(range(1, of.ndim))))
        for window in windows:  # reservoir sampling: Vitter, 1985, algorithm R
            self._seen += 1
            place = self._seen - 1
            if self._seen > len(self._drawn):
                place = int(self._rng.integers(self._seen))
            if place < len(self._drawn):
                self._drawn[place] = window

    def windows(self) -> Floats:
        """Return what was kept, each window once, in a seeded order."""
        kept = [self._drawn[: self._seen], *(largest.windows() for largest in self._largest)]
        return self._rng.permutation(np.unique(np.concatenate(kept), axis=0))


class _Largest:
    """The n windows with the largest sizes."""

    def __init__(self, n: int, shape: tuple[int, ...]) -> None:
        self._windows = np.zeros((n, *shape), np.float32)
        self._sizes = np.full(n, -np.inf, np.float32)

    def offer(self, windows: Floats, sizes: Floats) -> None:
        for place in np.flatnonzero(sizes > self._sizes.min()):
            least = int(self._sizes.argmin())
            if sizes[place] > self._sizes[least]:
                self._windows[least], self._sizes[least] = windows[place], sizes[place]

    def windows(self) -> Floats:
        return self._windows[np.isfinite(self._sizes)]


def study_bundle(
    bundle: Bundle, table: BarTable, most: int, told: Told = lambda done, total: None
) -> Study:
    """Run the bundle's pipeline over all bars and keep what conversions need of it.

    Args:
        bundle: verified.
        table: bars with the channels that its features read, from before the end of its training.
        most: encoder windows that are measured at most (about): it says how many symbols.
        told: called with the event times that are done, and how many there are.

    Raises DataError without bars of the training, and EngineError for an encoder that cannot run.
    """
    known = int(np.searchsorted(table.event_time_ns, bundle.manifest.trained_until_ns, 'right'))
    if not known:
        raise DataError(
            f'no bar is from the training of {bundle.bundle_id}, which ended at '
            f'{bundle.manifest.trained_until_ns} ns: give those bars, too; conversions are '
            'calibrated on them'
        )
    judged_from, notes = _judged_from(table, known)
    notes += _strange(bundle, table)
    reach = max(0, judged_from - bundle.manifest.window.horizon)
    stop = min(len(table), max(reach + most, judged_from + 1))
    count = min(len(table.symbols), max(1, most // (stop - reach)))
    chosen = np.sort(_random(bundle).permutation(len(table.symbols))[:count])
    encoder = open_engine(bundle.encoder_path) if bundle.encoder_path else None
    pipeline = bundle.pipeline(table.symbols, encoder, table.channels)
    seen = _Seen(bundle, len(table.symbols), chosen)
    features = np.empty((stop, count, len(pipeline.feature_names)), np.float32)
    status = np.empty((stop, count), np.uint8)
    try:
        for t in range(stop):
            tensors = pipeline.step(t, table.block(t))
            frame = cast('Floats', tensors['features'])
            features[t] = frame[chosen]
            status[t] = cast('npt.NDArray[np.uint8]', tensors['status'])[chosen]
            if encoder is not None:
                seen.step(t, frame, table.status[t], t < known, t >= reach)
            told(t + 1, stop)
    finally:
        pipeline.close()
        if encoder is not None:
            encoder.close()
    windows, at = seen.measured()
    if encoder is not None and not len(windows):
        raise DataError(
            f'the encoder has no full window from row {reach} of the bars on; give '
            'a longer series or more symbols'
        )
    return Study(
        bundle,
        tuple(table.symbols[index] for index in chosen),
        table.event_time_ns[:stop],
        features,
        status,
        known,
        judged_from,
        seen.collector.windows(),
        windows,
        at,
        notes,
    )


class _Seen:
    """The windows that the pipeline gave its encoder, step by step."""

    def __init__(self, bundle: Bundle, n_symbols: int, chosen: npt.NDArray[np.int64]) -> None:
        part = bundle.manifest.encoder
        window, horizon = (part.window, part.horizon) if part else (1, 1)
        self._n_indicators = len(bundle.spec.names)
        shape = (self._n_indicators, 1, window)
        seed = abs(bundle.manifest.provenance.seed)
        self.collector = Collector(CALIBRATION_WINDOWS, shape, seed)
        self._windows = Windows(n_symbols, window, self._n_indicators, horizon)
        self._place = np.full(n_symbols, -1)
        self._place[chosen] = np.arange(len(chosen))
        self._measured = [np.empty((0, *shape), np.float32)]
        self._at: list[tuple[int, int]] = []

    def step(
        self, t: int, frame: Floats, status: npt.NDArray[np.uint8], calibrate: bool, measure: bool
    ) -> None:
        """Take in the features (S, F + K) and the bar status (S,) of event time t."""
        indicators = frame[:, : self._n_indicators]
        ready = (status == BarStatus.VALID) & np.isfinite(indicators).all(axis=1)
        self._windows.push(t, indicators, ready)
        which = np.flatnonzero(ready & self._windows.ready(t))
        if not len(which):
            return
        rows = self._windows.gather(which).transpose(0, 2, 1)[:, :, None, :]
        if calibrate:
            self.collector.offer(rows, frame[which, self._n_indicators :])
        if measure:
            places = self._place[which]
            self._measured.append(rows[places >= 0])
            self._at += [(t, int(place)) for place in places[places >= 0]]

    def measured(self) -> tuple[Floats, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
        """Return the windows to measure, (M, F, 1, T), and their rows and symbols."""
        at = np.array(self._at, np.int64).reshape(-1, 2)
        return np.concatenate(self._measured), (at[:, 0], at[:, 1])


def _judged_from(table: BarTable, known: int) -> tuple[int, tuple[str, ...]]:
    later = int((table.status[known:] == BarStatus.VALID).sum())
    if later >= MIN_LATER_BARS:
        return known, ()
    return known // 2, (
        f'measured on training bars: {later} bars follow the training, {MIN_LATER_BARS} are '
        'wanted; later bars would say more',
    )


def _strange(bundle: Bundle, table: BarTable) -> tuple[str, ...]:
    trained = bundle.manifest.provenance.data.symbols
    if {*trained} & {*table.symbols}:
        return ()
    named = ', '.join(trained[:5]) + (' …' if len(trained) > 5 else '')
    return (f'none of the symbols of the training ({named}) is among these bars',)


def _random(bundle: Bundle) -> np.random.Generator:
    return np.random.default_rng(abs(bundle.manifest.provenance.seed))
