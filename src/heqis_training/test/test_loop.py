# SPDX-License-Identifier: Apache-2.0
"""The loop: it goes on from any saved epoch bit for bit, stops in time, tells before it saves."""

from __future__ import annotations

import contextlib
import copy
import math
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import Tensor

from heqis_core.bars import BarStatus, BarTable
from heqis_core.errors import DataError
from heqis_training.batches import Part, Scale
from heqis_training.checkpoint import load_state, save_state
from heqis_training.dataset import fingerprint
from heqis_training.device import Device
from heqis_training.interrupt import raise_if_interrupted, remembered
from heqis_training.loop import Trainee, Tree, deterministic, run_epochs
from heqis_training.monitor import SILENT, EpochFigures, Note
from heqis_training.multigan import MultiGan
from heqis_training.pretrain import Pretraining
from heqis_training.settings import (
    AdversarialSettings,
    DiscriminatorSettings,
    EncoderSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
    TransformerSettings,
)
from heqis_training.store import FrameStore, StoreKey
from heqis_training.tensors import WindowTensors

EPOCHS = 5
LONGEST = 8
FIT = FitSettings(epochs=EPOCHS, batch=32, learning_rate=5e-3, max_windows=90, plateau_patience=1)


def random_store(n_rows: int = 160) -> FrameStore:
    rng = np.random.default_rng(4)
    close = np.exp(np.cumsum(rng.normal(0, 0.02, (n_rows, 1)), axis=0))
    features = rng.standard_normal((n_rows, 1, 3), np.float32)
    status = np.full((n_rows, 1), BarStatus.VALID, np.uint8)
    table = BarTable(
        ('A',), np.arange(n_rows, dtype=np.int64), np.repeat(close[:, None], 6, axis=1), status
    )
    key = StoreKey(fingerprint(table), '', ('a', 'b', 'c'), (1,))
    return FrameStore.build(table, zip(features, status, strict=True), key)


def a_game() -> MultiGan:
    """Return a game with dropout in which everything that is due sometimes is due."""
    settings = TrainingSettings(
        generators=(
            GruSettings(window=3, hidden=6, dropout=0.3),
            LstmSettings(window=4, hidden=6, dropout=0.3),
            TransformerSettings(window=5, width=8, heads=2, layers=1, feedforward=8, dropout=0.3),
        ),
        discriminators=(
            DiscriminatorSettings(window=3, hidden=4),
            DiscriminatorSettings(window=5, hidden=4),
        ),
        adversarial=AdversarialSettings(
            class_gradient='gumbel',
            identity_epochs=1,
            distil_every=2,
            cross_every=2,
            cross_epochs=1,
        ),
        fit=FIT,
    )
    store = random_store()
    samples = store.samples(LONGEST, 2 * LONGEST)
    samples = samples.where(samples.labelled)
    place = np.arange(len(samples))
    parts = samples.where(place < 100), samples.where(place >= 100)
    scale = Scale.of(parts[0], 0.01)
    training, validation = (
        Part(store, part, scale, settings.window, settings.past) for part in parts
    )
    return MultiGan(settings, 3, training, validation)


def pretraining(kind: str) -> Pretraining:
    settings = msgspec.convert(
        {'kind': kind, 'window': 8, 'factors': 2, 'width': 4}, EncoderSettings
    )
    settings = msgspec.structs.replace(settings, fit=FIT)
    store = random_store()
    samples = store.samples(LONGEST, 2 * LONGEST)
    place = np.arange(len(samples))
    training, validation = (
        (WindowTensors(store, part), len(part))
        for part in (samples.where(place < 100), samples.where(place >= 100))
    )
    return Pretraining(settings, 3, training, validation, Device())


def same(one: object, other: object) -> bool:
    """Return whether two trees are the same bit for bit, NaN too."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return bool(one.dtype == other.dtype and one.numpy().tobytes() == other.numpy().tobytes())
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def run(
    make: Callable[[], Trainee], saved: Tree | None = None, patience: int = EPOCHS
) -> tuple[list[Tree], Told]:
    """Train from the start, or from a saved tree; return every tree that is saved."""
    trees: list[Tree] = []
    told = Told()
    with deterministic(9):
        run_epochs(
            'it',
            make(),
            EPOCHS,
            patience,
            told,
            saved=saved,
            save=lambda tree: trees.append(copy.deepcopy(tree)),
        )
    return trees, told


class Told:
    """A monitor that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[EpochFigures] = []
        self.notes: list[Note] = []

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        self.rows += rows

    def note(self, note: Note) -> None:
        self.notes.append(note)

    def close(self) -> None: ...


# --- resume --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    'make',
    [a_game, lambda: pretraining('cae'), lambda: pretraining('t3vae')],
    ids=['multi-gan', 'cae', 't3vae'],
)
def test_going_on_from_any_epoch_on_the_disk_equals_the_uninterrupted_run(
    make: Callable[[], Trainee], tmp_path: Path
) -> None:
    whole, told = run(make)
    assert len(whole) == EPOCHS
    for done, tree in enumerate(whole, start=1):
        assert tree['progress']['done'] == done
        save_state(tmp_path / 'state', tree, {})
        torch.manual_seed(done)  # nothing outside the tree may matter
        rest, again = run(make, load_state(tmp_path / 'state').tree)
        assert len(rest) == EPOCHS - done
        assert all(map(same, rest, whole[done:]))
        assert again.rows == [row for row in told.rows if row.epoch > done]
        assert again.notes == [note for note in told.notes if note.epoch > done]
    if make is a_game:
        texts = ' '.join(note.text for note in told.notes)
        assert texts.count('distilled') == texts.count('fine-tuned') == 2


# --- when it ends --------------------------------------------------------------------------------


class Scripted:
    """A trainee whose validation losses are given."""

    def __init__(self, losses: Sequence[float]) -> None:
        self.losses, self.best, self.last = losses, math.inf, 0
        self.events: list[str] = []

    def run_epoch(self, number: int) -> tuple[Mapping[str, Mapping[str, float]], bool]:
        self.events.append(f'epoch {number}')
        loss = self.losses[number - 1]
        improved = loss < self.best
        self.best = min(self.best, loss) if improved else self.best
        return {'it': {'validation_loss': loss}}, improved

    def notes(self) -> list[str]:
        return ['something']

    def state(self) -> Tree:
        return {'best': self.best}

    def load_state(self, state: Tree) -> None:
        self.best = state['best']

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        self.events.append(f'told {rows[0].epoch} of {rows[0].epochs}')

    def note(self, note: Note) -> None:
        self.events.append(f'note {note.epoch} {note.text}')

    def close(self) -> None: ...


def test_an_epoch_is_told_before_it_is_saved() -> None:
    trainee = Scripted([1.0, 2.0])
    run_epochs('it', trainee, 2, 5, trainee, save=lambda tree: trainee.events.append('saved'))
    assert trainee.events == [
        *('epoch 1', 'told 1 of 2', 'note 1 something', 'saved'),
        *('epoch 2', 'told 2 of 2', 'note 2 something', 'saved'),
    ]


def test_patience_counts_epochs_in_a_row_also_over_a_resume() -> None:
    losses = [5.0, 3.0, 4.0, 4.0, 2.0, 3.0, 3.0, 3.0, 1.0]
    trees: list[Any] = []
    trainee = Scripted(losses)
    progress = run_epochs('it', trainee, 9, 3, trainee, save=trees.append)
    assert (progress.done, progress.stale, trainee.best) == (8, 3, 2.0)
    assert trainee.events[-2:] == ['told 8 of 8', 'note 8 something']  # none follows, so it says
    for tree in trees:
        again = Scripted(losses)
        assert run_epochs('it', again, 9, 3, SILENT, saved=tree) == progress
        assert len(again.events) == 8 - tree['progress']['done']


def test_more_epochs_than_were_planned_go_on_from_the_last_one() -> None:
    trees: list[Any] = []
    run_epochs('it', Scripted([3.0, 2.0]), 2, 9, SILENT, save=trees.append)
    trainee = Scripted([3.0, 2.0, 1.0])
    assert run_epochs('it', trainee, 3, 9, SILENT, saved=trees[-1]).done == 3
    assert trainee.events == ['epoch 3']


@pytest.mark.parametrize('epochs', [3, 50])
def test_a_loss_that_was_never_finite_is_an_error_that_says_what_to_do(epochs: int) -> None:
    trees: list[Any] = []
    message = 'it: no epoch of 3 had a finite validation loss; lower the learning rate'
    with pytest.raises(DataError, match=message):
        run_epochs('it', Scripted([math.nan] * 3), epochs, 3, SILENT, save=trees.append)
    assert len(trees) == 3
    with pytest.raises(DataError, match=message):  # and again after a resume
        run_epochs('it', Scripted([]), epochs, 3, SILENT, saved=trees[-1])


def test_one_finite_loss_is_enough() -> None:
    progress = run_epochs('it', Scripted([math.nan, 1.0, math.nan]), 3, 3, SILENT)
    assert progress.improved_ever


# --- deterministic -------------------------------------------------------------------------------


def test_seed_threads_and_kernels_are_set_and_come_back_even_after_an_error() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()

    def fail() -> None:
        with deterministic(1, threads=3):
            assert torch.get_num_threads() == 3
            assert torch.are_deterministic_algorithms_enabled()
            torch.rand(10)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_same_seed_draws_the_same_whatever_was_drawn_before() -> None:
    def drawn(seed: int) -> Tensor:
        with deterministic(seed):
            return torch.rand(4)

    torch.manual_seed(123)
    first = drawn(7)
    torch.manual_seed(456)
    assert torch.equal(drawn(7), first)
    assert not torch.equal(drawn(8), first)


# --- Ctrl-C --------------------------------------------------------------------------------------


class Swallowing(Told):
    """A monitor whose library takes Ctrl-C for a failure of its own, in the second epoch."""

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        if rows[0].epoch == 2:
            with contextlib.suppress(BaseException):  # as `except:` around an import
                signal.raise_signal(signal.SIGINT)


def test_ctrl_c_that_a_library_swallows_ends_the_training_after_the_epoch_is_saved() -> None:
    trees: list[Tree] = []
    with remembered(), deterministic(9), pytest.raises(KeyboardInterrupt):
        run_epochs('it', pretraining('cae'), EPOCHS, EPOCHS, Swallowing(), save=trees.append)
    assert [tree['progress']['done'] for tree in trees] == [1, 2]


def test_ctrl_c_is_raised_at_once_and_forgotten_after_the_block() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), remembered():
        signal.raise_signal(signal.SIGINT)
    raise_if_interrupted()
    assert signal.getsignal(signal.SIGINT) is before
