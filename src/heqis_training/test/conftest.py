# SPDX-License-Identifier: Apache-2.0
"""One thread for every test here: on a busy machine, threads of small networks wait on another."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

os.environ.setdefault('OMP_NUM_THREADS', '1')  # of the processes that tests start
torch.set_num_threads(1)


@pytest.fixture(scope='module')
def no_pictures() -> Iterator[None]:
    """Leave the curves out: drawing takes longer than these trainings and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('heqis_training.monitor.Curves._draw', lambda curves: None)
        yield
