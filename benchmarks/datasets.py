# SPDX-License-Identifier: Apache-2.0
"""Data sets of a whole market: building a store of frames, its memory, gathering windows.

The floor of building is the feature pipeline whose frames are written to one file as they come;
the floor of gathering is numpy's fancy index into the same array, not mapped but in memory. Memory
is what the process holds above what it held with the bars alone, beside the size of the store.
The market is a random walk; each day some symbols are suspended.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import torch
from _harness import Row, main, paired_ratio, say

from heqis_core.bars import BAR_FIELDS, CLOSE, HIGH, LOW, VOLUME, BarStatus, BarTable
from heqis_core.features.spec import default_spec
from heqis_core.features.state import FeatureState
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_training.dataset import fingerprint, fit_scaler
from heqis_training.store import Frame, FrameStore, StoreKey, frames
from heqis_training.tensors import WindowTensors

WINDOW = 20
SUSPENDED = 0.005
"""Part of the symbols without a bar on a day."""
BATCHES = (128, 2048)
AIM_BUILD = 2.0
"""Most time of building a store, as a ratio to the pipeline and a plain file."""
AIM_GATHER = 1.0
"""Most time of gathering a batch, as a ratio to numpy's fancy index."""
AIM_SCALER_MB, AIM_STORE_MB = 500.0, 300.0
"""Most memory of a whole market: four columns at a time and buffers; buffers alone."""


def market(n_times: int, n_symbols: int) -> BarTable:
    """Return a random market, made day by day in its final place."""
    rng = np.random.default_rng(1)
    values = np.empty((n_times, len(BAR_FIELDS), n_symbols))
    status = np.empty((n_times, n_symbols), np.uint8)
    close = np.full(n_symbols, 50.0)
    for t in range(n_times):
        close = close * np.exp(rng.normal(0, 0.02, n_symbols))
        values[t] = close
        values[t, HIGH] *= 1 + rng.uniform(0, 0.02, n_symbols)
        values[t, LOW] *= 1 - rng.uniform(0, 0.02, n_symbols)
        values[t, VOLUME] = rng.integers(1, 10**7, n_symbols)
        away = rng.random(n_symbols) < SUSPENDED
        values[t][:, away] = np.nan
        status[t] = np.where(away, BarStatus.SUSPENDED, BarStatus.VALID)
        close = np.where(away, close, values[t, CLOSE])
    day_ns = 86_400_000_000_000
    times_ns = np.arange(n_times) * day_ns + 1_420_095_600_000_000_000
    return BarTable(tuple(f'{s:06d}.SH' for s in range(n_symbols)), times_ns, values, status)


def seconds(function: Callable[[], object]) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def write_plainly(stream: Iterable[Frame], path: Path) -> None:
    """Write the features of every frame to one file, durably, and remove it."""
    with path.open('wb') as file:
        for features, _ in stream:
            file.write(features.data)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


@contextmanager
def peak_memory(found: list[float]) -> Iterator[None]:
    """Append how many bytes more the process held at most than at the beginning."""
    process, done = psutil.Process(), threading.Event()
    before = highest = process.memory_info().rss

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.005):
            highest = max(highest, process.memory_info().rss)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        found.append(float(highest - before))


def build_rows(table: BarTable, folder: Path, rounds: int) -> tuple[list[Row], FrameStore]:
    """Measure the scaler, and the store beside the pipeline with a plain file."""
    spec, case = default_spec(), f'{len(table.symbols)} symbols x {len(table)} bars'
    bars = int((table.status == BarStatus.VALID).sum())
    FeatureState(spec, len(table.symbols))  # compiles, or reads what was compiled
    memory: list[float] = []
    fitted: list[Scaler] = []
    with peak_memory(memory):
        fit_s = seconds(lambda: fitted.append(fit_scaler(table, spec, len(table), folder)))
    rows = [
        Row(f'scaler, {case}', 'rate', 'bars/s', bars / fit_s),
        Row(f'scaler, {case}', 'peak memory', 'MB', memory[0] / 1e6).aiming(AIM_SCALER_MB),
    ]
    say('store')
    key = StoreKey(fingerprint(table), spec.id + fitted[0].id, spec.names, (1,))

    def stream() -> Iterator[Frame]:
        pipeline = FeaturePipeline(table.symbols, spec, fitted[0], None, 1, 1, 1)
        return frames(pipeline, table)

    built: list[FrameStore] = []
    ours, floor = [], []
    for _ in range(rounds):
        built.clear()
        floor.append(seconds(lambda: write_plainly(stream(), folder / 'plain')))
        with peak_memory(memory):
            ours.append(
                seconds(lambda: built.append(FrameStore.build(table, stream(), key, folder)))
            )
    time_row = Row(
        f'store in a folder, {case}',
        'time',
        's',
        float(np.median(ours)),
        float(np.median(floor)),
        ratio=paired_ratio(ours, floor),
    )
    size = sum(path.stat().st_size for path in folder.glob('*.npy'))
    n_rows = len(built[0])
    rows += [
        time_row.aiming(AIM_BUILD),
        replace(
            time_row, figure='rate', unit='rows/s',
            value=n_rows / time_row.value, floor=n_rows / (time_row.floor or 1), ratio=None,
        ),
        Row(f'store in a folder, {case}', 'size', 'MB', size / 1e6),
        Row(f'store in a folder, {case}', 'peak memory', 'MB', max(memory[1:]) / 1e6).aiming(
            AIM_STORE_MB
        ),
    ]  # fmt: skip
    return rows, built[0]


def gather_rows(store: FrameStore, rounds: int) -> list[Row]:
    """Measure finding all windows, and gathering batches of them."""
    found: list[WindowTensors] = []
    index_s = seconds(
        lambda: found.append(WindowTensors(store, store.samples(WINDOW, 2 * WINDOW)))
    )
    samples = store.samples(WINDOW, 2 * WINDOW)
    case = f'{len(samples)} windows of {WINDOW} x {store.features.shape[1]}'
    rows = [Row(f'finding {case}', 'rate', 'windows/s', len(samples) / index_s)]
    bare = np.array(store.features)  # reads the mapped file once, so that neither waits for it
    offsets = np.arange(-WINDOW + 1, 1)
    tensors = found[0]
    for batch in BATCHES:
        ours, floor = [], []
        for _ in range(rounds):
            index = torch.randint(len(samples), (batch,))
            end = samples.end[index.numpy()]
            floor.append(seconds(lambda: bare[end[:, None] + offsets]))  # noqa: B023
            ours.append(seconds(lambda: tensors.rows(index, WINDOW)))  # noqa: B023
        rate = [batch / float(np.median(times)) for times in (ours, floor)]
        row = Row(
            f'gathering {batch} of {case}',
            'p50',
            'us',
            float(np.median(ours)) * 1e6,
            float(np.median(floor)) * 1e6,
            ratio=paired_ratio(ours, floor),
        )
        rows += [
            row.aiming(AIM_GATHER),
            replace(
                row, figure='rate', unit='windows/s', value=rate[0], floor=rate[1], ratio=None
            ),
        ]
    return rows


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument('--symbols', type=int, default=1000, help='default %(default)s')
    parser.add_argument('--rows', type=int, default=1000, help='event times, default %(default)s')
    parser.add_argument(
        '--whole-market', action='store_true', help='5400 symbols x 2430 days: 4 GB of disk'
    )
    parser.add_argument('--folder', type=Path, help='where the store goes for the time being')


def measure(args: argparse.Namespace) -> list[Row]:
    """Return every figure."""
    torch.set_num_threads(1)
    n_symbols, n_times = (5400, 2430) if args.whole_market else (args.symbols, args.rows)
    say(f'market of {n_symbols} symbols x {n_times} event times')
    table = market(n_times, n_symbols)
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=args.folder, ignore_cleanup_errors=True) as name:
        say('scaler')
        rows, store = build_rows(table, Path(name), 1 if args.quick or args.whole_market else 3)
        say('windows')
        rows += gather_rows(store, 30 if args.quick else 200)
    return rows


if __name__ == '__main__':
    raise SystemExit(
        main('datasets', 'Stores of frames: building, memory, windows.', measure, options)
    )
