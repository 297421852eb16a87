# SPDX-License-Identifier: Apache-2.0
"""Judge: whatever happens to frames on the way, the decisions are those of a quiet run."""

from __future__ import annotations

import random

import msgspec
import numpy as np
import pytest

from heqis_compute.judge import Answer, Judge, Served
from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle, write_bundle
from heqis_core.decision import Action, Reason
from heqis_core.errors import ConfigError
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import open_engine
from heqis_core.link import MissedReply
from heqis_core.manifest import Conversion, converted_file
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import bundle_parts, write_test_bundle

SPLIT = 60
N = 140


@pytest.fixture(scope='module')
def table() -> BarTable:
    return simulated_table(5, N, seed=3)


@pytest.fixture(scope='module')
def bundle(table: BarTable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    until_ns = int(table.event_time_ns[SPLIT - 1])
    folder = tmp_path_factory.mktemp('bundles')
    return Bundle.load(write_test_bundle(folder, trained_until_ns=until_ns))


@pytest.fixture(scope='module')
def frames(table: BarTable, bundle: Bundle) -> list[FeatureFrame]:
    assert bundle.encoder_path is not None
    pipeline = bundle.pipeline(table.symbols, open_engine(bundle.encoder_path))
    features_id = bundle.features_id('onnxruntime')
    return [
        FeatureFrame(
            'daily',
            1,
            seq,
            int(table.event_time_ns[seq]),
            0,
            features_id,
            table.symbols,
            pipeline.step(seq, table.block(seq)),
        )
        for seq in range(N)
    ]


class Gateway:
    """Answers requests as the gateway's ring does."""

    def __init__(self, frames: list[FeatureFrame], first_open: int, oldest: int = 0) -> None:
        self.frames, self.first_open, self.oldest = frames, first_open, oldest

    def serve(self, judge: Judge) -> list[Answer]:
        out: list[Answer] = []
        while (question := judge.intake.wanted()) is not None:
            _, first, last = question
            held = self.frames[max(first, self.oldest) : last + 1]
            epoch = self.frames[0].epoch
            reply = MissedReply(epoch, self.oldest, len(self.frames), self.first_open, held)
            out += judge.on_reply(reply)
        return out


def run(judge: Judge, arrivals: list[FeatureFrame], gateway: Gateway) -> list[Answer]:
    out: list[Answer] = []
    for frame in arrivals:
        out += judge.on_frame(frame)
        out += gateway.serve(judge)
    return out


def said(answers: list[Answer]) -> dict[int, tuple[bytes, ...]]:
    """Return what counts of each frame's decisions; fail if one frame was answered in two ways."""
    result: dict[int, tuple[bytes, ...]] = {}
    for answer in answers:
        d = answer.decisions
        columns = (d.action, d.reasons, d.score, d.probabilities, d.predicted_return)
        value = tuple(column.tobytes() for column in columns)
        assert result.setdefault(d.seq, value) == value
    return result


@pytest.fixture(scope='module')
def quiet(bundle: Bundle, frames: list[FeatureFrame]) -> dict[int, tuple[bytes, ...]]:
    answers = run(Judge(bundle, open_engine), frames[SPLIT:], Gateway(frames, SPLIT))
    assert [a.decisions.seq for a in answers] == list(range(SPLIT, N))
    return said(answers)


def test_one_decision_for_each_symbol_and_every_none_says_why(bundle, frames, table):
    answers = run(Judge(bundle, open_engine), frames, Gateway(frames, 0))
    actions = np.concatenate([a.decisions.action for a in answers])
    reasons = np.concatenate([a.decisions.reasons for a in answers])
    assert len(actions) == N * len(table.symbols)
    assert (reasons != 0).all()
    assert set(actions.tolist()) == {Action.NONE, Action.HOLD, Action.BUY, Action.SELL}
    suspended = np.concatenate([frame.tensors['status'] for frame in frames]) == 2
    assert suspended.any()
    assert (reasons[suspended] == Reason.SUSPENDED).all()


def test_loss_doubling_and_disorder_change_no_decision(bundle, frames, quiet):
    for seed in range(5):
        rng = random.Random(seed)
        arrivals = [f for f in frames[SPLIT:-1] for _ in range(rng.choice([0, 1, 1, 2]))]
        for _ in range(30):
            i = rng.randrange(len(arrivals) - 1)
            arrivals[i], arrivals[i + 1] = arrivals[i + 1], arrivals[i]
        judge = Judge(bundle, open_engine)
        answers = run(judge, [*arrivals, frames[-1]], Gateway(frames, SPLIT))
        assert said(answers) == quiet
        assert judge.counters.repeated > 0


@pytest.mark.parametrize('killed_at', [SPLIT, SPLIT + 1, SPLIT + 33, N - 1])
def test_a_compute_board_that_starts_again_decides_as_if_it_had_never_been_away(
    killed_at, bundle, frames, quiet
):
    before = run(Judge(bundle, open_engine), frames[SPLIT:killed_at], Gateway(frames, SPLIT))
    durable = max(SPLIT, killed_at - 4)
    gateway = Gateway(frames, first_open=durable)
    after = run(Judge(bundle, open_engine), frames[killed_at:], gateway)
    assert said([*before, *after]) == quiet
    assert min(said(after)) == durable


def test_a_gateway_that_starts_again_may_send_all_over_and_changes_nothing(bundle, frames, quiet):
    judge = Judge(bundle, open_engine)
    before = run(judge, frames[SPLIT : SPLIT + 40], Gateway(frames, SPLIT))
    second = [
        FeatureFrame('daily', 2, f.seq, f.event_time_ns, 0, f.features_id, f.symbols, f.tensors)
        for f in frames
    ]
    after = run(judge, second[SPLIT + 20 :], Gateway(second, SPLIT + 20))
    assert said([*before, *after]) == quiet


def test_frames_that_are_gone_leave_a_gap_and_no_signal_reaches_across_it(bundle, frames, quiet):
    judge = Judge(bundle, open_engine)
    answers = run(judge, frames[SPLIT : SPLIT + 10], Gateway(frames, SPLIT))
    answers += run(judge, frames[SPLIT + 20 :], Gateway(frames, SPLIT, oldest=SPLIT + 18))
    by_seq = {a.decisions.seq: a.decisions for a in answers}
    assert judge.intake.counters.lost == 8
    window = bundle.manifest.window.length
    for seq in range(SPLIT + 18, SPLIT + 18 + window - 1):
        judged = frames[seq].tensors['status'] == 1
        assert (by_seq[seq].action == Action.NONE).all()
        assert (by_seq[seq].reasons[judged] == Reason.GAP).all()
    late = SPLIT + 18 + bundle.manifest.window.horizon
    mine = said(answers)
    assert {seq: mine[seq] for seq in range(late, N)} == {s: quiet[s] for s in range(late, N)}


def test_frames_of_another_feature_spec_are_refused_with_both_ids(bundle, frames):
    judge = Judge(bundle, open_engine)
    f = frames[SPLIT]
    foreign = FeatureFrame('daily', 1, f.seq, f.event_time_ns, 0, '0' * 16, f.symbols, f.tensors)
    assert judge.on_frame(foreign) == []
    assert judge.counters.foreign == 1
    assert '0' * 16 in judge.foreign_text
    assert bundle.features_id('onnxruntime') in judge.foreign_text


def test_a_swapped_bundle_answers_from_the_next_frame_on_with_warm_windows(
    bundle, frames, quiet, tmp_path
):
    judge = Judge(bundle, open_engine)
    with pytest.raises(ConfigError, match='other features'):
        judge.check_features(Bundle.load(write_test_bundle(tmp_path, seed=1)))
    answers = run(judge, frames[SPLIT : SPLIT + 20], Gateway(frames, SPLIT))
    other = Bundle.load(write_test_bundle(tmp_path, valid_for_s=60.0))
    judge.check_features(other)
    new = Served(other, open_engine)
    new.load(frames[0].symbols)
    assert judge.take_over(new) is None
    answers += run(judge, frames[SPLIT + 20 :], Gateway(frames, SPLIT))
    # The same models: only who is named and how long it is good may differ.
    assert said(answers) == quiet
    ids = [a.decisions.bundle_id for a in answers]
    assert ids == [bundle.bundle_id] * 20 + [other.bundle_id] * (len(ids) - 20)


def test_a_frame_from_before_a_swap_is_answered_again_as_it_was(bundle, frames, tmp_path):
    judge = Judge(bundle, open_engine)
    before = run(judge, frames[SPLIT : SPLIT + 20], Gateway(frames, SPLIT))
    new = Served(Bundle.load(write_test_bundle(tmp_path, valid_for_s=60.0)), open_engine)
    new.load(frames[0].symbols)
    judge.take_over(new)
    again = judge.on_frame(frames[SPLIT + 19])
    assert [a.decisions for a in again] == [before[-1].decisions]
    assert again[0].decisions.bundle_id == bundle.bundle_id


def test_a_converted_bundle_takes_over_and_the_way_back_depends_on_the_gateway_s_encoder(
    bundle, frames, tmp_path
):
    manifest, files = bundle_parts()
    name = converted_file('encoder', 'rk3568', 'fp16')
    part = Conversion('encoder', 'rk3568', 'fp16', name, 'a tool 1.0', {})
    manifest = msgspec.structs.replace(manifest, conversions=(part,))
    converted = Bundle.load(write_bundle(tmp_path, manifest, {**files, name: b'model'}))
    # No frame has come (a board without symbols, say): either may follow the other.
    Judge(converted, open_engine).check_features(bundle)
    judge = Judge(bundle, open_engine)
    judge.on_frame(frames[0])
    judge.check_features(converted)
    judge.take_over(Served(converted, open_engine))
    judge.check_features(bundle)
    # A gateway that starts again with its encoder on the NPU.
    f = frames[1]
    on_npu = converted.features_id('rknn', name)
    again = FeatureFrame('daily', 2, f.seq, f.event_time_ns, 0, on_npu, f.symbols, f.tensors)
    judge.on_frame(again)
    assert judge.counters.foreign == 0
    with pytest.raises(ConfigError, match='other features'):
        judge.check_features(bundle)
