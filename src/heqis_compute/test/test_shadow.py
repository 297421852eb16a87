# SPDX-License-Identifier: Apache-2.0
"""Shadow: a decider that looks on judges as if it were served, and is compared soundly."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_compute.judge import Judge
from heqis_compute.shadow import Shadow
from heqis_compute.testing_swap import Frames, write_pair
from heqis_core.bundle import Bundle
from heqis_core.decider import Decider
from heqis_core.decision import Action
from heqis_core.engine import Arrays
from heqis_core.errors import ConfigError, EngineError
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.link import MissedReply

START = 30


@pytest.fixture(scope='module')
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_pair(tmp_path_factory.mktemp('bundles'))


@pytest.fixture(scope='module')
def frames(pair: tuple[Path, Path]) -> Frames:
    return Frames(pair[0], distinct=100)


class Stream:
    """A judge of the first bundle that has decided START frames, and who serves its questions."""

    def __init__(self, path: Path, frames: Frames) -> None:
        self.frames, self.epoch, self.oldest, self.first_open = frames, 7, 0, 0
        self.judge = Judge(Bundle.load(path), open_engine)
        for seq in range(START):
            self.send(seq)

    def frame(self, seq: int) -> FeatureFrame:
        frame = self.frames[seq]
        frame.epoch = self.epoch
        return frame

    def send(self, seq: int) -> None:
        self.judge.on_frame(self.frame(seq))
        while (question := self.judge.intake.wanted()) is not None:
            _, first, last = question
            held = [self.frame(s) for s in range(max(first, self.oldest), last + 1)]
            reply = MissedReply(self.epoch, self.oldest, seq + 1, self.first_open, held)
            self.judge.on_reply(reply)


def shadow_of(
    path: Path, stream: Stream, n: int, make: Callable[[Path], Any] = open_engine
) -> Shadow:
    symbols = stream.judge.served.symbols
    assert symbols is not None
    return Shadow(Decider.of(Bundle.load(path), symbols, make), n)


def look_on(shadow: Shadow) -> None:
    while not shadow.done:
        shadow.step(0.0)


def test_the_agreement_is_that_of_two_plain_deciders_over_the_last_frame_and_the_next(
    pair, frames
):
    n = 20
    stream = Stream(pair[0], frames)
    shadow = shadow_of(pair[1], stream, n)
    stream.judge.start_shadow(shadow)
    shadow.judge_last()
    for seq in range(START, START + n + 5):
        stream.send(seq)
    look_on(shadow)
    old, new = (frames.answers(path, START + n)[START - 1 :] for path in pair)
    judged = np.concatenate([d.action != Action.NONE for d in old])
    same = np.concatenate([a.action == b.action for a, b in zip(old, new, strict=True)])
    assert shadow.frames == n + 1
    assert shadow.judged == judged.sum()
    assert shadow.agreement == (judged & same).sum() / judged.sum()
    assert 0 < shadow.agreement < 1


def test_without_a_frame_it_agrees_with_nothing(pair, frames):
    shadow = shadow_of(pair[1], Stream(pair[0], frames), 3)
    shadow.judge_last()
    shadow.step(0.0)
    assert (shadow.frames, shadow.done) == (0, False)
    assert math.isnan(shadow.agreement)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from(['next', 'lose', 'gone', 'restart']), max_size=12))
def test_whatever_becomes_of_frames_the_same_bundle_in_the_shadow_says_the_same(
    pair, frames, course
):
    stream = Stream(pair[0], frames)
    shadow = shadow_of(pair[0], stream, 200)
    stream.judge.start_shadow(shadow)
    shadow.judge_last()
    seq = START
    for event in [*course, 'next']:
        seq += {'next': 1, 'lose': 3, 'gone': 5, 'restart': 2}[event]
        if event == 'gone':
            stream.oldest = seq - 1
        elif event == 'restart':
            stream.epoch += 1
            stream.first_open = seq - 1
        stream.send(seq)
    before = shadow._todo.qsize()
    for _ in range(before):
        shadow.step(0.0)
    assert shadow.frames > 0
    assert shadow.same == shadow.judged
    assert not shadow.done


def test_other_symbols_are_refused(pair, frames):
    stream = Stream(pair[0], frames)
    decider = Decider.of(Bundle.load(pair[1]), ['A'], open_engine)
    with pytest.raises(ConfigError, match='other symbols'):
        stream.judge.start_shadow(Shadow(decider, 3))


class SometimesNan(OrtEngine):
    """An engine whose answer for its first row is not a number."""

    def infer(self, inputs: Arrays) -> Arrays:
        out = super().infer(inputs)
        out['log_return'] = out['log_return'].copy()
        out['log_return'][0] = np.nan
        return out


def test_an_answer_that_is_not_finite_is_an_error_that_names_generator_and_symbol(pair, frames):
    def make(path: Path) -> SometimesNan:
        engine = SometimesNan()
        engine.load(path)
        return engine

    stream = Stream(pair[0], frames)
    shadow = shadow_of(pair[1], stream, 3, make)
    stream.judge.start_shadow(shadow)
    with pytest.raises(EngineError, match=r"'linear' answers NaN or infinity for 1 of 3 symbols"):
        shadow.judge_last()
