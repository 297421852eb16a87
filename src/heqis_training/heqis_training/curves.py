# SPDX-License-Identifier: Apache-2.0
"""The curves of a run as one picture: losses, validation figures, learning rates by epoch."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from heqis_core.errors import DataError
from heqis_training.checkpoint import write_durable
from heqis_training.monitor import EpochFigures, is_shown, read_history

RATE = 'learning_rate'
_UNITS = {
    'loss': 'loss, no unit', 'mse': 'squared training spreads', 'mae': 'training spreads',
    'ce': 'nats', 'accuracy': 'share of windows', 'mcc': 'correlation', RATE: 'step size',
}  # fmt: skip
_HIGHER_IS_BETTER = ('accuracy', 'mcc')
_COLUMNS = 3
_PANEL_INCHES = (4.6, 3.2)
_DPI = 110
_LOG_RATIO = 50.0
"""Largest over smallest value from which a panel has a logarithmic axis."""
_LINE_STYLES = ('-', '--')


class Curve(NamedTuple):
    """One figure of one network: epochs, and the values, NaN and infinity among them."""

    network: str
    epochs: list[int]
    values: list[float]


def draw_curves(history: Path, picture: Path) -> None:
    """Draw a table of `History` into a PNG, one panel for each figure that is told or a rate.

    The best epoch of each network is marked where a figure is of validation. Raises DataError if
    the table cannot be read or holds no such figure, or the picture cannot be written.
    """
    rows = [row for row in read_history(history) if isinstance(row, EpochFigures)]
    panels = _panels(rows)
    if not panels:
        raise DataError(
            f'{history}: holds no loss, validation figure or rate; train an epoch first'
        )
    n_columns = min(_COLUMNS, len(panels))
    n_rows = math.ceil(len(panels) / n_columns)
    networks = list(dict.fromkeys(row.network for row in rows))
    styles = {name: _style(index) for index, name in enumerate(networks)}
    legend_inches = 0.5 + 0.25 * math.ceil((len(networks) + 1) / (2 * n_columns))
    width, height = _PANEL_INCHES
    figure = Figure((width * n_columns, height * n_rows + legend_inches), layout='constrained')
    FigureCanvasAgg(figure)
    for index, (name, curves) in enumerate(panels.items()):
        _draw_panel(figure.add_subplot(n_rows, n_columns, index + 1), name, curves, styles)
    _draw_legend(figure, styles, 2 * n_columns)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=_DPI)
    write_durable(picture, buffer.getvalue())


def best_epoch(name: str, curve: Curve) -> int | None:
    """Return the index of the best finite value of a validation figure; None where none is."""
    sign = -1.0 if _unit_key(name) in _HIGHER_IS_BETTER else 1.0
    finite = [index for index, value in enumerate(curve.values) if math.isfinite(value)]
    return min(finite, key=lambda index: sign * curve.values[index], default=None)


def _panels(rows: Sequence[EpochFigures]) -> dict[str, list[Curve]]:
    """Return the curves of each figure: losses first, then validation, then the rates."""
    found: dict[str, dict[str, Curve]] = {}
    for row in rows:
        for name, value in row.figures.items():
            if is_shown(name) or name == RATE:
                curve = found.setdefault(name, {}).setdefault(
                    row.network, Curve(row.network, [], [])
                )
                curve.epochs.append(row.epoch)
                curve.values.append(value)
    order = sorted(found, key=lambda name: (name == RATE, name.startswith('validation')))
    return {name: list(found[name].values()) for name in order}


def _draw_panel(
    axes: Axes, name: str, curves: Sequence[Curve], styles: dict[str, dict[str, Any]]
) -> None:
    for curve in curves:
        # a single epoch is no line
        marker = 'o' if len(curve.epochs) == 1 else ''
        axes.plot(curve.epochs, curve.values, marker=marker, **styles[curve.network])
        best = best_epoch(name, curve) if name.startswith('validation') else None
        if best is not None:
            axes.plot(
                curve.epochs[best], curve.values[best], '*', markersize=11,
                color=styles[curve.network]['color'], markeredgecolor='black',
            )  # fmt: skip
    finite = [value for curve in curves for value in curve.values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    if low > 0 and (name == RATE or high > _LOG_RATIO * low):
        axes.set_yscale('log')
    axes.set_title(name.replace('_', ' '))
    axes.set_xlabel('epoch')
    axes.set_ylabel(_UNITS.get(_unit_key(name), 'no unit'))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)


def _draw_legend(figure: Figure, styles: dict[str, dict[str, Any]], n_columns: int) -> None:
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    star = Line2D(
        [], [], linestyle='', marker='*', markersize=11, color='white', markeredgecolor='black',
        label='best epoch of the figure',
    )  # fmt: skip
    figure.legend(handles=[*handles, star], loc='outside lower center', ncols=n_columns)


def _style(index: int) -> dict[str, Any]:
    """Return colour and line of the index-th network: twice ten that can be told apart."""
    return {
        'color': f'C{index % 10}',
        'linestyle': _LINE_STYLES[index // 10 % len(_LINE_STYLES)],
        'linewidth': 1.5,
    }


def _unit_key(name: str) -> str:
    return name if name == RATE else name.rsplit('_', 1)[-1]
