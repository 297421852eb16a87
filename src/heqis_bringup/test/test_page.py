# SPDX-License-Identifier: Apache-2.0
"""The page of a whole running graph in a real browser: what it shows, how soon, and after kills.

One `heqis demo` over the three real series, as a person starts it, and one page that stays open.
The tests build on one another in the order of the file, as the hours of a page do.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from heqis_bringup.testing_demo import Run, heqis, running
from heqis_core.frame import Stage
from heqis_core.io.journal import Journal
from heqis_core.testing import shared_data, wait_until
from heqis_dashboard.testing_browser import Watched, browser, open_page, why_no_browser

pytestmark = [
    pytest.mark.graph,
    pytest.mark.timeout(200),
    pytest.mark.skipif(bool(why_no_browser()), reason=why_no_browser() or 'there is one'),
]

SYMBOLS = ('000001.SZ', '600519.SH', '601318.SH')
PACE = 4
"""Event times a second: the series last for a minute and a half."""
START_S = 60
PICTURE = os.environ.get('HEQIS_PICTURE', '')
"""Where the picture of the README goes; `make picture` sets it."""


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    data = shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024'
    folder = tmp_path_factory.mktemp('page')
    if PICTURE:  # no folder of a test run in the README
        folder = Path('run/picture')
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    trained = heqis(
        *('train', '--data', data, '--run', folder / 'training', '--out', folder / 'bundles'),
        *('--num_epochs', 3, '--json'),
    )
    assert trained.returncode == 0, trained.stderr
    bundle = Path(json.loads(trained.stdout.splitlines()[-1])['bundle']['path'])
    with running(data, bundle, folder, '--pace', PACE) as graph:
        yield graph


@pytest.fixture(scope='module')
def url(run: Run) -> str:
    """Return the address that the demo has printed."""

    def printed() -> str:
        lines = run.text().splitlines()
        return next((line.split()[1] for line in lines if line.startswith('page ')), '')

    wait_until(lambda: bool(printed()), START_S, 'the demo printed no address')
    wait_until(lambda: run.committed() >= 2, START_S, f'nothing was decided: {run.text()}')
    return printed()


@pytest.fixture(scope='module')
def page(url: str) -> Iterator[Watched]:
    with browser() as chromium:
        yield open_page(chromium, url)


def banner(page: Watched) -> str:
    return str(page.page.inner_text('#banner'))


def all_is_well(page: Watched) -> bool:
    return page.page.locator('#banner .warn, #banner .error').count() == 0


def beat(page: Watched) -> int:
    return int(page.page.text_content('#beat') or 0)


def n_candles(page: Watched) -> int:
    return int(page.chart('chart.data[0].x.length') or 0)


def test_every_real_series_is_drawn_with_its_candles_and_marks(page: Watched) -> None:
    for symbol in SYMBOLS:
        page.choose(symbol)
        wait_until(
            lambda symbol=symbol: page.chart('chart.data[0].name') == symbol, 10, f'no {symbol}'
        )
        # Warm-up bars too, which passed before anyone listened.
        wait_until(lambda: n_candles(page) >= 300, 10, 'candles of the past')
        assert page.page.locator('#chart .boxlayer path.box').count() >= 300
        prices = page.chart('chart.data[0]')
        assert all(np.greater_equal(prices['high'], prices['low']))
        assert prices['x'] == sorted(set(prices['x']))


def test_candles_are_those_of_the_file(page: Watched) -> None:
    import pandas as pd

    folder = shared_data() / 'ashare_daily' / 'tushare_raw_2020_2024'
    shown = page.chart('chart.data[0]')
    rows = pd.read_csv(folder / f'{shown["name"]}.csv', dtype={'trade_date': str})
    days = pd.to_datetime(rows['trade_date']).dt.strftime('%Y-%m-%d')
    closes = dict(zip(days, rows['close'], strict=True))
    assert [closes[day] for day in shown['x']] == shown['close']


def test_a_signal_is_on_the_page_within_a_second_of_its_release(page: Watched, run: Run) -> None:
    page.watch_marks()
    known = set(page.marks_seen())
    wait_until(lambda: len(set(page.marks_seen()) - known) >= 5, 60, 'five new marks')
    seen = {key: at for key, at in page.marks_seen().items() if key not in known}
    released = release_times_ms(run, page.chart('chart.data[0].name'))
    # The journal learns the time of its last commit with the next one.
    waits_ms = [at - released[key] for key, at in seen.items() if key in released]
    assert len(waits_ms) >= 4
    assert min(waits_ms) > -50  # the clock of the browser ticks in whole milliseconds
    assert np.median(waits_ms) < 1000
    row = page.page.inner_text('#signals tbody tr')
    assert any(symbol in row for symbol in SYMBOLS)
    assert any(action in row for action in ('BUY', 'SELL'))


def release_times_ms(run: Run, symbol: str) -> dict[str, float]:
    """Return when the journal had committed each signal of a symbol, by `BUY label`."""
    zone = ZoneInfo('Asia/Shanghai')
    found = {}
    with Journal.open(run.folder / 'journal.db', read_only=True) as journal:
        for row in journal.frames():
            place = row.symbols.index(symbol)
            if row.is_signal()[place] and row.stamps[Stage.COMMITTED]:
                day = datetime.fromtimestamp(row.event_time_ns / 1e9, zone).strftime('%Y-%m-%d')
                kind = 'BUY' if row.action[place] == 2 else 'SELL'
                found[f'{kind} {day}'] = row.stamps[Stage.COMMITTED] / 1e6
    return found


def test_pointing_at_a_mark_tells_score_reasons_and_bundle(page: Watched, run: Run) -> None:
    texts = [*page.chart('chart.data[2].text'), *page.chart('chart.data[3].text')]
    assert texts
    bundle = next(path.name for path in (run.folder / 'bundles').iterdir())
    for text in texts:
        assert 'score' in text
        assert 'reasons: ' in text
        assert bundle in text


def test_tables_name_every_node_and_stage(page: Watched) -> None:
    nodes = page.page.inner_text('#nodes')
    for name in (
        'gateway',
        'bridge',
        'risk_gate',
        'journal',
        'supervisor',
        'compute',
        'dashboard',
    ):
        assert name in nodes
    latency = page.page.inner_text('#latency')
    assert 'bar to signal' in latency
    assert all_is_well(page)
    if PICTURE:
        page.page.mouse.move(0, 0)
        page.page.screenshot(path=PICTURE, full_page=True)


def test_a_person_stops_every_signal_on_the_page_and_lets_them_out_again(
    page: Watched, run: Run
) -> None:
    press(page, '#kill-on', 'stop all signals', 'smoke')
    wait_until(lambda: 'every signal is refused (engaged by service' in banner(page), 10, 'it')
    assert ': smoke' in page.page.inner_text('#kill')
    wait_until(lambda: 'kill_switch' in marks_text(page), 30, 'refused signals are on the chart')
    press(page, '#kill-off', 'let signals out', 'no smoke')
    wait_until(lambda: all_is_well(page), 10, banner(page))
    with Journal.open(run.folder / 'journal.db', read_only=True) as journal:
        told = [event.text for event in journal.events() if event.kind == 'kill_switch']
    assert [text.partition(' by ')[0] for text in told] == ['engaged', 'cleared']


def press(page: Watched, button: str, confirm: str, reason: str) -> None:
    page.page.click(button)
    page.page.fill('#ask input', reason)
    page.page.click(f'#ask button >> text={confirm}')
    wait_until(lambda: page.page.locator('#ask').count() == 0, 10, 'it is done')


def marks_text(page: Watched) -> str:
    return ' '.join(page.chart('chart.data.slice(2).flatMap(t => t.text)'))


def test_a_killed_compute_process_shows_within_two_seconds(page: Watched, run: Run) -> None:
    run.kill('heqis_compute', 'compute')
    killed_s = time.monotonic()
    wait_until(lambda: 'compute' in banner(page), 10, 'the banner names the compute node')
    assert time.monotonic() - killed_s < 2.0
    wait_until(lambda: all_is_well(page), 40, f'it comes back: {banner(page)}')
    compute = page.page.locator('#nodes tr', has_text='onnxruntime, bundle').first.inner_text()
    assert compute.split()[4] == '1', compute  # restarts


def test_a_stopped_supervisor_shows_as_held_output(page: Watched, run: Run) -> None:
    supervisor = run.find('heqis_supervisor', 'supervisor')
    assert supervisor is not None
    supervisor.suspend()
    try:
        wait_until(lambda: 'output is held' in banner(page), 15, banner(page))
        assert 'supervisor is lost' in banner(page)
    finally:
        supervisor.resume()
    wait_until(lambda: all_is_well(page), 40, f'it goes on: {banner(page)}')


def test_nothing_came_from_elsewhere_and_the_console_is_silent(page: Watched) -> None:
    assert page.foreign == []
    assert page.complaints == []


def test_a_page_comes_back_with_all_it_had_after_its_node_was_killed(
    page: Watched, run: Run
) -> None:
    before = drawn(page)
    assert len(before) > 200
    assert any(marks for _, marks in before.values())
    beats = beat(page)
    run.kill('heqis_dashboard', 'dashboard')
    # Another service of the page begins to count anew.
    wait_until(lambda: beat(page) < beats, 60, 'it is connected again')
    wait_until(lambda: page.page.locator('#offline').count() == 0, 10, 'and says no other')
    wait_until(lambda: before.items() <= drawn(page, 290).items(), 20, 'all is there again')


def drawn(page: Watched, n: int = 250) -> dict[str, tuple[float, tuple[str, ...]]]:
    """Return the close and the marks of the last `n` candles by label, the newest ones left out.

    The newest may still wait for their marks.
    """
    candles = page.chart('chart.data[0]')
    marks = page.chart('chart.data.slice(2).flatMap(t => t.x.map(x => x + t.name))')
    rows = list(zip(candles['x'], candles['close'], strict=True))[-n:-10]
    return {day: (close, tuple(m for m in marks if m.startswith(day))) for day, close in rows}


def test_ctrl_c_ends_it_and_the_page_says_that_it_is_cut_off(page: Watched, run: Run) -> None:
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    report = run.report()
    assert report['reason'] == 'interrupted'
    assert report['page'].startswith('http://127.0.0.1:')
    wait_until(lambda: page.page.locator('#offline').count() == 1, 15, 'the page says so')
    assert n_candles(page) > 0  # old, and said to be, but not blank
