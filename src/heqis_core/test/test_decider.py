# SPDX-License-Identifier: Apache-2.0
"""Decider: windows to decisions, independent of how many symbols share a frame."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle
from heqis_core.decider import Decider, Generator, mean_of
from heqis_core.decision import Action, Decisions, Predictions, Reason, reason_names
from heqis_core.engine import Arrays, TensorSpec
from heqis_core.errors import EngineError
from heqis_core.frame import FeatureFrame, Stage
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.strategy import StrategyConfig
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import write_test_bundle

N, SPLIT = 120, 60


@pytest.fixture(scope='module')
def table() -> BarTable:
    return simulated_table(20, N, seed=9)


@pytest.fixture(scope='module')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    until_ns = int(table.event_time_ns[SPLIT - 1])
    folder = tmp_path_factory.mktemp('bundles')
    return Bundle.load(write_test_bundle(folder, trained_until_ns=until_ns))


def frames(bundle: Bundle, table: BarTable) -> list[FeatureFrame]:
    assert bundle.encoder_path is not None
    pipeline = bundle.pipeline(table.symbols, open_engine(bundle.encoder_path))
    return [
        FeatureFrame(
            'daily',
            1,
            seq,
            int(table.event_time_ns[seq]),
            0,
            bundle.features_id('onnxruntime'),
            table.symbols,
            pipeline.step(seq, table.block(seq)),
        )
        for seq in range(N)
    ]


def decide_all(bundle: Bundle, table: BarTable) -> list[tuple[Decisions, Predictions]]:
    decider = Decider.of(bundle, table.symbols, open_engine)
    return [decider.decide(frame) for frame in frames(bundle, table)]


def test_a_symbol_gets_the_same_bits_alone_as_among_twenty(bundle, table):
    together = decide_all(bundle, table)
    for i in (0, 7, 19):
        alone_table = BarTable(
            (table.symbols[i],),
            table.event_time_ns,
            np.ascontiguousarray(table.values[:, :, [i]]),
            np.ascontiguousarray(table.status[:, [i]]),
        )
        for (all_of_them, _), (alone, _) in zip(
            together, decide_all(bundle, alone_table), strict=True
        ):
            assert alone.probabilities[0].tobytes() == all_of_them.probabilities[i].tobytes()
            assert alone.action[0] == all_of_them.action[i]
            assert alone.reasons[0] == all_of_them.reasons[i]


def test_the_first_windows_are_warming_and_then_every_valid_row_is_judged(bundle, table):
    length = bundle.manifest.window.length
    made = decide_all(bundle, table)
    valid = np.stack([frame.tensors['status'] == 1 for frame in frames(bundle, table)])
    seen = np.zeros(len(table.symbols), int)
    for k, (decisions, _) in enumerate(made):
        seen += valid[k]
        warming = valid[k] & (seen < length)
        assert (decisions.reasons[warming] == Reason.WARMING).all()
        judged = decisions.action != Action.NONE
        assert (valid[k][judged]).all()
        assert (seen[judged] >= length).all()
    assert any((d.action != Action.NONE).any() for d, _ in made)


def test_predictions_carry_every_generator_and_agree_with_the_served_one(bundle, table):
    for decisions, predictions in decide_all(bundle, table):
        assert predictions.generators == ('linear',)
        assert predictions.served == decisions.generator
        np.testing.assert_array_equal(predictions.probabilities[0], decisions.probabilities)
        np.testing.assert_array_equal(predictions.log_return[0], decisions.predicted_return)


def test_an_ensemble_is_the_mean_of_its_members_and_can_be_served(bundle, table):
    every = frames(bundle, table)
    manifest = bundle.manifest
    part = manifest.generators[0]
    engines = [open_engine(bundle.generator_path('linear')) for _ in range(3)]
    generators = [  # one file thrice: the mean must be the answer of each
        Generator(name, engine, part.tile, part.window)
        for name, engine in zip('abc', engines, strict=True)
    ]

    def decider(served: str, members: tuple[str, ...]) -> Decider:
        return Decider(
            table.symbols,
            len(manifest.features.names),
            manifest.window.length,
            manifest.window.horizon,
            generators,
            served,
            manifest.strategy,
            bundle.bundle_id,
            members,
        )

    ensemble, alone = decider('ensemble', ('c', 'a')), decider('b', ())
    judged = 0
    for frame in every:
        decisions, predictions = ensemble.decide(frame)
        expected, _ = alone.decide(frame)
        assert predictions.generators == ('a', 'b', 'c', 'ensemble')
        assert decisions.generator == predictions.served == 'ensemble'
        np.testing.assert_array_equal(decisions.probabilities, predictions.probabilities[3])
        # The mean of equal numbers is that number.
        np.testing.assert_allclose(decisions.probabilities, expected.probabilities, rtol=1e-6)
        np.testing.assert_array_equal(decisions.reasons, expected.reasons)
        judged += int((decisions.action != Action.NONE).sum())
    assert judged


def test_the_mean_of_answers_is_added_up_in_order():
    rng = np.random.default_rng(1)
    answers = rng.normal(size=(3, 50, 3)).astype(np.float32)
    found = mean_of(answers)
    assert found.dtype == np.float32
    expected = (answers[0] + answers[1] + answers[2]) / np.float32(3)
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(mean_of(np.array([[np.nan], [1]], np.float32)))


def test_warming_and_deciding_leave_the_same_windows(bundle, table):
    every = frames(bundle, table)
    warmed = Decider.of(bundle, table.symbols, open_engine)
    for frame in every[:-1]:
        warmed.warm(frame)
    decisions, _ = warmed.decide(every[-1])
    expected, _ = decide_all(bundle, table)[-1]
    assert decisions.probabilities.tobytes() == expected.probabilities.tobytes()


def test_the_last_frame_can_be_judged_once_more(bundle, table):
    every = frames(bundle, table)
    decider = Decider.of(bundle, table.symbols, open_engine)
    for frame in every[:-1]:
        decider.warm(frame)
    first, first_predictions = decider.decide(every[-1])
    again, predictions = decider.judge(every[-1])
    assert np.isfinite(first.score).any()
    assert again.probabilities.tobytes() == first.probabilities.tobytes()
    np.testing.assert_array_equal(again.action, first.action)
    np.testing.assert_array_equal(predictions.log_return, first_predictions.log_return)


@pytest.fixture
def always_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let even little work be shared out."""
    monkeypatch.setattr('heqis_core.engine._WORTH_NS', 0)


@pytest.mark.parametrize('threads', [2, 3, 5])
@pytest.mark.parametrize('n', [1, 3, 16, 17, 40])
def test_the_number_of_threads_changes_no_bit(n, threads, bundle, always_shared):
    table = simulated_table(n, N, seed=n)
    every = frames(bundle, table)
    one, many = (Decider.of(bundle, table.symbols, open_engine, k) for k in (1, threads))
    judged = 0
    for frame in every:
        (a, p), (b, q) = one.decide(frame), many.decide(frame)
        assert p.probabilities.tobytes() == q.probabilities.tobytes()
        assert p.log_return.tobytes() == q.log_return.tobytes()
        assert a.action.tobytes() == b.action.tobytes()
        judged += int((a.action != Action.NONE).sum())
    assert judged
    one.close()
    many.close()


F = 2


class SumEngine:
    """Engine that adds up each window, keeps the tiles it was given, and can fail."""

    kind = 'sum'

    def __init__(self, tile: int, window: int) -> None:
        """Make an engine of that shape."""
        self.tiles: list[np.ndarray] = []
        self.broken = False
        self.tile = tile
        self._shape = (tile, window, F)

    def load(self, path: Path) -> None:
        """Do nothing."""

    def specs(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """Return the specs."""
        f32, tile = np.dtype(np.float32), self.tile
        outputs = (
            TensorSpec('log_return', f32, (tile,)),
            TensorSpec('probabilities', f32, (tile, 3)),
        )
        return (TensorSpec('window', f32, self._shape),), outputs

    def infer(self, inputs: Arrays) -> Arrays:
        """Return the sum of each window."""
        if self.broken:
            raise EngineError('sum: broken')
        tile = inputs['window'].copy()
        self.tiles.append(tile)
        sums = tile.reshape(len(tile), -1).sum(axis=1)
        return {'log_return': sums, 'probabilities': np.repeat(sums[:, None], 3, axis=1)}

    def close(self) -> None:
        """Do nothing."""


def sum_decider(n: int, tile: int, threads: int) -> tuple[Decider, dict[int, SumEngine]]:
    engines = {2: SumEngine(tile, 2), 4: SumEngine(tile + 1, 4)}
    generators = [Generator(f'w{w}', e, e.tile, w) for w, e in engines.items()]
    symbols = [f's{i}' for i in range(n)]
    strategy = StrategyConfig(0.5, -0.5)
    return Decider(symbols, F, 4, 6, generators, 'w4', strategy, 'b', (), threads), engines


def masked_frames(valid: np.ndarray) -> Iterator[FeatureFrame]:
    """Yield frames whose rows are different small numbers where valid, and NaN elsewhere."""
    n_times, n = valid.shape
    symbols = tuple(f's{i}' for i in range(n))
    for t in range(n_times):
        rows = 1 + np.arange(t * n * F, (t + 1) * n * F, dtype=np.float32).reshape(n, F)
        rows[~valid[t]] = np.nan
        status = np.where(valid[t], 1, 4).astype(np.uint8)
        tensors = {'features': rows, 'status': status, 'close': np.ones(n)}
        yield FeatureFrame('s', 1, t, t, 0, 'f', symbols, tensors)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 9)), fill=st.nothing()),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_tiles_hold_the_windows_of_what_is_ready_and_zeros(valid, tile, threads):
    n = valid.shape[1]
    decider, engines = sum_decider(n, tile, threads)
    seen: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(n)]  # (seq, row) by symbol
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('heqis_core.engine._WORTH_NS', 0)
        for frame in masked_frames(valid):
            for s in np.flatnonzero(valid[frame.seq]):
                seen[s].append((frame.seq, frame.tensors['features'][s]))
            ready = [
                s
                for s in np.flatnonzero(valid[frame.seq])
                if len(seen[s]) >= 4 and seen[s][-4][0] > frame.seq - 6
            ]
            _, predictions = decider.decide(frame)
            for g, (window, engine) in enumerate(engines.items()):
                expected = [np.stack([row for _, row in seen[s][-window:]]) for s in ready]
                sums = np.full(n, np.nan, np.float32)
                sums[ready] = [w.reshape(1, -1).sum(axis=1)[0] for w in expected]
                np.testing.assert_array_equal(predictions.log_return[g], sums)
                assert len(engine.tiles) == -(-len(ready) // engine.tile)
                rows = [row for given_tile in engine.tiles for row in given_tile]
                full = [row.tobytes() for row in rows if row.any()]
                assert sorted(full) == sorted(w.tobytes() for w in expected)
                assert len(rows) - len(full) == -len(ready) % engine.tile
                engine.tiles.clear()
    decider.close()


def test_an_engine_that_fails_is_heard_of_and_the_next_frame_is_judged(always_shared):
    decider, engines = sum_decider(9, 2, 3)
    *before, last = masked_frames(np.ones((7, 9), bool))
    for frame in before[:-1]:
        decider.decide(frame)
    engines[2].broken = True
    with pytest.raises(EngineError, match='sum: broken'):
        decider.decide(before[-1])
    engines[2].broken = False
    decisions, predictions = decider.decide(last)
    assert np.isfinite(predictions.log_return).all()
    assert (decisions.action != Action.NONE).all()
    decider.close()


def test_close_ends_every_thread(always_shared):
    before = set(threading.enumerate())
    decider, _ = sum_decider(9, 2, 3)
    for frame in masked_frames(np.ones((5, 9), bool)):
        decider.decide(frame)
    assert set(threading.enumerate()) > before
    decider.close()
    assert set(threading.enumerate()) <= before


def test_a_generator_of_another_shape_is_refused_and_those_loaded_are_freed(bundle, table):
    with pytest.raises(EngineError, match=r'not one float32 input \(2, 4, 3\)'):
        Decider(
            *(['s0'], 3, 4, 6, [Generator('w4', SumEngine(2, 4), 2, 4)], 'w4'),
            *(StrategyConfig(0.5, -0.5), 'b'),
        )
    closed = []

    class Wrong(OrtEngine):
        def close(self) -> None:
            closed.append(self)
            super().close()

    def wrong(_path: Path) -> Wrong:
        engine = Wrong()
        assert bundle.encoder_path is not None
        engine.load(bundle.encoder_path)
        return engine

    with pytest.raises(EngineError, match='not one float32 input'):
        Decider.of(bundle, table.symbols, wrong)
    assert len(closed) == 1


def test_stamps_go_on_from_the_frame_without_changing_it(bundle, table):
    frame = frames(bundle, table)[0]
    decisions, _ = Decider.of(bundle, table.symbols, open_engine).decide(frame)
    assert decisions.stamps[Stage.CLEANED] == frame.stamps[Stage.CLEANED]
    assert 0 < decisions.stamps[Stage.INFERRED] <= decisions.stamps[Stage.DECIDED]
    assert frame.stamps[Stage.DECIDED] == 0


def test_validity_follows_the_bundle(bundle, table):
    decisions, _ = decide_all(bundle, table)[0]
    seconds = (decisions.valid_until_ns - decisions.event_time_ns) / 1e9
    np.testing.assert_array_equal(seconds, bundle.manifest.strategy.valid_for_s)


def test_reason_names_are_lower_case_and_lowest_bit_first():
    assert reason_names(Reason.UP | Reason.GAP) == ('gap', 'up')
    assert reason_names(0) == ()


def test_refusing_touches_signals_alone(bundle, table):
    decisions = next(d for d, _ in decide_all(bundle, table) if d.is_signal().any())
    refused = decisions.refuse(np.ones(len(table.symbols), bool), Reason.KILL_SWITCH)
    was = decisions.is_signal()
    assert not refused.is_signal().any()
    assert (refused.reasons[was] & Reason.KILL_SWITCH).all()
    assert np.isnan(refused.target_position[was]).all()
    np.testing.assert_array_equal(refused.reasons[~was], decisions.reasons[~was])
    np.testing.assert_array_equal(refused.score, decisions.score)
