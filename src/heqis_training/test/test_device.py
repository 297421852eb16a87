# SPDX-License-Identifier: Apache-2.0
"""Devices: what is not there is refused, and two processes train what one would have trained.

The processes are real ones that meet over gloo on the loopback interface.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from heqis_core.bars import BarStatus, BarTable
from heqis_core.errors import ConfigError
from heqis_training.batches import Part, Scale
from heqis_training.checkpoint import load_state, save_state
from heqis_training.dataset import fingerprint
from heqis_training.device import Device, is_first, open_device
from heqis_training.loop import deterministic
from heqis_training.multigan import MultiGan
from heqis_training.settings import (
    AdversarialSettings,
    DiscriminatorSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
)
from heqis_training.store import FrameStore, StoreKey

LONGEST, BATCH, EPOCHS = 6, 32, 3
LIMIT_S = 90
SETTINGS = TrainingSettings(
    generators=(
        GruSettings(window=3, hidden=6, dropout=0.0),
        LstmSettings(window=4, hidden=6, dropout=0.0),
    ),
    discriminators=(DiscriminatorSettings(window=3, hidden=4), DiscriminatorSettings(window=5)),
    adversarial=AdversarialSettings(identity_epochs=1, distil_every=2, cross_every=3),
    fit=FitSettings(batch=BATCH, learning_rate=5e-3),
)


def parts(n_training: int, n_validation: int = 50) -> tuple[Part, Part]:
    """Return windows of a random market."""
    rng = np.random.default_rng(4)
    n_rows = n_training + n_validation + LONGEST
    close = np.exp(np.cumsum(rng.normal(0, 0.02, (n_rows, 1)), axis=0))
    features = rng.standard_normal((n_rows, 1, 3), np.float32)
    status = np.full((n_rows, 1), BarStatus.VALID, np.uint8)
    table = BarTable(
        ('A',), np.arange(n_rows, dtype=np.int64), np.repeat(close[:, None], 6, axis=1), status
    )
    key = StoreKey(fingerprint(table), '', ('a', 'b', 'c'), (1,))
    store = FrameStore.build(table, zip(features, status, strict=True), key)
    samples = store.samples(LONGEST, 2 * LONGEST)
    samples = samples.where(samples.labelled)
    place = np.arange(len(samples))
    training, validation = (samples.where(place < n_training), samples.where(place >= n_training))
    scale = Scale.of(training, 0.01)
    made = [Part(store, part, scale, 4, 5) for part in (training, validation)]
    return made[0], made[1]


def uneven() -> TrainingSettings:
    """Return settings whose networks and losses draw numbers while they train."""
    generators = tuple(msgspec.structs.replace(p, dropout=0.4) for p in SETTINGS.generators)
    rules = msgspec.structs.replace(SETTINGS.adversarial, class_gradient='gumbel')
    return msgspec.structs.replace(SETTINGS, generators=generators, adversarial=rules)


GAMES = ((SETTINGS, 4 * BATCH), (uneven(), 3 * BATCH + 1))
"""Settings and training windows; of the second, the last batch is one window."""


def train(settings: TrainingSettings, n_training: int, device: Device) -> dict[str, Any]:
    """Return the state of the game after some epochs, with what was noted."""
    with deterministic(3):
        game = MultiGan(settings, 3, *parts(n_training), device=device)
        for number in range(1, EPOCHS + 1):
            game.run_epoch(number)
    return {**game.state(), 'notes': game.notes()}


def one_of_them(folder: Path) -> None:
    """Train as one process of `torchrun`, whose variables are set; leave the states there."""
    rank, world = int(os.environ['RANK']), int(os.environ['WORLD_SIZE'])
    with open_device('cpu', 'float32') as device:
        assert (device.rank, device.world, is_first()) == (rank, world, rank == 0)
        device.barrier()
        games = [train(settings, n_training, device) for settings, n_training in GAMES]
    save_state(folder / str(rank), games, {})


@pytest.fixture(scope='module')
def together(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """Return for each game the states that two processes ended with."""
    folder, world = tmp_path_factory.mktemp('together'), 2
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    shared = {**os.environ, 'WORLD_SIZE': str(world), 'MASTER_PORT': str(port)}
    shared |= {'MASTER_ADDR': '127.0.0.1', 'GLOO_SOCKET_IFNAME': 'lo'}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder)],
            env={**shared, 'RANK': str(rank), 'LOCAL_RANK': str(rank)},
        )
        for rank in range(world)
    ]
    try:
        assert [process.wait(LIMIT_S) for process in processes] == [0] * world
    finally:
        for process in processes:
            process.kill()
            process.wait()
    first, second = (load_state(folder / str(rank)).tree for rank in range(world))
    return list(zip(first, second, strict=True))


def weights(players: Mapping[str, Any]) -> Tensor:
    return torch.cat(
        [x.flatten() for player in players.values() for x in player['network'].values()]
    )


def test_two_processes_keep_equal_weights_and_train_what_one_does(
    together: list[tuple[Any, Any]],
) -> None:
    alone = train(*GAMES[0], Device())
    first, second = together[0]
    assert torch.equal(weights(first['players']), weights(second['players']))
    expected = weights(alone['players'])
    torch.testing.assert_close(weights(first['players']), expected, rtol=0, atol=1e-5)
    for name in ('scores', 'best'):
        assert str(first[name]) == str(second[name])
    assert len(first['notes']) == 3  # other weights; distilled and fine-tuned, or not, as one
    assert first['notes'] == second['notes']
    ends = [note.rpartition(' ')[2] for note in first['notes']]
    assert [note.rpartition(' ')[2] for note in alone['notes']] == ends


def test_they_stay_equal_with_dropout_and_batches_that_cannot_be_shared_evenly(
    together: list[tuple[Any, Any]],
) -> None:
    first, second = together[1]
    assert torch.equal(weights(first['players']), weights(second['players']))
    for name, player in first['players'].items():
        assert player['scheduler'] == second['players'][name]['scheduler']


def test_shares_are_equal_different_and_together_the_batch() -> None:
    training, _ = parts(80)
    batch = training.batch(torch.arange(11))
    shares = [Device(rank=rank, world=3).share(batch) for rank in range(3)]
    assert [len(share.classes) for share in shares] == [3, 3, 3]
    times = torch.cat([share.t for share in shares]).sort().values
    assert torch.equal(times, batch.t[:9])
    for share in shares:
        place = torch.searchsorted(batch.t, share.t.contiguous())
        for name in ('rows', 'targets', 'classes'):
            assert torch.equal(getattr(share, name), getattr(batch, name)[place])
        for found, whole in zip(share.past, batch.past, strict=True):
            assert torch.equal(found, whole[place])
    few = training.batch(torch.arange(2))
    assert all(Device(rank=rank, world=3).share(few) is few for rank in range(3))
    assert Device().share(batch) is batch


# --- one device ----------------------------------------------------------------------------------


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_a_gpu_that_is_not_there_is_refused_and_auto_takes_the_cpu() -> None:
    for name in ('cuda', 'cuda:1'):
        with (
            pytest.raises(ConfigError, match=f'device {name}.*sees no GPU; use `cpu`'),
            open_device(name, 'float32'),
        ):
            pass
    with open_device('auto', 'float32') as device:
        assert device == Device('cpu', 'float32', 0, 1)


@pytest.mark.parametrize('name', ['gpu', 'meta', 'cpu:x', '', 'cuda:'])
def test_a_device_that_torch_cannot_use_is_refused_by_name(name: str) -> None:
    with (
        pytest.raises(ConfigError, match=f"device '{name}': expected auto, cpu, cuda or cuda:N"),
        open_device(name, 'float32'),
    ):
        pass


def test_bfloat16_is_used_where_it_is_asked_for() -> None:
    x = torch.randn(4, 4)
    for precision, expected in (('float32', torch.float32), ('bfloat16', torch.bfloat16)):
        with open_device('cpu', precision) as device, device.autocast():
            assert (x @ x).dtype == expected


def test_one_process_averages_nothing_and_waits_for_nobody() -> None:
    device = Device()
    parameter = torch.nn.Parameter(torch.ones(3))
    parameter.grad = torch.tensor([1.0, 2.0, 3.0])
    device.average_gradients([parameter])
    device.barrier()
    assert parameter.grad.tolist() == [1.0, 2.0, 3.0]
    figures = torch.tensor([1.0, 2.0])
    assert device.mean(figures) is figures


if __name__ == '__main__':
    one_of_them(Path(sys.argv[1]))
