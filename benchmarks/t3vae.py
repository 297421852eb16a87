# SPDX-License-Identifier: Apache-2.0
"""Section 4.1 of the t3-VAE paper: whether the tails that a VAE generates are those of the data.

Data are .6 t(-2, 1, 5) + .4 t(2, 1, 5). Each model is trained on 200,000 draws, stopped early on
200,000 others, and generates 500,000 numbers, which a linear-time MMD test (Gretton et al., JMLR
2012, section 6) holds against 500,000 fresh draws: a part of all, the left tail x < -6, the right
tail x > 6. A p below 5 % says that they differ. The case `data` generates from the true
distribution: what the test says where nothing differs. First the medians, then every seed.

With the t3-VAE there are two distributions to draw latents from: `t_m(0, tau^2 I, nu + n)`, which
its loss aims at, and the prior of the model, `t_m(0, I, nu)`. The first is the case to be judged.
"""

from __future__ import annotations

import argparse
import copy
import math
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from _harness import Row, main, say
from torch import Tensor

from heqis_training.models.t3vae import VectorVae
from heqis_training.t3 import T3, Gaussian

LEVEL = 5.0  # % at which two samples differ
TAIL = 6.0
SIGMA = 0.1
NU = 18.0
BATCH, LEARNING_RATE, WEIGHT_DECAY = 128, 1e-3, 1e-4
MODELS = ('t3vae', 'vae', 'betavae', 'data')
T3_CASE, T3_PRIOR_CASE, VAE_CASE = 't3-VAE nu 18', 't3-VAE nu 18, model prior', 'VAE'
BETA_CASE, DATA_CASE = 'beta-VAE .1', 'data'
PARTS = ('full', 'left tail', 'right tail')


class Sizes(NamedTuple):
    """How much of everything."""

    training: int = 200_000
    validation: int = 200_000
    test: int = 500_000
    tested: int = 100_000  # of the whole sample; the tails are tested whole
    permutations: int = 999
    epochs: int = 100
    patience: int = 15


class Job(NamedTuple):
    """One model and seed."""

    model: str
    seed: int
    sizes: Sizes


class Result(NamedTuple):
    """What one model and seed gave: p-values in % by case and part, and the training's length."""

    job: Job
    p: dict[str, tuple[float, ...]]
    epochs: int
    seconds: float


def mixture(count: int, generator: np.random.Generator) -> Tensor:
    """Draw (count, 1) numbers of .6 t(-2, 1, 5) + .4 t(2, 1, 5)."""
    centre = np.where(generator.random(count) < 0.6, -2.0, 2.0)
    drawn = centre + generator.standard_t(5, count)
    return torch.from_numpy(drawn.astype(np.float32))[:, None]


def train(model: VectorVae, data: tuple[Tensor, Tensor], sizes: Sizes) -> int:
    """Train with early stopping, leave the best state in the model, return the epochs."""
    training, validation = data
    optimizer = torch.optim.Adam(
        model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
    )
    best, best_epoch, state = math.inf, 0, copy.deepcopy(model.state_dict())
    epoch = 0
    while epoch < sizes.epochs and epoch - best_epoch < sizes.patience:
        epoch += 1
        for batch in training[torch.randperm(len(training))].split(BATCH):
            optimizer.zero_grad(set_to_none=True)
            model.loss(batch).backward()
            optimizer.step()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the same draws of z for every epoch: only the model changes
            loss = model.loss(validation).item()
        if loss < best:
            best, best_epoch, state = loss, epoch, copy.deepcopy(model.state_dict())
    model.load_state_dict(state)
    return epoch


def run(job: Job) -> Result:
    """Train, generate, test; everything follows from the seed."""
    torch.set_num_threads(1)
    torch.manual_seed(job.seed)
    started = time.monotonic()
    sizes = job.sizes
    # one stream of data per seed: every model of a seed sees the same draws
    streams = [np.random.default_rng([job.seed, part]) for part in range(4)]
    training, validation, test = (
        mixture(count, stream) for count, stream in zip(sizes[:3], streams[:3], strict=True)
    )
    epochs = 0
    generated: dict[str, Tensor]
    if job.model == 'data':
        generated = {DATA_CASE: mixture(sizes.test, streams[3])}
    else:
        model = build(job.model)
        epochs = train(model, (training, validation), sizes)
        generated = {case: model.generate(z) for case, z in latents(job.model, model, sizes.test)}
    p = {case: p_values(x, test, sizes) for case, x in generated.items()}
    return Result(job, p, epochs, time.monotonic() - started)


def build(name: str) -> VectorVae:
    """Return an untrained model."""
    if name == 't3vae':
        return VectorVae(T3(NU, 1, 1, SIGMA))
    return VectorVae(Gaussian(1, 1, SIGMA), beta=0.1 if name == 'betavae' else 1.0)


def latents(name: str, model: VectorVae, count: int) -> Iterator[tuple[str, Tensor]]:
    """Yield each case of a model with the latents that it generates from."""
    if name == 't3vae':
        yield T3_CASE, model.family.sample_generation(count)
        yield T3_PRIOR_CASE, model.family.sample_prior(count)
    else:
        yield VAE_CASE if name == 'vae' else BETA_CASE, model.family.sample_prior(count)


def p_values(generated: Tensor, test: Tensor, sizes: Sizes) -> tuple[float, ...]:
    """Return p in % of all, left tail and right tail; 0 where a tail was not generated at all."""
    parts: tuple[Callable[[Tensor], Tensor], ...] = (
        lambda x: x[: sizes.tested],
        lambda x: x[x < -TAIL],
        lambda x: x[x > TAIL],
    )
    return tuple(
        100 * mmd_p(part(generated).flatten(), part(test).flatten(), sizes.permutations)
        for part in parts
    )


def mmd_p(x: Tensor, y: Tensor, permutations: int) -> float:
    """Return p of the linear-time MMD of two samples (N,), by permuting the pooled sample.

    The kernel is Gaussian, its squared width the median of the squared distances that the
    statistic uses. The same even length of both is used; p is 0 where there are not 4 of each.
    """
    half = min(len(x), len(y)) // 2
    if half < 2:
        return 0.0
    pool = torch.cat([x[: 2 * half], y[: 2 * half]]).double().reshape(4, half)
    width = torch.cat([(a - b).square() for a, b, _ in pairs(pool)]).median()
    observed = statistic(pool, width)
    larger = sum(
        statistic(pool.flatten()[torch.randperm(4 * half)].reshape(4, half), width) >= observed
        for _ in range(permutations)
    )
    return (1 + larger) / (1 + permutations)


def pairs(pool: Tensor) -> tuple[tuple[Tensor, Tensor, int], ...]:
    """Return the pairs of the statistic with their signs, from halves x1, x2, y1, y2."""
    x1, x2, y1, y2 = pool
    return (x1, x2, 1), (y1, y2, 1), (x1, y2, -1), (x2, y1, -1)


def statistic(pool: Tensor, width: Tensor) -> float:
    """Return the linear-time estimate of the squared MMD."""
    kernel = [sign * torch.exp((a - b).square() / (-2 * width)) for a, b, sign in pairs(pool)]
    return float(torch.stack(kernel).sum(0).mean())


def summarise(results: Sequence[Result]) -> list[Row]:
    """Return medians over seeds, then every seed."""
    found: dict[str, dict[int, tuple[float, ...]]] = {}
    for result in results:
        for case, p in result.p.items():
            found.setdefault(case, {})[result.job.seed] = p
    medians, single = [], []
    for case, by_seed in found.items():
        for part, name in enumerate(PARTS):
            values = [p[part] for _, p in sorted(by_seed.items())]
            figure = f'{name}, median p of {len(values)} seeds'
            medians.append(judged(Row(case, figure, '%', float(np.median(values)))))
            single += [
                Row(f'{case}, seed {seed}', f'{name}, p', '%', p[part])
                for seed, p in sorted(by_seed.items())
            ]
    return medians + single


def judged(row: Row) -> Row:
    """Return the row with its aim, for the two that have one: t3-VAE above 5 %, VAE below."""
    if row.figure.startswith('full') or row.case not in (T3_CASE, VAE_CASE):
        return row
    above = row.value > LEVEL
    reached = above if row.case == T3_CASE else row.value < LEVEL
    return replace(row, aim=LEVEL, reached=reached)


def measure(args: argparse.Namespace) -> list[Row]:
    """Run every model and seed, two at a time."""
    sizes = Sizes(epochs=args.epochs)
    if args.quick:
        sizes = Sizes(20_000, 20_000, 50_000, 10_000, 199, min(args.epochs, 5), 5)
    jobs = [
        Job(model, seed, sizes)
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for model in args.models
    ]
    results = []
    with multiprocessing.get_context('spawn').Pool(args.processes) as pool:
        for result in pool.imap(run, jobs):
            results.append(result)
            shown = '; '.join(
                f'{case} ' + ' / '.join(f'{p:.1f}' for p in values)
                for case, values in result.p.items()
            )
            say(
                f'{len(results)}/{len(jobs)} seed {result.job.seed}, {result.epochs} epochs, '
                f'{result.seconds:.0f} s: p in %, full / left / right: {shown}'
            )
    return summarise(results)


def options(parser: argparse.ArgumentParser) -> None:
    """Add how much is run."""
    parser.add_argument('--seeds', type=int, default=10, help='how many seeds (default: 10)')
    parser.add_argument('--first-seed', type=int, default=0, help='the first one (default: 0)')
    parser.add_argument('--epochs', type=int, default=100, help='at most (default: 100)')
    parser.add_argument('--models', nargs='+', choices=MODELS, default=list(MODELS))
    parser.add_argument(
        '--processes', type=int, default=2, help='models trained at a time (default: 2)'
    )


if __name__ == '__main__':
    sys.exit(main('t3vae', __doc__ or '', measure, options))
