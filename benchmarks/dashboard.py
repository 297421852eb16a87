# SPDX-License-Identifier: Apache-2.0
"""What the page costs, how soon it shows a signal, and what it does to the graph.

Needs Chromium and playwright for the rows of the browser; without them these rows are left out.
Floors, each in the same run: for a mark, the arrival of the same push at a client that draws
nothing; for the node's processor time, a bare rclpy reader of the same topics; for drawing,
Plotly alone with the same figure; for the graph, the graph without the page.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import psutil
import rclpy
from _harness import Row, main, say
from _page import (
    STREAM,
    Speaker,
    bare_reader_command,
    cpu_percent,
    decide,
    page_command,
    process_of,
)

from heqis_core.simulator import MarketSimulator
from heqis_core.testing import free_domain_id, free_port, wait_until
from heqis_dashboard.feed import Feed
from heqis_dashboard.testing_browser import browser, open_page, why_no_browser
from heqis_dashboard.testing_client import DashClient

SYMBOLS = 8
PAGES = 10
HOUR_FRAMES = 50 * 3600
ZONE = ZoneInfo('Asia/Shanghai')
MB = 1e6
MINUTE_NS = 60_000_000_000


class Clients:
    """Pages without a browser in a process of their own, at low priority.

    Their readers would sit at other machines.
    """

    def __init__(self, url: str, n: int) -> None:
        self._parent, child = multiprocessing.Pipe()
        self._process = multiprocessing.get_context('spawn').Process(
            target=_client_process, args=(url, n, child), daemon=True
        )
        self._process.start()
        assert self._parent.recv() == 'connected'

    def arrivals_ms(self) -> dict[str, float]:
        """End the pages; return when each label with a mark was at the first of them."""
        self._parent.send('end')
        found: dict[str, float] = self._parent.recv()
        self._process.join(10)
        return found


def _client_process(url: str, n: int, pipe: Any) -> None:
    os.nice(10)
    asyncio.run(_be_clients(url, n, pipe))


async def _be_clients(url: str, n: int, pipe: Any) -> None:
    clients = [DashClient(url) for _ in range(n)]
    for client in clients:
        await client.connect()
    tasks = [asyncio.create_task(client.run()) for client in clients]
    await clients[0].until(lambda: clients[0].n_pushes > 1, 20)
    pipe.send('connected')
    await asyncio.to_thread(pipe.recv)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    pipe.send(_first_arrivals(clients[0]))


def _first_arrivals(client: DashClient) -> dict[str, float]:
    found: dict[str, float] = {}
    for push in client.pushes:
        figure = push.props.get(('chart', 'figure')) or {}
        for operation in figure.get('operations', ()):
            for label in _marked(operation):
                found.setdefault(label, push.time_ns / 1e6)
    return found


def _marked(operation: dict[str, Any]) -> list[str]:
    """Return the labels of the marks that an operation of a Patch brings."""
    value, location = operation['params']['value'], operation['location']
    if location == ['data']:  # all of it anew
        return [label for trace in value[2:] for label in trace['x']]
    return list(value) if location[1] >= 2 and location[2] == 'x' else []


@contextmanager
def page(folder: Path, **parameters: Any) -> Iterator[tuple[psutil.Process, str]]:
    """Run the page's process; yield it and its address once it listens."""
    port = free_port()
    command = page_command(port, **parameters)
    with process_of(command, folder / 'page.log') as process:
        wait_until(lambda: _listens(process, port), 60, (folder / 'page.log').read_text())
        yield process, f'http://127.0.0.1:{port}'


def _listens(process: psutil.Process, port: int) -> bool:
    return any(c.laddr.port == port and c.status == 'LISTEN' for c in process.net_connections())


# --- time from release to mark ---


def release_to_mark(folder: Path, rate: float, n: int) -> list[Row]:
    """Measure in a real browser, beside the arrival of the same push at a bare client."""
    with page(folder) as (_, url), speaking() as speaker, browser() as chromium:
        wait_until(lambda: speaker.readers() > 0, 20, 'the page does not listen')
        speaker.speak(2.0, rate)
        watched = open_page(chromium, url)
        speak_until(speaker, lambda: bool(watched.chart('chart.data.length')), rate)
        clients = Clients(url, 1)
        watched.watch_marks()
        known = set(watched.marks_seen())
        speaker.speak(n / rate, rate)
        speaker.speak(2.0, 0)
        seen = {
            key.split(' ', 1)[1]: at
            for key, at in watched.marks_seen().items()
            if key not in known
        }
        arrived = clients.arrivals_ms()
    released = {
        datetime.fromtimestamp(ns / 1e9, ZONE).strftime('%Y-%m-%d'): at
        for ns, at in speaker.released_ms.items()
    }
    drawn_ms = [at - released[label] for label, at in seen.items() if label in arrived]
    arrived_ms = [arrived[label] - released[label] for label in seen if label in arrived]
    case = f'{rate:g} frames/s, {len(drawn_ms)} marks'
    return [
        row
        for name, q in (('p50', 50), ('p99', 99))
        for row in [_against(case, f'release to mark {name}', 'ms', drawn_ms, arrived_ms, q)]
    ]


def _against(
    case: str, figure: str, unit: str, ours: list[float], floor: list[float], q: float
) -> Row:
    value, least = float(np.percentile(ours, q)), float(np.percentile(floor, q))
    return Row(case, figure, unit, value, least, None, value / least)


def speak_until(speaker: Speaker, condition: Callable[[], bool], rate: float) -> None:
    """Speak on until something holds."""
    deadline_s = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline_s:
            raise RuntimeError('the browser shows nothing')
        speaker.speak(0.2, rate)


@contextmanager
def speaking() -> Iterator[Speaker]:
    """Yield a graph that speaks."""
    speaker = Speaker(SYMBOLS)
    try:
        yield speaker
    finally:
        speaker.close()


# --- processor and memory of the node ---


def processor(folder: Path, duration_s: float) -> list[Row]:
    """Measure the node's part of a core: idle, at 50 frames/s, with pages."""
    rows = []
    bare_reader = process_of(bare_reader_command(), folder / 'bare.log')
    with page(folder) as (process, url), speaking() as speaker, bare_reader as bare:
        wait_until(lambda: speaker.readers() >= 2, 20, 'both listen')
        speaker.speak(2.0, 0)
        for n in (0, 1, PAGES):
            clients = Clients(url, n) if n else None
            for rate in (0, 50):
                ours, floor = _both(process, bare, speaker, duration_s, rate)
                case = f'{rate} frames/s, {n} open pages'
                rows.append(Row(case, 'processor', '% of a core', ours, floor, None, ours / floor))
            if clients is not None:
                clients.arrivals_ms()
        ours, floor = (p.memory_info().rss / MB for p in (process, bare))
        rows.append(Row('after these', 'resident memory', 'MB', ours, floor, None, ours / floor))
    return rows


def _both(
    process: psutil.Process, bare: psutil.Process, speaker: Speaker, duration_s: float, rate: float
) -> tuple[float, float]:
    found: dict[str, float] = {}

    def wait(duration: float) -> None:
        found['bare'] = cpu_percent(bare, duration, lambda d: speaker.speak(d, rate))

    return cpu_percent(process, duration_s, wait), max(found['bare'], 0.1)


def memory_of_an_hour(n_frames: int, symbols: int) -> list[Row]:
    """Measure what a feed holds after an hour at 50 frames/s, in a process of its own."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        grown, held = pool.apply(_feed_frames, (n_frames, symbols))
    case = f'{n_frames:,} frames of {symbols} symbols'
    return [Row(case, 'feed: resident memory', 'MB', grown, held, None, grown / held)]


def _feed_frames(n_frames: int, symbols: int) -> tuple[float, float]:
    feed = Feed(5000, int(128 * MB))
    market = MarketSimulator(symbols, 7)
    process = psutil.Process()
    before = process.memory_info().rss
    for seq in range(n_frames):
        # Minutes: an hour's worth of days at 50 a second would be five centuries.
        block = replace(market.next_block(), event_time_ns=seq * MINUTE_NS)
        feed.add_bars(STREAM, seq, block)
        feed.add_decisions(decide(block, seq))
    return (process.memory_info().rss - before) / MB, feed.n_bytes / MB


# --- drawing ---

_DRAW = """
async ([figure, n]) => {
  const times = [];
  for (let i = 0; i < n; i++) {
    const place = document.createElement('div');
    place.style.height = '460px';
    document.body.appendChild(place);
    const copy = structuredClone(figure);
    const start = performance.now();
    await window.Plotly.newPlot(place, copy.data, copy.layout);
    times.push(performance.now() - start);
    window.Plotly.purge(place);
    place.remove();
  }
  return times;
}
"""
_CHOOSE = """
async (name) => {
  const chart = document.querySelector('#chart .js-plotly-plot');
  return new Promise((resolve) => {
    const start = performance.now();
    chart.on('plotly_afterplot', () => {
      if (chart.data[0].name === name) resolve(performance.now() - start);
    });
    window.dash_clientside.set_props('symbol', {value: name + '@bench'});
  });
}
"""


def drawing(folder: Path, candles: int, rounds: int) -> list[Row]:
    """Measure a change of symbol until its candles are drawn, beside Plotly alone."""
    parameters = {'candles': candles, 'history': candles}
    with page(folder, **parameters) as (_, url), speaking() as speaker, browser() as chromium:
        wait_until(lambda: speaker.readers() > 0, 20, 'the page does not listen')
        speaker.speak(candles / 400, 400)
        for _ in range(3):  # those that best effort lost: the newest count
            speaker.speak(0.5, 400)
        watched = open_page(chromium, url)
        wait_until(lambda: (watched.chart('chart.data[0].x.length') or 0) > 10, 20, 'no candles')
        figure = watched.page.evaluate(
            "() => { const c = document.querySelector('#chart .js-plotly-plot');"
            ' return {data: c.data, layout: {...c.layout, width: undefined}}; }'
        )
        n = len(figure['data'][0]['x'])
        bare_ms = watched.page.evaluate(_DRAW, [figure, rounds])
        ours_ms = []
        for turn in range(rounds):
            name = speaker.symbols[1 + turn % 2]
            ours_ms.append(watched.page.evaluate(_CHOOSE, name))
    return [
        Row(
            f'{n:,} candles',
            f'change of symbol to drawn {name}',
            'ms',
            float(np.percentile(ours_ms, q)),
            float(np.percentile(bare_ms, q)),
            None,
            float(np.percentile(ours_ms, q) / np.percentile(bare_ms, q)),
        )
        for name, q in (('p50', 50), ('p99', 99))
    ]


# --- what the pages do to the graph ---


def graph(folder: Path, rounds: int, frames: int) -> list[Row]:
    """Measure a whole real graph without page, with its node, and with ten pages, by turns."""
    bundle = _train(folder)
    cases: dict[str, list[dict[str, Any]]] = {'without': [], 'node': [], 'pages': []}
    for turn in range(rounds):
        for case, reports in cases.items():
            say(f'graph, round {turn + 1} of {rounds}: {case}')
            reports.append(_run_graph(folder / f'{case}{turn}', bundle, case, frames))
    rows = []
    for case, label in (('node', 'page served, none open'), ('pages', f'{PAGES} pages open')):
        for name in ('p50', 'p99'):
            ours, bare = (
                [r['latency_us']['ingest_to_signal'][name] / 1000 for r in cases[c]]
                for c in (case, 'without')
            )
            ratio = float(np.median(np.asarray(ours) / np.asarray(bare)))
            rows.append(
                Row(
                    f'real graph, 50 frames/s, {label}',
                    f'bar to signal {name}',
                    'ms',
                    float(np.median(ours)),
                    float(np.median(bare)),
                    None,
                    ratio,
                )
            )
    return rows


def _train(folder: Path) -> Path:
    command = [sys.executable, '-m', 'heqis_bringup.cli', 'train', '--json', '--num_epochs', '2']
    command += ['--simulate', '600', '--symbols', str(SYMBOLS)]
    command += ['--run', str(folder / 'training'), '--out', str(folder / 'bundles')]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout.splitlines()[-1])['bundle']['path'])


def _run_graph(folder: Path, bundle: Path, case: str, frames: int) -> dict[str, Any]:
    folder.mkdir()
    port, report = free_port(), folder / 'report.json'
    command = [sys.executable, '-m', 'heqis_bringup.cli', 'demo', '--bundle', bundle]
    command += ['--symbols', SYMBOLS, '--limit', 600 + frames, '--run-dir', folder]
    command += ['--report', report, '--duration', 120, f'dashboard_port:={port}']
    command += ['dashboard:=false'] if case == 'without' else []
    environment = {key: value for key, value in os.environ.items() if key != 'ROS_DOMAIN_ID'}
    with (folder / 'demo.log').open('w') as log:
        demo = subprocess.Popen(list(map(str, command)), stdout=log, stderr=log, env=environment)
    clients = None
    try:
        if case == 'pages':
            url = f'http://127.0.0.1:{port}'
            wait_until(lambda: _answers(port), 60, 'the page is not there')
            clients = Clients(url, PAGES)
        if demo.wait(150):
            raise RuntimeError((folder / 'demo.log').read_text()[-2000:])
    finally:
        demo.kill()
        if clients is not None:
            clients.arrivals_ms()
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def _answers(port: int) -> bool:
    import urllib.error
    import urllib.request

    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        return bool(opener.open(f'http://127.0.0.1:{port}/_dash-layout', timeout=5).status == 200)
    except (urllib.error.URLError, OSError):
        return False


def measure(args: argparse.Namespace) -> list[Row]:
    """Measure everything, or what `--only` names."""
    quick = args.quick
    os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
    rclpy.init()
    missing = why_no_browser()
    if missing:
        say(f'rows of the browser are left out: {missing}')
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], list[Row]]] = {
            'processor': lambda: processor(folder, 4 if quick else 10),
            'memory': lambda: [
                *memory_of_an_hour(HOUR_FRAMES // (10 if quick else 1), SYMBOLS),
                *memory_of_an_hour(HOUR_FRAMES // (100 if quick else 10), 300),
            ],
            'mark': lambda: [
                *release_to_mark(folder, 2, 20 if quick else 60),
                *release_to_mark(folder, 50, 200 if quick else 1000),
            ],
            'drawing': lambda: [
                *drawing(folder, 500, 5 if quick else 12),
                *drawing(folder, 5000, 5 if quick else 12),
            ],
            'graph': lambda: graph(folder, 1 if quick else 2, 300 if quick else 600),
        }
        rows: list[Row] = []
        for part, run in parts.items():
            if args.only in (None, part) and not (missing and part in ('mark', 'drawing')):
                say(part)
                rows += run()
    rclpy.shutdown()
    return rows


def options(parser: argparse.ArgumentParser) -> None:
    """Add what this benchmark alone understands."""
    names = ('processor', 'memory', 'mark', 'drawing', 'graph')
    parser.add_argument('--only', choices=names, help='measure this part alone')


if __name__ == '__main__':
    assert threading.current_thread() is threading.main_thread()
    sys.exit(main('dashboard', __doc__.splitlines()[0], measure, options))
