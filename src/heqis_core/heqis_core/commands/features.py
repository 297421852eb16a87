# SPDX-License-Identifier: Apache-2.0
"""`heqis features`: the named feature columns of a data set as CSV or Parquet, batch or stream.

The columns are those of `heqis_core.features`, the numbers those of training and of the graph. A
file is written under another name and renamed when it is whole.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from heqis_core.adjust import factor_of, hfq
from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.clean import CleaningReport
from heqis_core.errors import ConfigError, DataError
from heqis_core.features.kinds import KINDS
from heqis_core.features.spec import FeatureItem, FeatureSpec, full_spec
from heqis_core.features.state import FeatureState
from heqis_core.io.files import check_out, load_bars

FACTOR = 'adj_factor'
TURNOVER = 'turnover_rate'
"""The channel by which `--adjust hfq` multiplies prices."""

_CHUNK_NUMBERS = 1 << 22
"""Feature values that are held at a time (32 MiB), and so about the size of a row group."""

_SUFFIXES = ('.csv', '.parquet')
_STATUS = pa.array([status.name for status in BarStatus])
_EXAMPLES = """examples:
  heqis features --bars prices/ --out features.parquet
  heqis features --bars prices/ --spec config/features.example.json --out features.csv
  heqis features --bars prices/ --symbols 600519.SH,000001.SZ --out two.csv --stream
  heqis features --bars store/ --adjust hfq --out features.parquet --progress
  heqis features --list

One row for each event time and symbol, in this order, whatever became of the bar:
  event_time  close of the bar; CSV: ISO 8601 with the offset of --tz; Parquet: timestamp[ns, tz]
  symbol
  status      VALID, NO_BAR, SUSPENDED or REJECTED; only VALID bars advance an indicator
  then the columns of the spec: float64, in CSV with the fewest digits that read back to the same
  number; empty in CSV and null in Parquet where a feature has no value (yet)
"""


def register(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `features` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'features',
        help='write named feature columns of bars, in batch or as a stream',
        description='Compute the columns of a feature spec for every bar of a data set, and\n'
        'write them to one file. With --stream the bars go through one by one, as in the\n'
        'gateway; the file is the same to the byte.',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add('--bars', metavar='PATH', type=Path, help='CSV or Parquet, a file or a folder')
    add('--spec', metavar='FILE', type=Path, help='feature spec, JSON; default: all indicators')
    add('--out', metavar='FILE', type=Path, help='file to write: .csv or .parquet')
    add('--stream', action='store_true', help='advance bar by bar, and write each as it is done')
    add('--symbols', metavar='A,B', help='only these symbols; default: all of them')
    add(
        '--adjust',
        choices=('none', 'hfq'),
        default='none',
        help=f'hfq: adjust prices backward by the column {FACTOR}; default none',
    )
    add('--tz', metavar='ZONE', default='Asia/Shanghai', help='of the bars; default %(default)s')
    add(
        '--close_time',
        metavar='HH:MM',
        default='15:00',
        help='when a bar of a whole day closes; default %(default)s',
    )
    add('--progress', action='store_true', help='show a progress bar (on a terminal only)')
    add('--list', action='store_true', help='show all kinds, or the columns of --spec, and stop')
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """Write the file, print what is in it; return 0."""
    console = Console(highlight=False, soft_wrap=True)
    given = FeatureSpec.load(args.spec) if args.spec is not None else None
    if args.list:
        console.print(_kinds() if given is None else _columns(given))
        return 0
    bars, out = _paths(args)
    channels = [] if given is None else list(given.channels)
    if args.adjust == 'hfq' and FACTOR not in channels:
        channels.append(FACTOR)
    table, report = load_bars(
        bars,
        tz=args.tz,
        close_time=args.close_time,
        min_rows=0,
        channels=channels,
        optional_channels=full_spec(channels=(TURNOVER,)).channels if given is None else (),
    )
    if args.symbols is not None:
        table = table.select(_symbols(args.symbols))
    if args.adjust == 'hfq':
        table = to_hfq(table)
    spec = given or full_spec(table.has_volume, table.channels)
    state = FeatureState(spec, len(table.symbols), table.channels)
    chunk = max(1, _CHUNK_NUMBERS // (len(table.symbols) * len(spec.names)))
    filled = np.zeros(len(spec.names), np.bool_)
    screen = Console(stderr=True)
    shown = args.progress and screen.is_terminal
    bar = Progress(console=screen, transient=True, disable=not shown)
    with _whole(out) as file, bar:
        writer = _writer(out, file, table, spec, args.tz, chunk)
        task = bar.add_task('computing', total=len(table))
        for first, rows in _rows(table, state, chunk, args.stream):
            writer.write(first, rows)
            filled |= np.isfinite(rows).any(axis=(0, 1))
            bar.advance(task, len(rows))
        writer.close()
    console.print(_summary(out, table, spec, report, filled))
    return 0


def to_hfq(table: BarTable) -> BarTable:
    """Return the table with backward-adjusted prices; volume and amount stay.

    The factor is the channel `adj_factor`, where it steps on ex-dates
    (`heqis_core.adjust.factor_of`).

    Raises DataError if a VALID bar has no factor above zero.
    """
    assert table.extra is not None
    given = table.extra[:, table.channels.index(FACTOR)]
    wrong = (table.status == BarStatus.VALID) & ~(np.isfinite(given) & (given > 0))
    if wrong.any():
        t, s = np.argwhere(wrong)[0]
        when = datetime.fromtimestamp(int(table.event_time_ns[t]) // 10**9, timezone.utc)
        raise DataError(
            f'--adjust hfq: {int(wrong.sum())} bars without a factor above zero, the first: '
            f'{table.symbols[s]} at {when:%Y-%m-%dT%H:%MZ}: {FACTOR} = {given[t, s]}; '
            'fetch the factors again, or use --adjust none'
        )
    values = table.values.copy()
    for s in range(len(table.symbols)):
        factor = factor_of(values[:, CLOSE, s], adj_factor=given[:, s])
        values[:, : CLOSE + 1, s] = hfq(values[:, : CLOSE + 1, s].T, factor).T
    return replace(table, values=values)


def _paths(args: argparse.Namespace) -> tuple[Path, Path]:
    if args.bars is None or args.out is None:
        raise ConfigError('--bars and --out are both needed (or --list); see heqis features -h')
    bars, out = args.bars, args.out
    if out.suffix.lower() not in _SUFFIXES:
        raise ConfigError(f'--out {out}: expected a name that ends in {" or ".join(_SUFFIXES)}')
    check_out(out, bars, '--out')
    return bars, out


def _symbols(text: str) -> list[str]:
    names = [name.strip() for name in text.split(',')]
    if not all(names):
        raise ConfigError(f'--symbols {text!r}: an empty name; expected names such as A,B')
    return names


def _rows(
    table: BarTable, state: FeatureState, chunk: int, stream: bool
) -> Iterator[tuple[int, npt.NDArray[np.float64]]]:
    """Yield the features float64 (n, S, F) of n <= `chunk` event times, and the first's index."""
    if stream:
        for t in range(len(table)):
            block = table.block(t)
            yield t, state.step(block.values, block.status, block.event_time_ns, block.extra)[None]
        return
    for t in range(0, len(table), chunk):
        part = slice(t, t + chunk)
        extra = None if table.extra is None else table.extra[part]
        yield (
            t,
            state.batch(table.values[part], table.status[part], table.event_time_ns[part], extra),
        )


@contextmanager
def _whole(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which takes the place of `path` once it is whole, or goes."""
    part = path.with_name(path.name + '.part')
    try:
        with part.open('wb') as file:
            yield file
        os.replace(part, path)
    except OSError as error:
        raise DataError(
            f'--out {path}: cannot be written: {error.strerror or error}; name another file, '
            'or make room'
        ) from error
    finally:
        part.unlink(missing_ok=True)


class _Layout(NamedTuple):
    """What a file holds beside the numbers: its columns, and the keys of each row."""

    table: BarTable
    schema: pa.Schema
    times: pa.Array
    """What stands in `event_time`, one for each event time."""

    def batch(self, first: int, rows: npt.NDArray[np.float64]) -> pa.RecordBatch:
        """Return features (n, S, F) from event time `first` on as n * S rows of the file."""
        n, s, f = rows.shape
        status = self.table.status[first : first + n].ravel()
        columns = [
            self.times.take(pa.array(np.repeat(np.arange(first, first + n), s))),
            pa.array(np.tile(np.array(self.table.symbols, object), n), pa.string()),
            _STATUS.take(pa.array(status)),
        ]
        by_column = np.ascontiguousarray(rows.reshape(n * s, f).T)
        columns += [pa.array(numbers, from_pandas=True) for numbers in by_column]
        return pa.record_batch(columns, schema=self.schema)


def _layout(table: BarTable, spec: FeatureSpec, tz: str, as_text: bool) -> _Layout:
    if as_text:
        zone = ZoneInfo(tz)
        times = pa.array([_iso(ns, zone) for ns in table.event_time_ns.tolist()])
    else:
        times = pa.array(table.event_time_ns).cast(pa.timestamp('ns', tz))
    keys = [('event_time', times.type), ('symbol', pa.string()), ('status', pa.string())]
    schema = pa.schema(keys + [(name, pa.float64()) for name in spec.names])
    about = {'heqis_feature_spec_id': spec.id, 'heqis_feature_spec': spec.to_json()}
    return _Layout(table, schema.with_metadata(about), times)


def _iso(event_time_ns: int, zone: ZoneInfo) -> str:
    """Return 2024-01-02T15:00:00+08:00, with nanoseconds where there are any."""
    seconds, below_ns = divmod(event_time_ns, 10**9)
    text = datetime.fromtimestamp(seconds, zone).isoformat()
    return text[:19] + (f'.{below_ns:09d}' if below_ns else '') + text[19:]


class _CsvWriter:
    """Writes rows as they come."""

    def __init__(self, file: IO[bytes], layout: _Layout) -> None:
        self._file, self._layout = file, layout
        quotes = any(set(symbol) & set(',"\r\n') for symbol in layout.table.symbols)
        self._options = arrow_csv.WriteOptions(
            include_header=False, quoting_style='needed' if quotes else 'none'
        )
        header = io.StringIO()
        csv.writer(header, lineterminator='\n').writerow(layout.schema.names)
        file.write(header.getvalue().encode())

    def write(self, first: int, rows: npt.NDArray[np.float64]) -> None:
        arrow_csv.write_csv(self._layout.batch(first, rows), self._file, self._options)
        self._file.flush()

    def close(self) -> None:
        """Do nothing: nothing waits."""


class _ParquetWriter:
    """Writes a row group whenever `group` event times are there, whoever hands them over."""

    def __init__(self, file: IO[bytes], layout: _Layout, group: int) -> None:
        self._layout, self._group = layout, group
        self._writer = parquet.ParquetWriter(file, layout.schema)
        self._waiting: list[pa.RecordBatch] = []

    def write(self, first: int, rows: npt.NDArray[np.float64]) -> None:
        self._waiting.append(self._layout.batch(first, rows))
        if (first + len(rows)) % self._group == 0:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            # One chunk, so that the pages do not tell how the rows came.
            self._writer.write_table(pa.Table.from_batches(self._waiting).combine_chunks())
            self._waiting = []


def _writer(
    path: Path, file: IO[bytes], table: BarTable, spec: FeatureSpec, tz: str, group: int
) -> _CsvWriter | _ParquetWriter:
    if path.suffix.lower() == '.csv':
        return _CsvWriter(file, _layout(table, spec, tz, as_text=True))
    return _ParquetWriter(file, _layout(table, spec, tz, as_text=False), group)


def _summary(
    out: Path,
    table: BarTable,
    spec: FeatureSpec,
    report: CleaningReport,
    filled: npt.NDArray[np.bool_],
) -> str:
    """Return what is in the file, what became of the bars, and which columns are empty."""
    times, symbols = table.status.shape
    rejected = ', '.join(f'{reason}: {n}' for reason, n in report.counts.items())
    lines = [
        f'{out}: {times * symbols} rows ({times} event times, {symbols} symbols), '
        f'{len(spec.names)} columns, {spec.warmup_bars} bars of warm-up, spec {spec.id}',
        f'bars: {report.rows} rows read, {report.valid} valid, {report.suspended} suspended, '
        f'{sum(report.counts.values())} rejected' + (f' ({rejected})' if rejected else ''),
    ]
    if report.unread:
        unread = ', '.join(f'{name}: {n}' for name, n in report.unread.items())
        lines.append(f'cells that are no number, taken as empty: {unread}')
    empty = [name for name, any_value in zip(spec.names, filled, strict=True) if not any_value]
    if empty:
        lines.append(f'columns without any value: {", ".join(empty)}')
    bare = np.flatnonzero(~(table.status == BarStatus.VALID).any(axis=0))
    if len(bare):
        lines.append(f'symbols without a valid bar: {", ".join(table.symbols[s] for s in bare)}')
    return '\n'.join(lines)


def _kinds() -> Table:
    """Return every kind: parameters with defaults and ranges, what it reads, its columns."""
    table = Table()
    for title in ('kind', 'parameters', 'reads', 'columns, by default'):
        table.add_column(title, overflow='fold')
    for name, kind in KINDS.items():
        params = [
            f'{key} {param.default} ({param.minimum} to {param.maximum})'
            for key, param in kind.params.items()
        ]
        item = FeatureItem(name, of='close' if kind.of == '' else '')
        reads = ', '.join(kind.reads) if kind.of is None else f'of (default {kind.of or "none"})'
        columns = '\n'.join(column.name for column in item.columns)
        table.add_row(name, '\n'.join(params), reads, columns)
    return table


def _columns(spec: FeatureSpec) -> Table:
    table = Table('column', 'bars of warm-up', title=f'spec {spec.id}')
    for column in spec.outputs:
        table.add_row(column.name, str(column.warm_up))
    return table
