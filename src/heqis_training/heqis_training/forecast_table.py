# SPDX-License-Identifier: Apache-2.0
"""The forecast table: models and floors of each asset side by side, with intervals and marks.

Its figures are those of the test part, which chose nothing. A table without the floors cannot be
made. It is shown on a terminal and written as CSV, Markdown and JSON.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from heqis_core.errors import ConfigError, DataError
from heqis_training.bootstrap import (
    DRAWS,
    LEVEL,
    Difference,
    paired_difference,
    resample_times,
)
from heqis_training.metrics import (
    FIGURES,
    FLOORS,
    Figure,
    Judged,
    Truth,
    floors,
    per_seed,
    summarise,
)

SHOWN = (
    'mse_price',
    'mae_price',
    'mape_pct',
    'accuracy_pct',
    'mcc',
    'skill',
    'gross_return_pct',
)
"""Figures on a terminal and in Markdown; CSV and JSON hold every one."""
SAME = 1e-12
"""Differences below this are of rounding: both forecast the same."""
WITH_INTERVAL = ('mape_pct', 'accuracy_pct', 'mcc', 'skill')
"""Those of them that are shown with their interval."""

Mark = Literal['better', 'tie', 'equal', 'worse', 'reference', '']


class ForecastRow(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One model on the test windows of one asset.

    Attributes:
        asset, model: names.
        seeds: trained networks whose figures are averaged; 1 for a floor.
        windows: M.
        block: mean block of the bootstrap, in event times.
        figures: by the names of `metrics.FIGURES`, left out where one does not apply.
        intervals: of the figures that have one, over event times, with the seeds held together.
        seed_spread: standard deviation of a figure between seeds, from two seeds on.
        mark: whether the model is better than the reference, worse, or neither is shown (tie);
            equal if it forecasts the same, as persistence and what is shrunk to it do.
        difference: of the marked figure, model minus reference.
    """

    asset: str
    model: str
    seeds: Annotated[int, msgspec.Meta(ge=1)]
    windows: Annotated[int, msgspec.Meta(ge=1)]
    block: float
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}
    seed_spread: dict[str, float] = {}
    mark: Mark = ''
    difference: Difference | None = None


class ForecastTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Rows of one or more assets, with persistence, majority class and buy and hold in each.

    Attributes:
        rows: asset after asset.
        reference: the model that the others are marked against.
        marked_on: the figure that the marks are about.
        part: what was judged.
        level: of intervals and marks.
        draws: of the bootstrap.

    Raises DataError for an asset that lacks a floor or the reference, has a model twice, or has
    models judged on different numbers of windows; ConfigError for a mark on an unknown figure.
    """

    rows: tuple[ForecastRow, ...]
    reference: str
    marked_on: str
    part: Literal['test'] = 'test'
    level: float = LEVEL
    draws: int = DRAWS

    def __post_init__(self) -> None:
        """Refuse a table in which something that must be seen is missing."""
        _figure(self.marked_on)
        if not self.rows:
            raise DataError('forecast table: no rows; judge at least one asset')
        for asset in dict.fromkeys(row.asset for row in self.rows):
            rows = [row for row in self.rows if row.asset == asset]
            names = [row.model for row in rows]
            missing = [name for name in (*FLOORS, self.reference) if name not in names]
            if missing:
                raise DataError(
                    f'forecast table: {asset}: no row of {", ".join(missing)}; floors and the '
                    'reference stand in every table: make its rows with `compare`'
                )
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise DataError(f'forecast table: {asset}: {", ".join(twice)} stands there twice')
            if len({row.windows for row in rows}) > 1:
                raise DataError(
                    f'forecast table: {asset}: models were judged on '
                    f'{sorted({row.windows for row in rows})} windows; expected the same windows'
                )

    @property
    def note(self) -> str:
        """Return what the figures are and are not, for below the table."""
        figure = _figure(self.marked_on)
        blocks = sorted({row.block for row in self.rows})
        length = ' to '.join(f'{block:g}' for block in dict.fromkeys((blocks[0], blocks[-1])))
        return (
            f'Test part, which chose nothing. Intervals: {100 * self.level:g} %, from '
            f'{self.draws} draws of event times in blocks of {length} on average, seeds held '
            f'together. Marks: {figure.heading} against {self.reference} on the same windows, at '
            f'{100 * (1 - self.level):.3g} %, not adjusted for the number of comparisons. '
            'Persistence forecasts no change; the majority class is that of the training part, '
            'the best class in hindsight that of the test part itself. '
            'Prices count as given: without adjustment a dividend is a fall. '
            'Gross returns know no fees, limits, lots or slippage. No figure here is a statement '
            'of profit.'
        )


def compare(
    asset: str,
    models: Sequence[Judged],
    truth: Truth,
    class_shares: npt.ArrayLike,
    reference: str,
    seed: int,
    marked_on: str = 'mape_pct',
) -> tuple[ForecastRow, ...]:
    """Return the rows of one asset: the models, then the floors, on the same windows.

    Args:
        asset: its name.
        models: judged on `truth`, with all their seeds.
        truth: the windows of the test part.
        class_shares: (3,), shares of down, flat and up in the training part.
        reference: name of the model, or floor, that the others are marked against.
        seed: of the bootstrap; the same draws serve every model.
        marked_on: a figure that is a mean over windows (neither skill nor MCC nor gross return).

    Raises ConfigError for an unknown reference, or for a figure that it does not have.
    """
    resampling = resample_times(truth.t, seed)
    everyone = (*models, *floors(truth, class_shares))
    against = _losses_of(reference, everyone, marked_on)
    rows = []
    for judged in everyone:
        figures, intervals = summarise(judged, truth, resampling)
        spread = (
            {name: float(x.std(ddof=1)) for name, x in per_seed(judged, truth).items()}
            if judged.seeds > 1
            else {}
        )
        losses = judged.losses.get(marked_on)
        mark: Mark = ''
        difference = None
        if judged.name == reference:
            mark = 'reference'
        elif losses is not None and np.isfinite(losses).any():
            difference = paired_difference(resampling, losses, against)
            mark = _mark(difference, _figure(marked_on))
        rows.append(
            ForecastRow(
                asset=asset,
                model=judged.name,
                seeds=judged.seeds,
                windows=len(truth.t),
                block=resampling.block,
                figures=figures,
                intervals=intervals,
                seed_spread=spread,
                mark=mark,
                difference=difference,
            )
        )
    return tuple(rows)


def to_rich(table: ForecastTable, shown: Sequence[str] = SHOWN) -> Table:
    """Return the table for a terminal, one section an asset, with the note below.

    About 125 columns wide; in a narrower terminal cells are folded, never cut: show fewer
    figures there.
    """
    made = Table(
        title=_title(table),
        caption=table.note,
        title_justify='left',
        caption_justify='left',
        box=SIMPLE_HEAD,
        padding=0,
    )
    shown = _known(table, shown)
    lines = [_cells(row, shown, '\n', ('', '..', '')) for row in table.rows]
    for place, heading in enumerate(_headings(shown)):
        words = heading in {'asset', 'model', 'mark'}
        # a number is never broken: its column is as wide as the longest
        parts = [part for line in lines for part in line[place].split('\n')]
        width = None if heading == 'model' else max(map(len, parts), default=0)
        made.add_column(
            heading, justify='left' if words else 'right', overflow='fold', min_width=width
        )
    previous = ''
    for row in table.rows:
        asset, *cells = _cells(row, shown, '\n', ('', '..', ''))
        if row.asset != previous and previous:
            made.add_section()
        made.add_row(*map(escape, ('' if row.asset == previous else asset, *cells)))
        previous = row.asset
    return made


def to_markdown(table: ForecastTable, shown: Sequence[str] = SHOWN) -> str:
    """Return the table as Markdown with the note below, ending in a line feed."""
    shown = _known(table, shown)
    headings = _headings(shown)
    rule = ['---' if heading in {'asset', 'model', 'mark'} else '---:' for heading in headings]
    lines = [headings, rule, *(_cells(row, shown, ' ', ('[', ', ', ']')) for row in table.rows)]
    rows = ['| ' + ' | '.join(c.replace('|', '\\|') for c in line) + ' |' for line in lines]
    return '\n'.join((f'**{_title(table)}**', '', *rows, '', table.note, ''))


def to_csv(table: ForecastTable) -> str:
    """Return every figure of every row as CSV; a figure that does not apply is an empty cell."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    names = [figure.name for figure in FIGURES]
    ends = [f'{name}{end}' for name in names for end in ('', '_low', '_high', '_seed_spread')]
    compared = ('mark', 'difference', 'difference_low', 'difference_high', 'p_value')
    first = ('asset', 'model', 'part', 'seeds', 'windows', 'block')
    writer.writerow((*first, *ends, 'reference', 'marked_on', *compared))
    for row in table.rows:
        cells: list[object] = [row.asset, row.model, table.part, row.seeds, row.windows, row.block]
        for name in names:
            cells += [row.figures.get(name), *row.intervals.get(name, (None, None))]
            cells.append(row.seed_spread.get(name))
        cells += [table.reference, table.marked_on, row.mark]
        cells += row.difference or (None, None, None, None)
        writer.writerow(cells)
    return text.getvalue()


def to_json(table: ForecastTable) -> bytes:
    """Return the table as indented JSON that `from_json` reads back to an equal one."""
    return msgspec.json.format(msgspec.json.encode(table), indent=1) + b'\n'


def from_json(data: bytes) -> ForecastTable:
    """Read a table, for instance to put the assets of two runs into one.

    Raises DataError for what is no forecast table.
    """
    try:
        return msgspec.json.decode(data, type=ForecastTable)
    except msgspec.MsgspecError as error:
        raise DataError(f'no forecast table: {error}') from error


def _losses_of(reference: str, models: Sequence[Judged], figure: str) -> npt.NDArray[np.float64]:
    for judged in models:
        if judged.name == reference:
            if figure in judged.losses:
                return judged.losses[figure]
            able = ', '.join(judged.losses) or 'none'
            raise ConfigError(
                f'marked_on is {figure!r}, which {reference} does not have as a mean over '
                f'windows; expected one of: {able}'
            )
    names = ', '.join(judged.name for judged in models)
    raise ConfigError(f'reference is {reference!r}; expected one of: {names}')


def _mark(difference: Difference, figure: Figure) -> Mark:
    if max(abs(difference.low), abs(difference.high)) < SAME:
        return 'equal'
    if difference.p_value >= 1 - LEVEL:
        return 'tie'
    return 'better' if (difference.value < 0) == figure.lower_is_better else 'worse'


def _figure(name: str) -> Figure:
    for figure in FIGURES:
        if figure.name == name:
            return figure
    raise ConfigError(
        f'figure {name!r}: unknown; expected one of {", ".join(figure.name for figure in FIGURES)}'
    )


def _title(table: ForecastTable) -> str:
    windows = {row.asset: row.windows for row in table.rows}
    listed = ', '.join(f'{asset} {count}' for asset, count in windows.items())
    return f'next close, {table.part} part; windows: {listed}'


def _known(table: ForecastTable, shown: Sequence[str]) -> list[str]:
    """Return those of the figures that some row has."""
    return [name for name in shown if any(name in row.figures for row in table.rows)]


def _headings(shown: Sequence[str]) -> list[str]:
    figures = [_figure(name).heading for name in shown]
    return ['asset', 'model', 'seeds', *figures, 'mark']


def _cells(
    row: ForecastRow, shown: Sequence[str], between: str, marks: tuple[str, str, str]
) -> list[str]:
    """Return the cells of a row; an interval comes `between` and in these `marks`."""
    figures = (_shown(row, _figure(name), between, marks) for name in shown)
    return [row.asset, row.model, str(row.seeds), *figures, row.mark]


def _shown(row: ForecastRow, figure: Figure, between: str, marks: tuple[str, str, str]) -> str:
    value = row.figures.get(figure.name)
    if value is None:
        return '–'
    text = _number(value, figure)
    if figure.name not in WITH_INTERVAL or figure.name not in row.intervals:
        return text
    low, high = (_number(end, figure) for end in row.intervals[figure.name])
    return f'{text}{between}{marks[0]}{low}{marks[1]}{high}{marks[2]}'


def _number(value: float, figure: Figure) -> str:
    return f'{round(value, figure.digits) + 0.0:.{figure.digits}f}'  # + 0.0: no minus before 0
