# SPDX-License-Identifier: Apache-2.0
"""An epoch of Multi-GAN beside the bare calls of its training graph, and samples per second.

All pairs of a GRU (window 5), an LSTM (10) and a Transformer (15) with discriminators of the same
windows. The value is a whole epoch: gathering windows, every forward and backward, clipping,
optimisers, validation. The floor calls the same networks pair by pair and does nothing else: each
generator once, each discriminator on the real sequence, on each fake, and on each fake again for
the generator's term, always forward and backward. Its inputs and the gradients that it starts from
are made before the clock runs. With a GPU, a set of a whole market's size is trained there too.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from _harness import Row, main, paired_ratio, say
from torch import Tensor

from heqis_core.bars import BAR_FIELDS, BarStatus, BarTable
from heqis_training.adversarial import Next, frozen, sequence
from heqis_training.batches import Batch, Part, Scale, one_hot
from heqis_training.dataset import fingerprint, flat_band
from heqis_training.device import open_device
from heqis_training.loop import deterministic
from heqis_training.multigan import MultiGan
from heqis_training.settings import (
    AdversarialSettings,
    DiscriminatorSettings,
    FitSettings,
    GeneratorSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
    TransformerSettings,
)
from heqis_training.store import FrameStore, StoreKey

AIM = 0.9
"""Most time of an epoch, as a ratio to the bare calls."""
WINDOWS = (5, 10, 15)
N_FEATURES, N_REFERENCE_FEATURES = 18, 22
VALIDATION = 0.15 / 0.85
"""Validation windows for each training window, as the default split has them."""
WHOLE_MARKET = 5400, 1000
"""Symbols and rows of the set for a GPU."""
GPU_BATCH, GPU_STEPS = 4096, 50
"""Windows of a step there, and steps of an epoch."""


class Case(NamedTuple):
    """What is trained."""

    name: str
    settings: TrainingSettings
    n_features: int


class Data(NamedTuple):
    """Windows that train and that validate."""

    training: Part
    validation: Part


def case_of(large: bool, batch: int, max_windows: int = 2**31 - 1) -> Case:
    """Return networks of the default sizes, or of those of the reference."""
    five, ten, fifteen = WINDOWS
    generators: tuple[GeneratorSettings, ...] = (
        GruSettings(window=five),
        LstmSettings(window=ten),
        TransformerSettings(window=fifteen),
    )
    against = DiscriminatorSettings()
    if large:
        generators = (
            GruSettings(window=five, hidden=768),
            LstmSettings(window=ten, hidden=512, layers=2, bidirectional=True),
            TransformerSettings(window=fifteen, width=512, heads=8, feedforward=2048),
        )
        against = DiscriminatorSettings(hidden=192, embedding=8)
    settings = TrainingSettings(
        generators=generators,
        discriminators=tuple(msgspec.structs.replace(against, window=w) for w in WINDOWS),
        adversarial=AdversarialSettings(
            identity_epochs=0, weights='uniform', distil_every=0, cross_every=0
        ),
        fit=FitSettings(batch=batch, max_windows=max_windows),
    )
    name = f'3 x 3 pairs, {"reference" if large else "default"} sizes, batch {batch}'
    return Case(name, settings, N_REFERENCE_FEATURES if large else N_FEATURES)


def random_data(case: Case, n_symbols: int, n_rows: int, device: str) -> Data:
    """Return windows over random bars and features, the last ones for validation."""
    rng = np.random.default_rng(1)
    close = np.exp(np.cumsum(rng.normal(0, 0.02, (n_rows, n_symbols)), axis=0))
    table = BarTable(
        tuple(f'S{s}' for s in range(n_symbols)),
        np.arange(n_rows, dtype=np.int64),
        np.repeat(close[:, None], len(BAR_FIELDS), axis=1),
        np.full((n_rows, n_symbols), BarStatus.VALID, np.uint8),
    )
    names = tuple(f'f{k}' for k in range(case.n_features))
    status = np.full(n_symbols, BarStatus.VALID, np.uint8)
    frames = (
        (rng.standard_normal((n_symbols, case.n_features), np.float32), status)
        for _ in range(n_rows)
    )
    store = FrameStore.build(table, frames, StoreKey(fingerprint(table), '', names, (1,)))
    longest = max(WINDOWS)
    samples = store.samples(longest, 2 * longest)
    samples = samples.where(samples.labelled)
    cut = round(len(samples) / (1 + VALIDATION))
    place = np.arange(len(samples))
    parts = samples.where(place < cut), samples.where(place >= cut)
    scale = Scale.of(parts[0], flat_band(parts[0].log_return[:, 0]))
    made = [Part(store, part, scale, longest, longest, device) for part in parts]
    return Data(made[0], made[1])


# --- the floor -----------------------------------------------------------------------------------


class Call(NamedTuple):
    """One forward and backward: what is called, and the gradient that goes back."""

    forward: Callable[[], Tensor | tuple[Tensor, ...]]
    gradients: tuple[Tensor, ...]


def bare_epoch(game: MultiGan, training: Part) -> float:
    """Return the seconds of every bare forward and backward call of one epoch, pair by pair."""
    total_s = 0.0
    networks = [player.network for player in (*game.generators, *game.discriminators)]
    for network in networks:
        network.train()
    for batch in training.shuffled(game.settings.fit):
        fakes = random_fakes(game, batch)
        total_s += timed([*generator_calls(game, batch), *judging_calls(game, batch, fakes)])
        against = [player.network for player in game.discriminators]
        for fake in fakes:
            fake.value.requires_grad_()
            fake.classes.requires_grad_()
        with frozen(against):
            total_s += timed(deceiving_calls(game, batch, fakes))
        for network in networks:
            network.zero_grad(set_to_none=True)
    return total_s


def timed(calls: list[Call]) -> float:
    """Return the seconds that these calls take."""
    started_s = time.perf_counter()
    for call in calls:
        torch.autograd.backward(call.forward(), call.gradients)
    return time.perf_counter() - started_s


def random_fakes(game: MultiGan, batch: Batch) -> list[Next]:
    """Return as many forecasts as there are generators."""
    size = len(batch.classes)
    return [Next(torch.randn(size), one_hot(torch.randint(3, (size,)))) for _ in game.generators]


def generator_calls(game: MultiGan, batch: Batch) -> Iterator[Call]:
    for player, part in zip(game.generators, game.settings.generators, strict=True):
        rows = batch.rows[:, -part.window :].contiguous()
        size = len(rows)
        gradients = torch.randn(size, len(game.settings.horizons)), torch.randn(size, 3)
        yield Call(partial(player.network, rows), gradients)


def judging_calls(game: MultiGan, batch: Batch, fakes: list[Next]) -> Iterator[Call]:
    """Yield each discriminator on the real sequence and on every fake."""
    for player in game.discriminators:
        for following in (batch.real, *fakes):
            yield judgement(player.network, batch, following)


def deceiving_calls(game: MultiGan, batch: Batch, fakes: list[Next]) -> list[Call]:
    """Return each discriminator on every fake, with gradients to the fake."""
    return [
        judgement(player.network, batch, fake) for player in game.discriminators for fake in fakes
    ]


def judgement(network: torch.nn.Module, batch: Batch, following: Next) -> Call:
    values, classes = sequence(batch.past, following, network.window)
    return Call(partial(network, values, classes), (torch.randn(len(values)),))


# --- figures -------------------------------------------------------------------------------------


def epoch_rows(case: Case, n_windows: int, rounds: int) -> list[Row]:
    """Measure epochs and their floors in turn."""
    n_rows = round(n_windows * (1 + VALIDATION)) + max(WINDOWS)
    data = random_data(case, 1, n_rows, 'cpu')
    ours, floor = [], []
    with deterministic(1, torch.get_num_threads()):
        game = MultiGan(case.settings, case.n_features, *data)
        for number in range(rounds + 1):
            started_s = time.perf_counter()
            game.run_epoch(number + 1)
            epoch_s = time.perf_counter() - started_s
            floor_s = bare_epoch(game, data.training)
            say(f'{case.name}: epoch {epoch_s:.2f} s, bare calls {floor_s:.2f} s')
            if number:  # the first round warms up
                ours.append(epoch_s)
                floor.append(floor_s)
    value, least = float(np.median(ours)), float(np.median(floor))
    name = f'{case.name}, {len(data.training)} windows, {torch.get_num_threads()} threads'
    time_row = Row(name, 'epoch', 's', value, least, ratio=paired_ratio(ours, floor))
    count = len(data.training)
    return [
        time_row.aiming(AIM),
        Row(name, 'training', 'windows/s', count / value, count / least),
    ]


def gpu_rows(case: Case, rounds: int) -> list[Row]:
    """Measure epochs of a whole market on the GPU, and which part of the time it computes."""
    rows = []
    data = random_data(case, *WHOLE_MARKET, 'cuda')
    for precision in ('float32', 'bfloat16'):
        seconds = []
        with open_device('cuda', precision) as device, deterministic(1):
            game = MultiGan(case.settings, case.n_features, *data, device=device)
            for number in range(rounds + 1):
                took_s, _ = gpu_epoch(game, number + 1, watched=False)
                say(f'{case.name}, {precision}: epoch {took_s:.2f} s')
                if number:  # the first round warms up
                    seconds.append(took_s)
            took_s, computing_s = gpu_epoch(game, rounds + 2, watched=True)
        count = min(len(data.training), case.settings.fit.max_windows)
        name = f'{case.name}, {precision}, {torch.cuda.get_device_name()}'
        rows += [
            Row(name, 'epoch', 's', float(np.median(seconds))),
            Row(name, 'training', 'windows/s', count / float(np.median(seconds))),
            Row(name, 'utilisation', '%', 100 * computing_s / took_s),
        ]
    return rows


def gpu_epoch(game: MultiGan, number: int, watched: bool) -> tuple[float, float]:
    """Return the seconds of an epoch, and those in which kernels ran if they are watched."""
    torch.cuda.synchronize()
    kernels = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    with kernels if watched else contextlib.nullcontext():
        started_s = time.perf_counter()
        game.run_epoch(number)
        torch.cuda.synchronize()
        took_s = time.perf_counter() - started_s
    if not watched:
        return took_s, 0.0
    return took_s, sum(event.self_device_time_total for event in kernels.key_averages()) / 1e6


def options(parser: argparse.ArgumentParser) -> None:
    """Add what can be chosen."""
    parser.add_argument('--windows', type=int, default=2900, help='that train (default: 2900)')
    parser.add_argument('--batch', type=int, default=64, help='windows of a step (default: 64)')
    parser.add_argument('--rounds', type=int, default=7, help='pairs of epochs (default: 7)')
    parser.add_argument('--threads', type=int, default=1, help="torch's (default: 1)")
    parser.add_argument(
        '--reference-sizes', action='store_true', help='networks as large as the original ones'
    )


def measure(args: argparse.Namespace) -> list[Row]:
    """Return every figure."""
    torch.set_num_threads(args.threads)
    rounds = 2 if args.quick else args.rounds
    case = case_of(args.reference_sizes, args.batch)
    rows = epoch_rows(case, args.windows, rounds)
    if torch.cuda.is_available():
        case = case_of(args.reference_sizes, GPU_BATCH, GPU_BATCH * GPU_STEPS)
        rows += gpu_rows(case, rounds)
    return rows


if __name__ == '__main__':
    raise SystemExit(main('multigan', 'Multi-GAN beside its bare calls.', measure, options))
