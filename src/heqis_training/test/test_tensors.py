# SPDX-License-Identifier: Apache-2.0
"""Batches of windows: the right rows of the right symbol, oldest first."""

from __future__ import annotations

import numpy as np
import torch

from heqis_core.bars import BarStatus
from heqis_training.dataset import Labels, make_samples
from heqis_training.tensors import WindowTensors


def test_batches_hold_the_rows_that_the_samples_name() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 4, 3)).astype(np.float32)
    status = np.where(rng.random((50, 4)) < 0.8, BarStatus.VALID, BarStatus.NO_BAR)
    labels = Labels(np.full((50, 4), -1), np.full((50, 4), np.nan))
    samples = make_samples(status.astype(np.uint8), labels, 5, 10)
    windows = WindowTensors(features, samples)
    index = torch.tensor([len(samples) - 1, 0, 7])
    batch, images = windows.rows(index), windows.images(index)
    assert images.is_contiguous()
    for place, m in enumerate(index.tolist()):
        expected = features[samples.rows[m], samples.s[m]]
        np.testing.assert_array_equal(batch[place].numpy(), expected)
        np.testing.assert_array_equal(images[place, :, 0].numpy(), expected.T)
        assert samples.rows[m, -1] == samples.t[m]
