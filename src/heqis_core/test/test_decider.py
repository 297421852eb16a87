# SPDX-License-Identifier: Apache-2.0
"""Decider: windows to decisions, independent of how many symbols share a frame."""

from __future__ import annotations

import numpy as np
import pytest

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle
from heqis_core.decider import Decider, Generator, mean_of
from heqis_core.decision import Action, Decisions, Predictions, Reason, reason_names
from heqis_core.frame import FeatureFrame, Stage
from heqis_core.io.ort_engine import open_engine
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
