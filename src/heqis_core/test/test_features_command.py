# SPDX-License-Identifier: Apache-2.0
"""`heqis features`: the same file in batch and as a stream, whole numbers, named errors."""

from __future__ import annotations

import argparse
import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from heqis_core.bars import BAR_FIELDS, BarStatus, BarTable
from heqis_core.commands import features
from heqis_core.errors import ConfigError, DataError
from heqis_core.features.kinds import KINDS
from heqis_core.features.spec import FeatureItem, FeatureSpec, full_spec
from heqis_core.features.state import FeatureState
from heqis_core.io.files import load_bars
from heqis_core.testing import shared_data, simulated_table

SYMBOLS, TIMES, SEED = 3, 90, 5
SPEC = FeatureSpec(
    (
        FeatureItem('return', {'n': 1}),
        FeatureItem('macd', relative=True),
        FeatureItem('rsi', {'n': 6}),
        FeatureItem('volume_ratio', {'n': 5}),
    )
)


def run(*words: object) -> int:
    parser = argparse.ArgumentParser()
    features.register(parser.add_subparsers())
    args = parser.parse_args(['features', *map(str, words)])
    status: int = args.func(args)
    return status


def write_bars(path: Path, table: BarTable) -> None:
    """Write a bar file that holds the valid bars of a table, and pauses where it has none."""
    with path.open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['datetime', 'symbol', 'paused', *BAR_FIELDS])
        for t, ns in enumerate(table.event_time_ns.tolist()):
            for s, symbol in enumerate(table.symbols):
                valid = table.status[t, s] == BarStatus.VALID
                values = table.values[t, :, s].tolist() if valid else [''] * len(BAR_FIELDS)
                writer.writerow([ns, symbol, int(not valid), *values])


@pytest.fixture
def bars(tmp_path: Path) -> Path:
    path = tmp_path / 'in' / 'bars.csv'
    path.parent.mkdir()
    write_bars(path, simulated_table(SYMBOLS, TIMES, SEED))
    return path


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / 'spec.json'
    path.write_text(SPEC.to_json())
    return path


@pytest.mark.parametrize('suffix', ['.csv', '.parquet'])
@pytest.mark.parametrize('chunk_times', [1, 7, 30, 1000])
def test_stream_and_batch_write_the_same_bytes_whatever_the_chunk(
    tmp_path: Path, bars: Path, spec: Path, suffix: str, chunk_times: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(features, '_CHUNK_NUMBERS', chunk_times * SYMBOLS * len(SPEC.names))
    batch, stream = tmp_path / f'batch{suffix}', tmp_path / f'stream{suffix}'
    assert run('--bars', bars, '--spec', spec, '--out', batch) == 0
    assert run('--bars', bars, '--spec', spec, '--out', stream, '--stream') == 0
    assert batch.read_bytes() == stream.read_bytes()
    if suffix == '.parquet':
        groups = -(-TIMES // chunk_times)
        assert parquet.ParquetFile(batch).num_row_groups == groups
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ['in', 'spec.json', batch.name, stream.name]
    )


def test_csv_holds_every_number_bit_for_bit_in_order_of_time_and_symbol(
    tmp_path: Path, bars: Path, spec: Path
) -> None:
    out = tmp_path / 'out.csv'
    run('--bars', bars, '--spec', spec, '--out', out)
    table, _ = load_bars(bars)
    expected = FeatureState(SPEC, SYMBOLS).batch(table.values, table.status)
    assert (table.status != BarStatus.VALID).any(), 'a market without suspensions shows less'
    with out.open(newline='') as file:
        header, *rows = csv.reader(file)
    assert header == ['event_time', 'symbol', 'status', *SPEC.names]
    assert [row[1] for row in rows] == list(table.symbols) * TIMES
    assert [row[2] for row in rows] == [
        BarStatus(code).name for code in table.status.ravel().tolist()
    ]
    for row, ns in zip(rows, np.repeat(table.event_time_ns, SYMBOLS).tolist(), strict=True):
        assert np.datetime64(row[0][:19], 'ns') - np.timedelta64(8, 'h') == np.datetime64(ns, 'ns')
        assert row[0][19:] == '+08:00'
    values = np.array([[float(cell or 'nan') for cell in row[3:]] for row in rows])
    np.testing.assert_array_equal(values, expected.reshape(-1, len(SPEC.names)))
    assert not any('nan' in cell for row in rows for cell in row)


def test_parquet_holds_the_numbers_with_types_nulls_zone_and_spec(
    tmp_path: Path, bars: Path, spec: Path
) -> None:
    out = tmp_path / 'out.PARQUET'
    run('--bars', bars, '--spec', spec, '--out', out)
    table, _ = load_bars(bars)
    expected = FeatureState(SPEC, SYMBOLS).batch(table.values, table.status)
    found = parquet.read_table(out)
    assert found.schema.metadata[b'heqis_feature_spec_id'].decode() == SPEC.id
    assert FeatureSpec.from_json(found.schema.metadata[b'heqis_feature_spec']) == SPEC
    assert found.schema.field('event_time').type == pa.timestamp('ns', 'Asia/Shanghai')
    times = found['event_time'].cast(pa.int64()).to_numpy()
    np.testing.assert_array_equal(times, np.repeat(table.event_time_ns, SYMBOLS))
    for k, name in enumerate(SPEC.names):
        column = found[name].to_numpy()
        np.testing.assert_array_equal(column, expected[:, :, k].ravel())
        assert found[name].null_count == np.isnan(expected[:, :, k]).sum()


def test_without_a_spec_the_file_has_the_full_one(tmp_path: Path, bars: Path) -> None:
    out = tmp_path / 'out.parquet'
    run('--bars', bars, '--out', out)
    assert parquet.read_schema(out).names[3:] == list(full_spec().names)


def test_chosen_symbols_have_the_rows_that_they_have_among_all(
    tmp_path: Path, bars: Path, spec: Path
) -> None:
    every, some = tmp_path / 'all.csv', tmp_path / 'some.csv'
    run('--bars', bars, '--spec', spec, '--out', every)
    header, *rows = every.read_text().splitlines()
    names = sorted({row.split(',')[1] for row in rows})[::2]
    run('--bars', bars, '--spec', spec, '--out', some, '--symbols', ', '.join(names[::-1]))
    assert some.read_text().splitlines() == [header] + [
        row for row in rows if row.split(',')[1] in names
    ]
    with pytest.raises(DataError, match='no bars of NOBODY'):
        run('--bars', bars, '--out', some, '--symbols', 'NOBODY')
    with pytest.raises(ConfigError, match="--symbols 'A,,B': an empty name"):
        run('--bars', bars, '--out', some, '--symbols', 'A,,B')


def test_times_within_a_second_and_odd_symbols_stay_readable(tmp_path: Path, spec: Path) -> None:
    table = simulated_table(1, 2, SEED)
    odd = replace(
        table, symbols=('A "B",\u4e2d',), event_time_ns=np.array([1_700_000_000_123456789] * 2)
    )
    odd.event_time_ns[1] += 10**9 - 123456789
    path, out = tmp_path / 'odd.csv', tmp_path / 'out.csv'
    write_bars(path, odd)
    # Whatever the reader makes of such a name, its file must give it back.
    (name,) = load_bars(path)[0].symbols
    run('--bars', path, '--spec', spec, '--out', out, '--tz', 'UTC')
    with out.open(newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['event_time'] for row in rows] == [
        '2023-11-14T22:13:20.123456789+00:00', '2023-11-14T22:13:21+00:00',
    ]  # fmt: skip
    assert {row['symbol'] for row in rows} == {name}


def test_summary_counts_bars_and_names_columns_without_a_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spec: Path
) -> None:
    table = simulated_table(1, 40, SEED)
    values = table.values.copy()
    values[:, 4:] = np.nan
    path = tmp_path / 'bars.csv'
    write_bars(path, replace(table, values=values))
    (name,) = table.symbols
    extra = f'no date,{name},0,1,1,1,1,,\n{table.event_time_ns[0]},NEVER,1,,,,,,\n'
    path.write_text(path.read_text() + extra)
    run('--bars', path, '--spec', spec, '--out', tmp_path / 'o.csv')
    text = ' '.join(capsys.readouterr().out.split())
    valid = int((table.status == BarStatus.VALID).sum())
    assert f'42 rows read, {valid} valid, {41 - valid} suspended, 1 rejected (' in text
    assert f'spec {SPEC.id}' in text
    assert 'columns without any value: volume_ratio_5' in text
    assert text.endswith('symbols without a valid bar: NEVER')


def test_hfq_multiplies_the_prices_alone_by_a_factor_that_steps_on_ex_dates() -> None:
    table = simulated_table(2, 6, SEED)
    status = np.full((6, 2), BarStatus.VALID, np.uint8)
    table = replace(table, status=status, values=np.full((6, 6, 2), 10.0))
    # A split of 1 to 2 of the first symbol on the third day; a blip of the second on the fourth.
    factor = np.stack([[1, 1, 2, 2, 2, 2], [3, 3, 3, 3.0001, 3, 3]], axis=1)[:, None]
    factored = replace(table, channels=('adj_factor',), extra=factor)
    adjusted = features.to_hfq(factored)
    for price in adjusted.values[:, :4].transpose(1, 0, 2):
        np.testing.assert_array_equal(price, np.repeat([[10, 30], [20, 30]], [2, 4], axis=0))
    np.testing.assert_array_equal(adjusted.values[:, 4:], table.values[:, 4:])
    for wrong in (np.nan, 0.0, -1.0):
        broken = factor.copy()
        broken[3, 0, 1] = wrong
        status = np.full((6, 2), BarStatus.VALID, np.uint8)
        lacking = replace(factored, status=status, extra=broken)
        with pytest.raises(DataError, match=f'1 bars without .* {table.symbols[1]} at 20'):
            features.to_hfq(lacking)
        status[3, 1] = BarStatus.SUSPENDED
        features.to_hfq(lacking)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('{', 'spec.json: feature spec: not JSON'),
        ('{"features": []}', 'spec.json: feature spec: no features'),
        ('{"features": [{"kind": "rsi", "params": {"n": 0}}]}', r'features\[0\].*n = 0; expected'),
        ('{"features": [{"kind": "magic"}]}', "features\\[0\\].*'magic': unknown kind; expected"),
    ],
)
def test_bad_specs_are_named_with_their_file(
    tmp_path: Path, bars: Path, text: str, message: str
) -> None:
    path = tmp_path / 'spec.json'
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        run('--bars', bars, '--spec', path, '--out', tmp_path / 'o.csv')
    with pytest.raises(ConfigError, match=r'nowhere\.json: cannot be read .No such file'):
        run('--bars', bars, '--spec', tmp_path / 'nowhere.json', '--out', tmp_path / 'o.csv')
    assert not (tmp_path / 'o.csv').exists()


def test_wrong_paths_are_refused_and_leave_what_was_there(
    tmp_path: Path, bars: Path, spec: Path
) -> None:
    before = bars.read_bytes()
    for words, error, message in (
        ((), ConfigError, '--bars and --out are both needed'),
        (('--bars', bars, '--out', 'x.xlsx'), ConfigError, 'ends in .csv or .parquet'),
        (('--bars', bars, '--out', bars), ConfigError, 'would stand among the bars'),
        (('--bars', bars.parent, '--out', bars.parent / 'f.csv'), ConfigError, 'among the bars'),
        (('--bars', tmp_path / 'no', '--out', 'x.csv'), DataError, 'no such file or folder'),
        (('--bars', bars, '--out', tmp_path / 'no' / 'x.csv'), ConfigError, 'no folder'),
    ):
        with pytest.raises(error, match=message):
            run('--spec', spec, *words)
    folder = tmp_path / 'folder.csv'
    folder.mkdir()
    with pytest.raises(DataError, match=r'folder\.csv: cannot be written: Is a directory'):
        run('--bars', bars, '--spec', spec, '--out', folder)
    assert bars.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder.csv', 'in', 'spec.json']


def test_channels_that_the_spec_reads_come_with_the_bars(tmp_path: Path, bars: Path) -> None:
    spec, out = tmp_path / 'spec.json', tmp_path / 'out.csv'
    items = (FeatureItem('value', of='channel:turnover_rate'), FeatureItem('return'))
    spec.write_text(FeatureSpec(items).to_json())
    with pytest.raises(DataError, match='turnover_rate'):
        run('--bars', bars, '--spec', spec, '--out', out)
    header, *lines = bars.read_text().splitlines()
    rates = [str(row % 7) if row % 5 else 'many' for row in range(len(lines))]
    added = [f'{line},{rate}' for line, rate in zip(lines, rates, strict=True)]
    bars.write_text('\n'.join([f'{header},turnover_rate', *added]))
    run('--bars', bars, '--spec', spec, '--out', out)
    with out.open(newline='') as file:
        rows = list(csv.DictReader(file))
    for row, rate in zip(rows, rates, strict=True):
        expected = rate if row['status'] == 'VALID' and rate != 'many' else ''
        assert row['value_of_channel_turnover_rate'] == expected


def test_list_shows_every_kind_and_the_columns_of_a_spec(
    capsys: pytest.CaptureFixture[str], spec: Path
) -> None:
    run('--list')
    text = capsys.readouterr().out
    assert all(kind in text for kind in KINDS)
    run('--list', '--spec', spec)
    text = capsys.readouterr().out
    assert all(name in text for name in SPEC.names)
    assert SPEC.id in text


def test_the_example_spec_is_one_and_reads_bars_alone() -> None:
    path = Path(__file__).resolve().parents[3] / 'config' / 'features.example.json'
    spec = FeatureSpec.from_json(path.read_bytes())
    assert spec.channels == ()
    table = simulated_table(4, spec.warmup_bars + 30, SEED)
    state = FeatureState(spec, 4)
    last = state.batch(table.values, table.status, table.event_time_ns)[-20:]
    assert np.isfinite(last).any(axis=0).all()


def test_real_bars_stream_and_batch_alike(tmp_path: Path) -> None:
    folder = shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024'
    batch, stream = tmp_path / 'batch.csv', tmp_path / 'stream.csv'
    run('--bars', folder, '--out', batch)
    run('--bars', folder, '--out', stream, '--stream')
    assert batch.read_bytes() == stream.read_bytes()
    assert batch.read_text().count('\n') == 1 + 3 * 1212


@pytest.mark.parametrize('symbol', ['600519.SH', '002594.SZ'])
def test_real_hfq_prices_are_the_vendors_but_for_the_blips_of_its_factor(
    tmp_path: Path, symbol: str
) -> None:
    path = shared_data() / 'ashare_daily/tushare_factor_2023_2025' / f'{symbol}_techin.csv'
    spec, out = tmp_path / 'spec.json', tmp_path / 'out.csv'
    spec.write_text(FeatureSpec((FeatureItem('value', of='close'),)).to_json())
    run('--bars', path, '--spec', spec, '--out', out, '--adjust', 'hfq')
    with path.open(newline='') as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row['indiv_techin_trade_date'])
    theirs = np.array([float(row['indiv_techin_close_hfq']) for row in rows])
    with out.open(newline='') as file:
        mine = np.array([float(row['value_of_close']) for row in csv.DictReader(file)])
    raw = np.array([float(row['indiv_techin_close']) for row in rows])
    assert np.ptp(theirs / raw) > 0.5, 'a file without ex-dates shows less'
    assert np.abs(mine / theirs - 1).max() <= 3e-4


def test_hfq_without_factors_names_the_column(tmp_path: Path, bars: Path) -> None:
    out = tmp_path / 'out.csv'
    with pytest.raises(DataError, match="no column 'adj_factor'"):
        run('--bars', bars, '--out', out, '--adjust', 'hfq')
    assert not out.exists()
