# SPDX-License-Identifier: Apache-2.0
"""A bundle on the bars that training never saw, through the pipeline and decider of the boards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.bars import BarTable
from heqis_core.batch import answer_all
from heqis_core.bundle import Bundle
from heqis_core.decision import Action, reason_names
from heqis_core.errors import DataError
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.manifest import Manifest
from heqis_core.source import TableSource
from heqis_training import dataset, metrics
from heqis_training.forecast_table import ForecastTable, compare
from heqis_training.metrics import MAJORITY, PERSISTENCE, Answers, Judged

SERVED = ' (served)'
"""End of the name of the row whose thresholds and decisions the boards use."""
NO_NEXT_BAR = 'no_next_bar'
"""Why a decision is not judged yet: what it forecasts has not come."""


class BundleReport(NamedTuple):
    """What a bundle is worth after its training.

    Attributes:
        table: every generator, the ensemble if any, and the floors, marked against persistence.
        not_judged: windows that were not judged, by reason; every (bar time, symbol) after the
            training is either one of them or one of the table's windows.
        actions: decisions of the served one by name, on the judged windows.
        notes: what a reader must know beside the table's own note.
    """

    table: ForecastTable
    not_judged: dict[str, int]
    actions: dict[str, int]
    notes: tuple[str, ...]


class _Asked(NamedTuple):
    """What the decider said after the training: T' event times, S symbols, G names."""

    names: tuple[str, ...]
    log_return: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]
    action: npt.NDArray[np.uint8]
    reasons: npt.NDArray[np.uint32]


class _Bars(NamedTuple):
    """VALID bars: row, symbol, close, and the return to the next one, NaN where none is there."""

    t: npt.NDArray[np.int64]
    s: npt.NDArray[np.int64]
    close: npt.NDArray[np.float64]
    log_return: npt.NDArray[np.float64]

    def where(self, which: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> _Bars:
        """Return the bars at `which`, a mask or places."""
        return _Bars(self.t[which], self.s[which], self.close[which], self.log_return[which])


def judge_bundle(
    bundle: Bundle,
    table: BarTable,
    told: Callable[[int, int], None] = lambda done, total: None,
) -> BundleReport:
    """Judge every generator of a bundle on the bars after its `trained_until_ns`.

    The bars up to there warm up features and windows, and give the shares of the classes.

    Args:
        bundle: its golden outputs are checked first.
        table: bars with the channels that its features read.
        told: called with the event times that are judged, and how many there are.

    Raises DataError where no bar follows the training or none can be judged, BundleError and
    EngineError for a bundle that does not run.
    """
    manifest = bundle.manifest
    first = int(np.searchsorted(table.event_time_ns, manifest.trained_until_ns, side='right'))
    if first == len(table):
        last = _utc(int(table.event_time_ns[-1])) if len(table) else 'without a bar'
        raise DataError(
            f'the bundle was trained until {_utc(manifest.trained_until_ns)} and the bars end '
            f'{last}; give bars that follow the training'
        )
    bundle.verify_golden(OrtEngine)
    asked = _ask(bundle, table, first, told)
    judged, not_judged = _judged_bars(table, first, asked)
    if not len(judged.t):
        raise DataError(
            f'none of the {asked.action.size} windows after {_utc(manifest.trained_until_ns)} can '
            f'be judged: {_listed(not_judged)}; give a longer series'
        )
    row, symbol = judged.t - first, judged.s
    truth = metrics.make_truth(*judged, manifest.flat_band)
    models = [
        _judged(
            manifest,
            name,
            Answers(asked.log_return[g, row, symbol], asked.probabilities[g, row, symbol]),
            truth,
        )
        for g, name in enumerate(asked.names)
    ]
    forecasts, notes = _table_of(manifest, table, models, truth, first)
    actions = Counter(Action(code).name for code in asked.action[row, symbol].tolist())
    return BundleReport(forecasts, not_judged, dict(sorted(actions.items())), notes)


def _ask(bundle: Bundle, table: BarTable, first: int, told: Callable[[int, int], None]) -> _Asked:
    """Let the decider answer every event time from row `first` on."""
    total = len(table) - first
    names: tuple[str, ...] = ()
    returns, shares, actions, reasons = [], [], [], []
    for decisions, predictions in answer_all(bundle, TableSource(table), open_engine):
        names = predictions.generators
        returns.append(predictions.log_return)
        shares.append(predictions.probabilities)
        actions.append(decisions.action)
        reasons.append(decisions.reasons)
        told(len(actions), total)
    return _Asked(
        names, np.stack(returns, axis=1), np.stack(shares, axis=1), np.stack(actions),
        np.stack(reasons),
    )  # fmt: skip


def _judged_bars(table: BarTable, first: int, asked: _Asked) -> tuple[_Bars, dict[str, int]]:
    """Return the bars from row `first` on whose windows are judged, ordered by (t, s).

    And how many of all windows there are not, each counted once, by the first reason that holds.
    """
    bars = _bars(table)
    bars = bars.where(bars.t >= first)
    known = np.zeros(asked.action.shape, np.bool_)
    known[bars.t - first, bars.s] = np.isfinite(bars.log_return)
    refused = asked.action == Action.NONE
    finite = np.isfinite(asked.log_return) & np.isfinite(asked.probabilities).all(axis=3)
    answered = ~refused & finite.all(axis=0)
    counts = Counter(reason_names(bits)[0] for bits in asked.reasons[refused].tolist())
    # the served one answered, another one did not: then nobody is judged on that window
    counts['not_finite'] += int((~refused & ~answered).sum())
    counts[NO_NEXT_BAR] += int((answered & ~known).sum())
    judged = bars.where((answered & known)[bars.t - first, bars.s])
    in_order = judged.where(np.lexsort((judged.s, judged.t)))
    return in_order, {name: count for name, count in sorted(counts.items()) if count}


def _bars(table: BarTable) -> _Bars:
    """Return every VALID bar, symbol after symbol."""
    each = [dataset.labels(table, symbol, (1,)) for symbol in range(len(table.symbols))]
    return _Bars(
        np.concatenate([one.t for one in each]),
        np.concatenate([np.full(len(one.t), symbol) for symbol, one in enumerate(each)]),
        np.concatenate([one.close for one in each]),
        np.concatenate([one.future_return[:, 0] for one in each]),
    )


def _judged(manifest: Manifest, name: str, answers: Answers, truth: metrics.Truth) -> Judged:
    """Judge one generator; the thresholds of the bundle belong to the served one alone."""
    if name != manifest.served:
        return metrics.judge(name, [answers], truth)
    return metrics.judge(name + SERVED, [answers], truth, [manifest.strategy])


def _table_of(
    manifest: Manifest,
    table: BarTable,
    models: list[Judged],
    truth: metrics.Truth,
    first: int,
) -> tuple[ForecastTable, tuple[str, ...]]:
    """Return the table, and notes; without bars before row `first` no majority class is known."""
    shares = _class_shares(table, first, manifest.flat_band)
    symbols = table.symbols
    asset = ', '.join(symbols) if len(symbols) <= 3 else f'{len(symbols)} symbols'
    rows = compare(
        asset,
        models,
        truth,
        np.full(3, 1 / 3) if shares is None else shares,
        PERSISTENCE,
        manifest.provenance.seed,
    )
    notes = [f'Bars after {_utc(manifest.trained_until_ns)}, which training did not see.']
    if shares is None:
        rows = tuple(
            row
            if row.model != MAJORITY
            else msgspec.structs.replace(row, figures={}, intervals={})
            for row in rows
        )
        notes.append(
            'The data hold no returns of the training part: the majority class is not known. Give '
            'the bars before it, too; windows then are warm from the first one on.'
        )
    return ForecastTable(rows=rows, reference=PERSISTENCE, marked_on='mape_pct'), tuple(notes)


def _class_shares(table: BarTable, first: int, band: float) -> npt.NDArray[np.float64] | None:
    """Return the shares of the classes before row `first`, None without a return there."""
    log_return = _bars(table.head(first)).log_return
    classes = dataset.classify(log_return[np.isfinite(log_return)], band)
    return np.bincount(classes, minlength=3) / len(classes) if len(classes) else None


def _listed(counts: dict[str, int]) -> str:
    return ', '.join(f'{name} {count}' for name, count in counts.items())


def _utc(event_time_ns: int) -> str:
    return f'{np.datetime64(event_time_ns, "ns").astype("datetime64[s]")} UTC'
