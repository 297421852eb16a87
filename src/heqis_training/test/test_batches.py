# SPDX-License-Identifier: Apache-2.0
"""Batches: of a window is seen what lies before its label, on the scale of the training part."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from heqis_core.bars import BarStatus, BarTable
from heqis_training.batches import EVALUATION_BATCH, Part, Scale, one_hot, spread
from heqis_training.dataset import DOWN, FLAT, UP, Samples, fingerprint
from heqis_training.settings import FitSettings
from heqis_training.store import FrameStore, StoreKey

WINDOW, PAST = 6, 4
SCALE = Scale((0.02, 0.05), 0.005)


@pytest.fixture(scope='module')
def store() -> FrameStore:
    """Return two symbols with gaps, horizons 1 and 3."""
    rng = np.random.default_rng(0)
    shape = 120, 2
    close = np.exp(np.cumsum(rng.normal(0, 0.02, shape), axis=0))
    status = np.where(rng.random(shape) < 0.9, BarStatus.VALID, BarStatus.SUSPENDED)
    status = status.astype(np.uint8)
    table = BarTable(
        ('A', 'B'), np.arange(120, dtype=np.int64), np.repeat(close[:, None], 6, axis=1), status
    )
    frames = ((rng.standard_normal((2, 3), np.float32), row) for row in status)
    key = StoreKey(fingerprint(table), '', ('a', 'b', 'c'), (1, 3))
    return FrameStore.build(table, frames, key)


@pytest.fixture(scope='module')
def samples(store: FrameStore) -> Samples:
    found = store.samples(WINDOW, 2 * WINDOW)
    return found.where(found.labelled)


def test_a_batch_is_windows_past_returns_and_labels_in_units_of_the_spread(
    store: FrameStore, samples: Samples
) -> None:
    part = Part(store, samples, SCALE, WINDOW, PAST)
    index = torch.tensor([0, len(samples) - 1, 7, 7])
    batch = part.batch(index)
    assert len(part) == len(samples)
    assert batch.rows.shape == (4, WINDOW, 3)
    for n, place in enumerate(index.tolist()):
        end, label = samples.end[place], samples.log_return[place]
        assert np.array_equal(batch.rows[n].numpy(), store.features[end - WINDOW + 1 : end + 1])
        past = store.past_return[end - PAST + 1 : end + 1]
        np.testing.assert_allclose(batch.past.values[n], past / 0.02, rtol=1e-5)
        expected = [UP if x > 0.005 else DOWN if x < -0.005 else FLAT for x in past]
        assert batch.past.classes[n].argmax(1).tolist() == expected
        assert batch.past.classes[n].sum(1).tolist() == [1.0] * PAST
        np.testing.assert_allclose(batch.targets[n], label / (0.02, 0.05), rtol=1e-5)
        expected_class = UP if label[0] > 0.005 else DOWN if label[0] < -0.005 else FLAT
        assert batch.classes[n] == expected_class
        assert batch.t[n] == samples.t[place]
    assert torch.equal(batch.real.value, batch.targets[:, 0])
    assert torch.equal(batch.real.classes, one_hot(batch.classes))


def test_the_real_next_return_is_not_in_the_past_that_is_seen(
    store: FrameStore, samples: Samples
) -> None:
    part = Part(store, samples, SCALE, WINDOW, PAST)
    batch = part.batch(torch.arange(len(samples)))
    assert not (batch.past.values == batch.targets[:, :1]).any()


def test_an_epoch_draws_every_window_once_in_an_order_of_the_seed(
    store: FrameStore, samples: Samples
) -> None:
    part = Part(store, samples, SCALE, WINDOW, PAST)

    def drawn(seed: int, **fit: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        return [batch.targets[:, 0] for batch in part.shuffled(FitSettings(**fit))]

    found = drawn(1, batch=32)
    assert [len(x) for x in found[:-1]] == [32] * (len(samples) // 32)
    everything = part.batch(torch.arange(len(samples))).targets[:, 0]
    assert torch.equal(torch.cat(found).sort().values, everything.sort().values)
    assert torch.equal(torch.cat(found), torch.cat(drawn(1, batch=32)))
    assert not torch.equal(torch.cat(found), torch.cat(drawn(2, batch=32)))
    few = drawn(1, batch=32, max_windows=50)
    assert [len(x) for x in few] == [32, 18]
    assert torch.equal(torch.cat(few), torch.cat(found)[:50])


def test_validation_goes_through_all_windows_in_order_or_evenly_spread_ones(
    store: FrameStore, samples: Samples
) -> None:
    part = Part(store, samples, SCALE, WINDOW, PAST)
    whole = torch.cat([batch.t for batch in part.in_order(len(part))])
    assert np.array_equal(whole.numpy(), samples.t)
    some = torch.cat([batch.t for batch in part.in_order(20)])
    assert 10 <= len(some) <= 20
    assert np.array_equal(some.numpy(), samples.t[:: -(-len(samples) // 20)])
    places = list(spread(2 * EVALUATION_BATCH + 1, 10**9))
    assert [len(x) for x in places] == [EVALUATION_BATCH, EVALUATION_BATCH, 1]


def test_without_discriminators_no_past_is_gathered(store: FrameStore, samples: Samples) -> None:
    batch = Part(store, samples, SCALE, WINDOW, 0).batch(torch.arange(3))
    assert batch.past.values.shape == (3, 0)
    assert batch.past.classes.shape == (3, 0, 3)


def test_the_scale_is_the_deviation_of_the_labels_and_never_zero(samples: Samples) -> None:
    scale = Scale.of(samples, 0.004)
    assert scale.spread == pytest.approx(tuple(samples.log_return.std(axis=0)))
    assert scale.band == 0.004
    still = Samples(
        samples.end, samples.t, samples.s, samples.label_row, 0 * samples.log_return, WINDOW
    )
    assert Scale.of(still, 0.004).spread == (1e-6, 1e-6)
