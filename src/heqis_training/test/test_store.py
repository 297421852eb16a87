# SPDX-License-Identifier: Apache-2.0
"""Frame stores: the frames and labels of the boards, packed; whole or refused by name."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.bars import CLOSE, BarStatus, BarTable
from heqis_core.errors import ConfigError, DataError
from heqis_core.features.spec import default_spec
from heqis_core.io.files import load_bars
from heqis_core.pipeline import FeaturePipeline
from heqis_core.testing import shared_data, simulated_table
from heqis_core.windows import window_index
from heqis_training import store as store_module
from heqis_training.dataset import fingerprint, fit_scaler
from heqis_training.store import STORE_FILE, Frame, FrameStore, StoreKey, frames

ARRAYS = ('features', 't', 's', 'close', 'past_return', 'future_return', 'label_row')
N_FEATURES = 3


class Market:
    """A random table and random frames of it: a frame is VALID at most where the bar is."""

    def __init__(self, shape: tuple[int, int], share: float = 0.8, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        n_times, n_symbols = shape
        bar = rng.random(shape) < share
        prices = np.exp(rng.normal(0, 1, (n_times, 6, n_symbols)))
        self.table = BarTable(
            tuple(f'S{s}' for s in range(n_symbols)),
            np.arange(n_times, dtype=np.int64) * 86_400_000_000_000,
            np.where(bar[:, None], prices, np.nan),
            np.where(bar, BarStatus.VALID, BarStatus.SUSPENDED).astype(np.uint8),
        )
        self.valid = bar & (rng.random(shape) < 0.9)
        status = np.where(self.valid, BarStatus.VALID, BarStatus.WARMING)
        self.status = np.where(bar, status, self.table.status).astype(np.uint8)
        self.features = rng.normal(size=(*shape, N_FEATURES)).astype(np.float32)

    def frames(self) -> Iterator[Frame]:
        return iter(list(zip(self.features, self.status, strict=True)))

    def key(self, *horizons: int) -> StoreKey:
        return StoreKey(fingerprint(self.table), 'spec1', ('a', 'b', 'c'), horizons or (1,))

    def store(self, *horizons: int, folder: Path | None = None) -> FrameStore:
        return FrameStore.build(self.table, self.frames(), self.key(*horizons), folder)


@st.composite
def markets(draw: st.DrawFn) -> Market:
    shape = draw(st.integers(1, 60)), draw(st.integers(1, 4))
    return Market(shape, draw(st.floats(0, 1)), draw(st.integers(0, 999)))


@given(market=markets(), far=st.integers(2, 7))
@settings(deadline=None)  # the first call compiles
def test_rows_are_the_valid_frames_symbol_after_symbol_with_what_came_before_and_after(
    market: Market, far: int
) -> None:
    store, row = market.store(1, far), 0
    for s in range(len(market.table.symbols)):
        bars = np.flatnonzero(market.table.status[:, s] == BarStatus.VALID).tolist()
        close = market.table.values[:, CLOSE, s]
        for t in np.flatnonzero(market.valid[:, s]).tolist():
            k = bars.index(t)
            assert store.features[row].tobytes() == market.features[t, s].tobytes()
            assert (store.t[row], store.s[row], store.close[row]) == (t, s, close[t])
            before = math.log(close[t] / close[bars[k - 1]]) if k else 0.0
            assert store.past_return[row] == pytest.approx(before)
            for column, ahead in enumerate((1, far)):
                there = k + ahead < len(bars)
                label = math.log(close[bars[k + ahead]] / close[t]) if there else math.nan
                assert store.future_return[row, column] == pytest.approx(label, nan_ok=True)
            assert store.label_row[row] == (bars[k + far] if k + far < len(bars) else -1)
            row += 1
    assert row == len(store)


@given(market=markets(), chunk=st.sampled_from([1, 100, 2**20]))
@settings(deadline=None, max_examples=40)
def test_a_folder_and_pieces_of_any_size_give_the_bits_of_memory(
    market: Market, chunk: int
) -> None:
    expected = market.store(1, 4)
    with TemporaryDirectory(ignore_cleanup_errors=True) as name, pytest.MonkeyPatch.context() as m:
        m.setattr(store_module, 'CHUNK_BYTES', chunk)
        built = market.store(1, 4, folder=Path(name))
        opened = FrameStore.open(name, market.key(1, 4))
        for array in ARRAYS:
            for found in (built, opened):
                one, other = getattr(found, array), getattr(expected, array)
                assert (one.dtype, one.shape) == (other.dtype, other.shape)
                assert one.tobytes() == other.tobytes()
        assert opened.symbols == market.table.symbols
        assert sorted(path.name for path in Path(name).iterdir()) == sorted(
            [*(f'{array}.npy' for array in ARRAYS), STORE_FILE]
        )
        for array in ARRAYS:
            whole = np.load(Path(name) / f'{array}.npy')
            assert whole.tobytes() == getattr(expected, array).tobytes()


@given(market=markets(), length=st.integers(1, 6), more=st.integers(0, 8))
@settings(deadline=None)  # the first call compiles
def test_samples_are_the_windows_of_window_index_in_its_order(
    market: Market, length: int, more: int
) -> None:
    store = market.store(1, 2)
    samples = store.samples(length, length + more)
    t, s, rows = window_index(market.valid, length, length + more)
    np.testing.assert_array_equal(samples.t, t)
    np.testing.assert_array_equal(samples.s, s)
    packed = samples.end[:, None] + np.arange(-length + 1, 1)
    np.testing.assert_array_equal(store.t[packed], rows)
    np.testing.assert_array_equal(store.s[packed], np.repeat(s[:, None], length, axis=1))
    np.testing.assert_array_equal(samples.label_row, store.label_row[samples.end])
    np.testing.assert_array_equal(samples.log_return, store.future_return[samples.end])


def test_the_newest_bar_of_each_symbol_has_a_window_and_no_label_yet() -> None:
    market = Market((30, 3), share=1)
    market.status[:], market.valid[:] = BarStatus.VALID, True
    samples = market.store(1, 5).samples(4, 8)
    newest = samples.where(samples.t == 29)
    assert newest.s.tolist() == [0, 1, 2]
    assert not newest.labelled.any()
    assert np.isnan(newest.log_return).all()
    nearly = samples.where(samples.t == 26)  # the next bar is there, the fifth is not
    assert np.isfinite(nearly.log_return[:, 0]).all()
    assert not nearly.labelled.any()


def test_more_event_times_than_a_small_integer_holds_keep_their_order() -> None:
    market = Market((70_000, 2), share=0.5)
    samples = market.store().samples(2, 4)
    t, s, _ = window_index(market.valid, 2, 4)
    np.testing.assert_array_equal(samples.t, t)
    np.testing.assert_array_equal(samples.s, s)


@pytest.mark.parametrize(('length', 'horizon'), [(0, 4), (5, 4)])
def test_windows_that_cannot_be_are_refused(length: int, horizon: int) -> None:
    with pytest.raises(ConfigError, match=f'length = {length}, horizon = {horizon}'):
        Market((9, 1)).store().samples(length, horizon)


def test_a_horizon_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'horizons are \[1, 0\]'):
        Market((9, 1)).store(1, 0)


@pytest.mark.parametrize(
    ('other', 'said'),
    [
        ({'fingerprint': 'f' * 64}, 'fingerprint .*: .*, expected ffffffffffffffff;'),
        ({'features_id': 'spec2'}, 'features_id .*: spec1, expected spec2;'),
        ({'names': ('a', 'd')}, r"names .*: not expected \['b', 'c'\], missing \['d'\];"),
        ({'names': ('b', 'a', 'c')}, r"names .*: \('a', 'b', 'c'\), expected \('b', 'a', 'c'\);"),
        ({'horizons': (1, 5)}, r'horizons .*: not expected \[\], missing \[5\];'),
    ],
)
def test_a_store_of_something_else_is_refused_with_the_difference(
    other: dict[str, object], said: str, tmp_path: Path
) -> None:
    market = Market((20, 2))
    market.store(folder=tmp_path)
    key = {name: getattr(market.key(), name) for name in StoreKey.__struct_fields__}
    with pytest.raises(DataError, match=said):
        FrameStore.open(tmp_path, StoreKey(**(key | other)))


def test_no_store_a_damaged_one_and_one_of_another_version_are_refused(tmp_path: Path) -> None:
    market = Market((20, 2))
    with pytest.raises(DataError, match=r'store\.json: no frame store: .* build it'):
        FrameStore.open(tmp_path, market.key())
    market.store(folder=tmp_path)
    about = tmp_path / STORE_FILE
    text = about.read_text()
    about.write_text(text[: len(text) // 2])
    with pytest.raises(DataError, match='no frame store'):
        FrameStore.open(tmp_path, market.key())
    about.write_text(json.dumps(json.loads(text) | {'format': 99}))
    with pytest.raises(DataError, match='format 99, expected 1; build it again'):
        FrameStore.open(tmp_path, market.key())
    about.write_text(json.dumps(json.loads(text) | {'rows': 5}))
    with pytest.raises(DataError, match=r'features\.npy: float32 .* expected float32 \(5, 3\)'):
        FrameStore.open(tmp_path, market.key())
    about.write_text(text)
    close = tmp_path / 'close.npy'
    close.write_bytes(close.read_bytes()[:-8])
    with pytest.raises(DataError, match=r'close\.npy: .*; build the frame store again'):
        FrameStore.open(tmp_path, market.key())
    close.unlink()
    with pytest.raises(DataError, match=r'close\.npy: .*; build the frame store again'):
        FrameStore.open(tmp_path, market.key())


def test_writing_into_the_arrays_of_a_store_leaves_its_files_alone(tmp_path: Path) -> None:
    market = Market((20, 2))
    before = market.store(folder=tmp_path).features.copy()
    FrameStore.open(tmp_path, market.key()).features[:] = 7
    np.testing.assert_array_equal(FrameStore.open(tmp_path, market.key()).features, before)


def test_a_build_that_fails_leaves_the_store_that_was_there_and_no_partial_file(
    tmp_path: Path,
) -> None:
    market = Market((20, 2))
    before = market.store(folder=tmp_path).features.tobytes()
    files = sorted(tmp_path.iterdir())

    def broken() -> Iterator[Frame]:
        yield from list(market.frames())[:10]
        raise RuntimeError('the engine is gone')

    with pytest.raises(RuntimeError, match='the engine is gone'):
        FrameStore.build(market.table, broken(), market.key(), tmp_path)
    assert sorted(tmp_path.iterdir()) == files
    assert FrameStore.open(tmp_path, market.key()).features.tobytes() == before


def test_a_store_that_could_be_put_in_its_place_in_part_only_is_no_store(tmp_path: Path) -> None:
    market = Market((20, 2))
    market.store(folder=tmp_path)
    close = tmp_path / 'close.npy'
    close.unlink()
    close.mkdir()  # the arrays before it are replaced, it cannot be
    with pytest.raises(DataError, match='needs 0'):
        market.store(folder=tmp_path)
    with pytest.raises(DataError, match='no frame store'):
        FrameStore.open(tmp_path, market.key())


def test_a_store_is_there_until_it_is_removed_and_nothing_else_goes_with_it(
    tmp_path: Path,
) -> None:
    market, folder = Market((20, 2)), tmp_path / 'frames'
    assert not FrameStore.is_there(folder, market.key())
    FrameStore.remove(folder)  # there is nothing to remove
    market.store(folder=folder)
    assert FrameStore.is_there(folder, market.key())
    assert not FrameStore.is_there(folder, market.key(1, 2))
    other = folder / 'notes.txt'
    other.write_text('kept')
    FrameStore.remove(folder)
    assert not FrameStore.is_there(folder, market.key())
    assert list(folder.iterdir()) == [other]
    other.unlink()
    market.store(folder=folder)
    FrameStore.remove(folder)
    assert not folder.exists()


def test_a_disk_that_is_full_is_an_error_that_says_how_much_is_needed(tmp_path: Path) -> None:
    resource = pytest.importorskip('resource', reason='limits of a process are POSIX')
    market = Market((400, 20), share=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(DataError, match=r'up to 8000 rows needs 0\.5 MB: .*; make room'):
            market.store(folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_frames_that_do_not_fit_the_table_are_refused() -> None:
    market, other = Market((20, 2)), Market((20, 2), seed=1)
    key = market.key()
    made = list(market.frames())
    with pytest.raises(DataError, match='19 frames of a table of 20 event times'):
        FrameStore.build(market.table, made[:-1], key)
    with pytest.raises(DataError, match='more frames than the 20 event times'):
        FrameStore.build(market.table, [*made, made[0]], key)
    with pytest.raises(DataError, match=r'VALID for S\d, whose bar is not'):
        FrameStore.build(market.table, other.frames(), key)
    with pytest.raises(DataError, match=r'features \(2, 3\) and status \(2,\); expected \(2, 4\)'):
        FrameStore.build(
            market.table, market.frames(), StoreKey('', '', ('a', 'b', 'c', 'd'), (1,))
        )


def test_a_store_in_a_folder_is_built_without_ever_holding_all_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, 'CHUNK_BYTES', 2**17)
    n_times, n_symbols, n_features = 1500, 20, 40
    market = Market((n_times, n_symbols), share=1)
    names = tuple(f'f{k}' for k in range(n_features))
    key = StoreKey(fingerprint(market.table), 'spec1', names, (1,))

    def streamed() -> Iterator[Frame]:
        for t in range(n_times):
            yield np.full((n_symbols, n_features), t, np.float32), market.status[t]

    tracemalloc.start()
    try:
        store = FrameStore.build(market.table, streamed(), key, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(store) > 0.8 * n_times * n_symbols
    assert peak < store.features.nbytes / 4
    np.testing.assert_array_equal(store.features[:, -1], store.t.astype(np.float32))


def test_a_store_of_real_series_with_suspensions_has_the_frames_of_the_pipeline(
    tmp_path: Path,
) -> None:
    table, report = load_bars(shared_data() / 'ashare_daily/joinquant_qfq_limits_2005_2023')
    assert report.suspended > 100
    spec = default_spec()
    scaler = fit_scaler(table, spec, len(table) // 2)

    def pipeline() -> FeaturePipeline:
        return FeaturePipeline(table.symbols, spec, scaler, None, 1, 1, 1)

    key = StoreKey(fingerprint(table), spec.id + scaler.id, spec.names, (1, 5))
    store = FrameStore.build(table, frames(pipeline(), table), key, tmp_path)
    features, status = pipeline().run(table)
    valid = status == BarStatus.VALID
    assert store.features.tobytes() == features.transpose(1, 0, 2)[valid.T].tobytes()
    for length in (1, 20, 60):
        for horizon in (length, 2 * length):
            samples = store.samples(length, horizon)
            t, s, rows = window_index(valid, length, horizon)
            assert (samples.t.tolist(), samples.s.tolist()) == (t.tolist(), s.tolist())
            packed = samples.end[:, None] + np.arange(-length + 1, 1)
            np.testing.assert_array_equal(store.t[packed], rows)
    _returns_agree_with_the_closes(table, store)


def _returns_agree_with_the_closes(table: BarTable, store: FrameStore) -> None:
    """See that the label row of each row has the close that the label leads to."""
    known = store.label_row >= 0
    level: npt.NDArray[np.float64] = np.log(table.values[:, CLOSE])
    then = level[store.label_row[known], store.s[known]]
    np.testing.assert_allclose(
        store.future_return[known, 1], then - np.log(store.close[known]), rtol=0, atol=1e-12
    )
    assert known.mean() > 0.99


def test_the_simulated_pipeline_gives_the_same_store_again(tmp_path: Path) -> None:
    table = simulated_table(6, 150, seed=2)
    spec = default_spec()
    scaler = fit_scaler(table, spec, 100)
    key = StoreKey(fingerprint(table), spec.id + scaler.id, spec.names, (1,))
    built = []
    for folder in (None, tmp_path):
        pipeline = FeaturePipeline(table.symbols, spec, scaler, None, 1, 1, 1)
        built.append(FrameStore.build(table, frames(pipeline, table), key, folder))
    assert len(built[0]) > 300
    assert built[0].features.tobytes() == built[1].features.tobytes()
