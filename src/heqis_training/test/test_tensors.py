# SPDX-License-Identifier: Apache-2.0
"""Batches of windows: bit for bit what a board's windows and decider see, on any device."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import BarStatus, BarTable
from heqis_core.decider import Decider, Generator
from heqis_core.engine import Arrays, TensorSpec
from heqis_core.errors import ConfigError
from heqis_core.features.spec import default_spec
from heqis_core.frame import FeatureFrame
from heqis_core.io.files import load_bars
from heqis_core.pipeline import FeaturePipeline
from heqis_core.strategy import StrategyConfig
from heqis_core.testing import shared_data
from heqis_core.windows import Windows
from heqis_training.dataset import fingerprint, fit_scaler
from heqis_training.store import FrameStore, StoreKey, frames
from heqis_training.tensors import WindowTensors

LENGTH, HORIZON, N_FEATURES = 5, 10, 3


def random_store(
    valid: npt.NDArray[np.bool_], seed: int = 0
) -> tuple[FrameStore, npt.NDArray[np.float32]]:
    """Return a store of random frames that are VALID where told, bool (T, S), and the frames."""
    rng = np.random.default_rng(seed)
    n_times, n_symbols = valid.shape
    features = rng.normal(size=(n_times, n_symbols, N_FEATURES)).astype(np.float32)
    status = np.where(valid, BarStatus.VALID, BarStatus.NO_BAR).astype(np.uint8)
    table = BarTable(
        tuple(f'S{s}' for s in range(n_symbols)),
        np.arange(n_times, dtype=np.int64),
        np.exp(rng.normal(size=(n_times, 6, n_symbols))),
        status,
    )
    key = StoreKey(fingerprint(table), '', ('a', 'b', 'c'), (1,))
    return FrameStore.build(table, zip(features, status, strict=True), key), features


@st.composite
def masks(draw: st.DrawFn) -> npt.NDArray[np.bool_]:
    shape = draw(st.integers(1, 60)), draw(st.integers(1, 3))
    return np.random.default_rng(draw(st.integers(0, 999))).random(shape) < draw(st.floats(0, 1))


@given(valid=masks(), length=st.integers(1, 6), more=st.integers(0, 6))
@settings(deadline=None)  # the first call compiles
def test_windows_are_bit_for_bit_those_that_a_board_gathers(
    valid: npt.NDArray[np.bool_], length: int, more: int
) -> None:
    store, features = random_store(valid)
    samples = store.samples(length, length + more)
    tensors = WindowTensors(store, samples)
    board = Windows(valid.shape[1], length, N_FEATURES, length + more)
    at = 0
    for t in range(len(valid)):
        board.push(t, features[t], valid[t])
        which = np.flatnonzero(valid[t] & board.ready(t))
        index = torch.arange(at, at + len(which))
        assert samples.t[at : at + len(which)].tolist() == [t] * len(which)
        assert samples.s[at : at + len(which)].tolist() == which.tolist()
        assert tensors.rows(index, length).numpy().tobytes() == board.gather(which).tobytes()
        at += len(which)
    assert at == len(samples)


def test_shorter_rows_images_and_past_returns_are_the_end_of_the_same_windows() -> None:
    store, _ = random_store(np.random.default_rng(1).random((80, 4)) < 0.8)
    samples = store.samples(LENGTH, HORIZON)
    tensors = WindowTensors(store, samples)
    index = torch.tensor([len(samples) - 1, 0, 7, 7])
    longest = tensors.rows(index, LENGTH)
    for length in range(1, LENGTH + 1):
        rows, images = tensors.rows(index, length), tensors.images(index, length)
        assert (rows.dtype, rows.shape) == (torch.float32, (4, length, N_FEATURES))
        assert torch.equal(rows, longest[:, LENGTH - length :])
        assert images.shape == (4, N_FEATURES, 1, length)
        assert images.is_contiguous()
        assert torch.equal(images[:, :, 0], rows.transpose(1, 2))
        packed = samples.end[index.numpy()][:, None] + np.arange(-length + 1, 1)
        past = tensors.past(index, length)
        assert past.dtype == torch.float32
        np.testing.assert_array_equal(past.numpy(), store.past_return[packed].astype(np.float32))


def test_no_windows_and_no_past_returns_are_empty_batches() -> None:
    store, _ = random_store(np.ones((20, 1), bool))
    tensors = WindowTensors(store, store.samples(LENGTH, HORIZON))
    nothing = torch.arange(0)
    assert tensors.rows(nothing, LENGTH).shape == (0, LENGTH, N_FEATURES)
    assert tensors.images(nothing, LENGTH).shape == (0, N_FEATURES, 1, LENGTH)
    assert tensors.past(torch.arange(3), 0).shape == (3, 0)
    never, _ = random_store(np.zeros((20, 1), bool))
    empty = WindowTensors(never, never.samples(LENGTH, HORIZON))
    assert empty.rows(nothing, LENGTH).shape == (0, LENGTH, N_FEATURES)


def test_more_rows_than_the_samples_were_made_with_are_refused() -> None:
    store, _ = random_store(np.ones((20, 2), bool))
    tensors = WindowTensors(store, store.samples(LENGTH, HORIZON))
    for gather in (tensors.rows, tensors.images, tensors.past):
        with pytest.raises(ConfigError, match='6 rows of windows of 5 are asked for'):
            gather(torch.arange(2), LENGTH + 1)


def test_all_samples_of_a_store_share_one_packed_array_that_goes_with_the_store() -> None:
    store, _ = random_store(np.ones((20, 2), bool))
    samples = store.samples(LENGTH, HORIZON)
    early = WindowTensors(store, samples.where(samples.t < 10))
    late = WindowTensors(store, samples.where(samples.t >= 10))
    store.features[:] = 7
    for tensors in (early, late):
        assert (tensors.rows(torch.arange(2), LENGTH) == 7).all()
    gone = weakref.ref(store)
    del store
    gc.collect()
    assert gone() is None


@pytest.mark.filterwarnings('error')
def test_a_store_in_a_folder_gives_tensors_without_a_warning(tmp_path: Path) -> None:
    valid = np.ones((20, 2), bool)
    memory, features = random_store(valid)
    table = BarTable(
        memory.symbols,
        np.arange(20, dtype=np.int64),
        np.ones((20, 6, 2)),
        valid.astype(np.uint8),
    )
    frames_of = zip(features, table.status, strict=True)
    mapped = FrameStore.build(table, frames_of, memory.key, tmp_path)
    index = torch.arange(6)
    one, other = (
        WindowTensors(store, store.samples(LENGTH, HORIZON)).rows(index, LENGTH)
        for store in (memory, mapped)
    )
    assert torch.equal(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('free', [None, 0])
def test_a_gpu_gathers_the_same_bits_with_and_without_room_for_the_store(
    free: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if free is not None:
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (free, 2**34))
    store, _ = random_store(np.random.default_rng(1).random((80, 4)) < 0.8)
    samples = store.samples(LENGTH, HORIZON)
    index = torch.randperm(len(samples))
    host, device = WindowTensors(store, samples), WindowTensors(store, samples, 'cuda')
    for name in ('rows', 'images', 'past'):
        found = getattr(device, name)(index, LENGTH)
        assert found.device.type == 'cuda'
        assert torch.equal(found.cpu(), getattr(host, name)(index, LENGTH))


class Recorder:
    """An engine that keeps every window it is given; tiles of one window."""

    kind = 'recorder'

    def __init__(self, window: int, n_features: int) -> None:
        self._shape = (1, window, n_features)
        self.windows: list[bytes] = []

    def load(self, path: Path) -> None:
        """There is nothing to load."""

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        kind = np.dtype(np.float32)
        outputs = TensorSpec('log_return', kind, (1,)), TensorSpec('probabilities', kind, (1, 3))
        return (TensorSpec('window', kind, self._shape),), outputs

    def infer(self, inputs: Arrays) -> Arrays:
        self.windows.append(inputs['window'].tobytes())
        return {
            'log_return': np.zeros(1, np.float32),
            'probabilities': np.full((1, 3), 1 / 3, np.float32),
        }

    def close(self) -> None:
        """There is nothing to free."""


def test_real_series_with_suspensions_give_the_windows_that_a_decider_infers() -> None:
    table, _ = load_bars(shared_data() / 'ashare_daily/joinquant_qfq_limits_2005_2023')
    spec = default_spec()
    scaler = fit_scaler(table, spec, len(table) // 2)
    made = list(frames(FeaturePipeline(table.symbols, spec, scaler, None, 1, 1, 1), table))
    key = StoreKey(fingerprint(table), spec.id + scaler.id, spec.names, (1,))
    store = FrameStore.build(table, made, key)
    samples = store.samples(20, 40)
    tensors = WindowTensors(store, samples)

    short, long = Recorder(8, len(spec.names)), Recorder(20, len(spec.names))
    generators = [Generator('short', short, 1, 8), Generator('long', long, 1, 20)]
    strategy = StrategyConfig(0.5, -0.5, 1e9)
    decider = Decider(
        table.symbols, len(spec.names), 20, 40, generators, 'long', strategy, 'b', threads=1
    )
    decided = []
    for t, (features, status) in enumerate(made):
        close = table.values[t, 3]
        frame = FeatureFrame(
            'daily',
            1,
            t,
            int(table.event_time_ns[t]),
            0,
            'features',
            table.symbols,
            {'features': features, 'status': status, 'close': close},
        )
        _, predictions = decider.decide(frame)
        decided += [(t, s) for s in np.flatnonzero(np.isfinite(predictions.log_return[1]))]
    everything = torch.arange(len(samples))
    assert decided == list(zip(samples.t, samples.s, strict=True))
    assert [rows.tobytes() for rows in tensors.rows(everything, 20).numpy()] == long.windows
    assert [rows.tobytes() for rows in tensors.rows(everything, 8).numpy()] == short.windows
    suspended = table.status == BarStatus.SUSPENDED
    spans = [suspended[t - 25 : t, s].any() for t, s in decided]
    assert sum(spans) > 100  # windows across a suspension are among them
