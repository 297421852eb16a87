# SPDX-License-Identifier: Apache-2.0
"""One thread for every test here: on a busy machine, threads of small networks wait on another."""

from __future__ import annotations

import os

import torch

os.environ.setdefault('OMP_NUM_THREADS', '1')  # of the processes that tests start
torch.set_num_threads(1)
