# SPDX-License-Identifier: Apache-2.0
"""`heqis train` killed, short of disk, or told to go on: it ends where one go would have ended.

The command runs in processes of its own, forked from one that has the imports done: what is tried
is the training, not the start of Python.
"""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from heqis_core.testing import wait_until
from heqis_training.checkpoint import load_state, previous_of
from heqis_training.testing_fork import ForkServer

pytestmark = pytest.mark.skipif(os.name == 'nt', reason='forks, and sends SIGKILL')

DEADLINE_S = 60.0
ENCODER_EPOCHS, EPOCHS = 4, 7
CONFIG = f"""
encoder: {{window: 4, factors: 2, width: 4, fit: {{epochs: {ENCODER_EPOCHS}, max_windows: 150}}}}
generators:
  - {{type: gru, window: 6, hidden: 8}}
  - {{type: transformer, window: 4, width: 8, heads: 2, layers: 1, feedforward: 16}}
discriminators: [{{window: 3, hidden: 8}}, {{window: 5, hidden: 8}}]
adversarial: {{identity_epochs: 1, distil_every: 3, cross_every: 2, cross_epochs: 1,
  class_gradient: gumbel}}
fit: {{epochs: {EPOCHS}, patience: 20, batch: 32, max_windows: 200, plateau_patience: 0}}
tile: 16
"""
"""All that an epoch hands to the next: order, dropout, draws, rates, weights, undone steps."""
PROGRAM = """
import argparse, json, os, resource, sys
import matplotlib.backends.backend_agg, onnxruntime, torch._inductor, torch.utils.tensorboard
from heqis_core.features.spec import default_spec
from heqis_training import bundling, curves, dataset, recipe, tables
from heqis_training.commands import train
dataset.fit_scaler(tables.simulate(3, 100, 1), default_spec(True), 90)  # compiles the kernels
parser = argparse.ArgumentParser()
train.register(parser.add_subparsers(required=True))

def serve(line):
    told = json.loads(line)
    errors = os.open(told['log'], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    if told['limit']:
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (told['limit'], most))
    args = parser.parse_args(told['args'])
    return args.func(args)
"""


class Command(ForkServer):
    """Runs `heqis train` in a new process at a time."""

    def __init__(self, folder: Path) -> None:
        self._config = folder / 'config.yaml'
        self._config.write_text(CONFIG)
        super().__init__(PROGRAM, folder / 'log', {'OMP_NUM_THREADS': '1'}, DEADLINE_S)

    def train(self, folder: Path, *more: str, limit: int = 0) -> int:
        """Start training in `folder` and return the process id."""
        words = ['train', '--simulate', '300', '--symbols', '3', '--config', str(self._config)]
        words += ['--run', str(folder / 'run'), '--out', str(folder / 'out'), '--device', 'cpu']
        told = {'args': [*words, *more], 'limit': limit, 'log': str(self.log)}
        return self.start(json.dumps(told))

    def run(self, folder: Path, *more: str) -> None:
        """Train to the end."""
        self.train(folder, *more)
        assert self.wait() == 0, self.log.read_text()


@pytest.fixture(scope='module')
def command(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    command = Command(tmp_path_factory.mktemp('command'))
    yield command
    command.close()


@pytest.fixture(scope='module')
def whole(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a training in one go."""
    folder = tmp_path_factory.mktemp('whole')
    command.run(folder)
    return folder


def tensors(tree: Any, place: str = '') -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a tree of states with its place."""
    if isinstance(tree, Tensor):
        yield place, tree
    elif isinstance(tree, dict):
        for key, value in tree.items():
            yield from tensors(value, f'{place}/{key}')
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from tensors(value, f'{place}/{number}')


def assert_equal_runs(found: Path, expected: Path, *but: str) -> None:
    """Hold every state, table and file of two runs to the same bits."""
    for name in ('encoder', 'checkpoint', 'best'):
        file = f'{name}.safetensors'
        one, other = (
            dict(tensors(load_state(at / 'run' / file).tree)) for at in (found, expected)
        )
        assert list(one) == list(other)
        assert [place for place in other if not torch.equal(one[place], other[place])] == []
    for name in {'history.csv', 'scaler.json', 'encoder.onnx', 'encoder.golden.npz'} - {*but}:
        files = (at / 'run' / name for at in (found, expected))
        one_bytes, other_bytes = (file.read_bytes() for file in files)
        assert one_bytes == other_bytes, name
    assert not (found / 'run' / 'indicators').exists()
    (bundle,), (good,) = (list((at / 'out').iterdir()) for at in (found, expected))
    assert bundle.name == good.name
    for path in good.iterdir():
        if path.name != 'manifest.json':  # which holds a clock
            assert (bundle / path.name).read_bytes() == path.read_bytes()


def n_rows(run: Path, network: str) -> int:
    try:
        return (run / 'history.csv').read_text().count(f'\n{network},')
    except OSError:
        return 0


def moments(run: Path, dice: random.Random) -> list[tuple[str, Callable[[], bool]]]:
    """Return when a run is to be killed, one after the other, with what each one is called."""
    encoder = sorted(dice.sample(range(1, ENCODER_EPOCHS + 1), 2))
    generators = sorted(dice.sample(range(1, EPOCHS + 1), 3))
    return [
        ('scaler', lambda: (run / 'scaler.json').exists()),
        *((f'encoder {n}', lambda n=n: n_rows(run, 'encoder') >= n) for n in encoder),
        ('between', lambda: (run / 'encoder.onnx').exists()),
        ('frames', lambda: (run / 'frames' / 'store.json').exists()),
        *((f'generators {n}', lambda n=n: n_rows(run, 'gru') >= n) for n in generators),
        ('best', lambda: (run / 'best.safetensors').exists()),
    ]


def test_killed_again_and_again_a_training_ends_as_one_that_was_left_alone(
    command: Command, whole: Path, tmp_path: Path
) -> None:
    seed = random.randrange(1 << 32)
    dice = random.Random(seed)
    hits = []
    for name, come in moments(tmp_path / 'run', dice):
        pid = command.train(tmp_path)
        wait_until(come, DEADLINE_S, f'{name}: {command.log.read_text()}')
        Event().wait(dice.random() * 0.03)  # some moment after it
        os.kill(pid, signal.SIGKILL)
        status = command.wait()
        assert status in (0, -signal.SIGKILL), command.log.read_text()
        if status:
            hits.append(name)
    command.run(tmp_path)
    assert_equal_runs(tmp_path, whole)
    assert len(hits) >= 5, f'most kills came before the end: {hits}'
    assert [one.name for one in (tmp_path / 'out').iterdir() if one.name[0] == '.'] == []


def test_a_full_disk_stops_it_with_the_last_checkpoint_intact_and_it_goes_on_when_there_is_room(
    command: Command, whole: Path, tmp_path: Path
) -> None:
    command.run(tmp_path, '--num_epochs', '2')
    checkpoint = tmp_path / 'run' / 'checkpoint.safetensors'
    good = checkpoint.read_bytes()
    command.train(tmp_path, limit=len(good) // 2)
    assert command.wait() == 1
    said = command.log.read_text()
    assert f'heqis train: {checkpoint}: cannot be written (File too large): it needs' in said
    assert 'what was written before is intact, and the same command goes on from it' in said
    assert 'Traceback' not in said
    assert checkpoint.read_bytes() == good
    assert load_state(checkpoint).tree['progress']['done'] == 2
    assert load_state(previous_of(checkpoint)).tree['progress']['done'] == 1
    assert not list((tmp_path / 'run').glob('*.partial'))
    (tmp_path / 'out').rename(tmp_path / 'out of two epochs')
    command.run(tmp_path)
    # the table says of each epoch how many were planned then
    assert_equal_runs(tmp_path, whole, 'history.csv')


def test_more_epochs_than_before_go_on_and_equal_a_run_that_was_told_so_at_once(
    command: Command, whole: Path, tmp_path: Path
) -> None:
    command.run(tmp_path, '--num_epochs', '3')
    (first,) = (tmp_path / 'out').iterdir()
    assert n_rows(tmp_path / 'run', 'gru') == 3
    (tmp_path / 'out').rename(tmp_path / 'out of three epochs')
    command.run(tmp_path, '--num_epochs', str(EPOCHS))
    assert_equal_runs(tmp_path, whole, 'history.csv')
    assert not (tmp_path / 'out' / first.name).exists()
    told, expected = (
        [row.split(',') for row in (at / 'run' / 'history.csv').read_text().splitlines()]
        for at in (tmp_path, whole)
    )
    planned = 2
    assert [row[:planned] + row[planned + 1 :] for row in told] == [
        row[:planned] + row[planned + 1 :] for row in expected
    ]


def test_a_finished_run_started_again_trains_nothing_and_exports_the_same_bundle(
    command: Command, whole: Path
) -> None:
    before = {path: path.stat().st_mtime_ns for path in whole.rglob('*.safetensors*')}
    command.run(whole)
    assert 'nothing is left to train' in command.log.read_text()
    assert {path: path.stat().st_mtime_ns for path in whole.rglob('*.safetensors*')} == before
    assert len(list((whole / 'out').iterdir())) == 1
