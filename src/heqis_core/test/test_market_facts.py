# SPDX-License-Identifier: Apache-2.0
"""A bar at its price limit is told as a fact, from the limits of the source, to the decision."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.bars import BarBlock, BarStatus, BarTable
from heqis_core.batch import decide_all
from heqis_core.bundle import Bundle
from heqis_core.decision import Action, Reason
from heqis_core.errors import WireError
from heqis_core.io.ort_engine import open_engine
from heqis_core.market import Status, from_ticks, listings, price_limits, to_ticks
from heqis_core.market_facts import LIMIT_CHANNELS, MarketFact, limit_places, market_facts
from heqis_core.source import SourceConfig, TableSource, open_source
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import write_test_bundle
from heqis_core.testing_link import make_frame
from heqis_core.wire import Decoder, Encoder

UP, DOWN = MarketFact.AT_LIMIT_UP, MarketFact.AT_LIMIT_DOWN
NAN = float('nan')


def facts_of(close: list[float], up: list[float], down: list[float]) -> list[int]:
    values = np.full((6, len(close)), np.nan)
    values[3] = close
    status = np.where(np.isfinite(close), BarStatus.VALID, BarStatus.SUSPENDED).astype(np.uint8)
    symbols = tuple(f's{i}' for i in range(len(close)))
    extra = np.array([down, up])
    block = BarBlock(1, symbols, values, status, channels=('down_limit', 'up_limit'), extra=extra)
    places = limit_places(block.channels)
    assert places == (1, 0)
    return market_facts(block, places).tolist()


@pytest.mark.parametrize(
    ('symbol', 'day', 'status', 'pre_close', 'up', 'down'),
    [
        ('600000.SH', date(2024, 6, 28), Status.NORMAL, 0.70, 0.77, 0.63),
        ('600519.SH', date(1996, 12, 16), Status.NORMAL, 10.05, 11.06, 9.05),
        ('600000.SH', date(2026, 7, 3), Status.ST, 3.00, 3.15, 2.85),
        ('600000.SH', date(2026, 7, 6), Status.ST, 3.00, 3.30, 2.70),
        ('300750.SZ', date(2020, 8, 21), Status.NORMAL, 200.00, 220.00, 180.00),
        ('300750.SZ', date(2020, 8, 24), Status.NORMAL, 200.00, 240.00, 160.00),
        ('688981.SH', date(2024, 6, 28), Status.NORMAL, 46.05, 55.26, 36.84),
        ('830799.BJ', date(2021, 11, 15), Status.NORMAL, 17.09, 22.21, 11.97),
    ],
)
def test_the_limits_of_the_exchanges_on_their_days(
    symbol: str, day: date, status: Status, pre_close: float, up: float, down: float
) -> None:
    listed = listings([symbol])
    low, high = price_limits(
        to_ticks([pre_close]), day, listed.exchange, listed.board, int(status)
    )
    assert (float(from_ticks(high)[0]), float(from_ticks(low)[0])) == (up, down)
    closes = [up, round(up - 0.01, 2), pre_close, round(down + 0.01, 2), down]
    assert facts_of(closes, [up] * 5, [down] * 5) == [UP, 0, 0, 0, DOWN]


def test_without_a_limit_or_a_bar_or_within_another_adjustment_nothing_is_said() -> None:
    # The listing days without limit: stk_limit has 99999.99 and 0, 100000, or 999999.999 and 0.01.
    assert (
        facts_of([99999.99, 100000, 0.01], [99999.99, 100000, 999999.999], [0, 0, 0.01]) == [0] * 3
    )
    assert facts_of([NAN, 11.0, 11.0], [11.0, NAN, 11.0], [9.0, 9.0, NAN]) == [0, 0, 0]
    assert facts_of([55.0, 1.0], [11.0, 11.0], [9.0, 9.0]) == [0, 0], 'adjusted, the limits raw'


def test_without_both_channels_nothing_is_known() -> None:
    assert limit_places(('turnover_rate', 'up_limit')) is None
    assert limit_places(()) is None
    assert limit_places(('up_limit', 'x', 'down_limit')) == (0, 2)


@given(st.integers(2, 10**6), st.integers(0, 3))
def test_a_close_that_was_computed_is_at_the_limit_that_was_written(ticks: int, off: int) -> None:
    limit, low = ticks / 100, (ticks - 1) / 200
    close = sum([ticks / 1000] * 10) - off / 100
    assert facts_of([close], [limit], [low])[0] & UP == (UP if off == 0 else 0)


# --- on the way ---


@pytest.fixture(scope='module')
def bars() -> BarTable:
    return simulated_table(4, 120, seed=2)


@pytest.fixture(scope='module')
def bundle(bars: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp('bundles')
    return Bundle.load(write_test_bundle(folder, trained_until_ns=int(bars.event_time_ns[69])))


def with_limits(bars: BarTable) -> BarTable:
    """Return bars with limits: the first symbol ends at the upper, the second at the lower."""
    close = bars.values[:, 3]
    up, down = np.rint(close * 110) / 100, np.rint(close * 90) / 100
    up[:, 0], down[:, 1] = close[:, 0], close[:, 1]
    return replace(bars, channels=LIMIT_CHANNELS, extra=np.stack([up, down], axis=1))


def test_the_fact_joins_the_reasons_and_changes_nothing_else(bundle, bars) -> None:
    plain = list(decide_all(bundle, TableSource(bars), open_engine))
    told = list(decide_all(bundle, TableSource(with_limits(bars)), open_engine))
    bits = np.uint32(Reason.AT_LIMIT_UP | Reason.AT_LIMIT_DOWN)
    seen = 0
    for one, other in zip(plain, told, strict=True):
        assert one.action.tobytes() == other.action.tobytes()
        assert one.score.tobytes() == other.score.tobytes()
        np.testing.assert_array_equal(other.reasons & ~bits, one.reasons)
        judged = one.action != Action.NONE
        expected = np.array([Reason.AT_LIMIT_UP, Reason.AT_LIMIT_DOWN, 0, 0], np.uint32)
        np.testing.assert_array_equal(other.reasons & bits, np.where(judged, expected, 0))
        seen += int(judged[:2].sum())
    assert seen > 50


def test_a_file_brings_its_limits_along(tmp_path, bars) -> None:
    rows = ['date,symbol,open,high,low,close,volume,up_limit,down_limit']
    rows += [f'2024-06-2{d},600519.SH,10,11,10,11,100,11.00,9.00' for d in (4, 5, 6)]
    path = tmp_path / 'bars.csv'
    path.write_text('\n'.join(rows))
    source = open_source(SourceConfig(kind='file', path=str(path)))
    source.open(None)
    assert source.channels == LIMIT_CHANNELS
    block = source.poll(1.0)
    assert block is not None
    assert market_facts(block, (0, 1)).tolist() == [UP]


def test_the_tensor_crosses_the_link_and_one_of_another_type_is_refused() -> None:
    frame = make_frame(3)
    frame.tensors['market'] = np.array([0, 1, 2], np.uint8)
    found = Decoder().frame(bytes(Encoder().frame(frame)))
    assert found.tensors['market'].tolist() == [0, 1, 2]
    frame.tensors['market'] = np.zeros(3, np.float32)
    with pytest.raises(WireError, match="tensor 'market': float32"):
        Encoder().frame(frame)
