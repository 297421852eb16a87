# SPDX-License-Identifier: Apache-2.0
"""What the compute node does with frames: order, warm, decide, answer again. Pure, one thread."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from heqis_core.bundle import Bundle
from heqis_core.decider import Decider
from heqis_core.decision import Decisions, Predictions
from heqis_core.engine import Engine
from heqis_core.frame import FeatureFrame, Stage, stamp
from heqis_core.intake import Delivery, Intake
from heqis_core.link import MissedReply

ENGINE_KINDS = ('onnxruntime', 'rknn', 'tensorrt')
"""Classes of engine that a gateway's encoder may run on; each gives its own features id."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Decisions to send; `predictions` is None when the same decisions have gone out before."""

    decisions: Decisions
    predictions: Predictions | None


@dataclass(slots=True)
class JudgeCounters:
    """What became of the frames in order."""

    decided: int = 0
    warmed: int = 0
    foreign: int = 0
    """Frames whose spec, scaler or encoder is not the bundle's."""
    repeated: int = 0
    """Decisions sent again because the gateway had not heard of them."""
    decisions: int = 0
    signals: int = 0


@dataclass(slots=True)
class Judge:
    """Decide the frames of one stream with one bundle.

    Args:
        bundle: verified.
        make_engine: loads one model file.
        remember: decisions kept to be sent again; more than the gateway keeps open.
    """

    bundle: Bundle
    make_engine: Callable[[Path], Engine]
    remember: int = 512
    intake: Intake = field(init=False)
    counters: JudgeCounters = field(default_factory=JudgeCounters)
    foreign_text: str = ''
    """Why the last foreign frame was refused; empty if none was."""
    _decider: Decider | None = None
    _sent: OrderedDict[int, Decisions] = field(default_factory=OrderedDict)
    _features_ids: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        """Work out which frames fit the bundle."""
        self.intake = Intake(self.bundle.manifest.window.horizon)
        self._features_ids = self._accepted(self.bundle)

    def on_frame(self, frame: FeatureFrame) -> list[Answer]:
        """Take an arrival; return the decisions to send, in order."""
        stamp(frame.stamps, Stage.RECEIVED)
        if not self._fits(frame):
            return []
        deliveries, repeat = self.intake.offer(frame)
        answers = [a for d in deliveries if (a := self._take(d)) is not None]
        if repeat is not None and repeat in self._sent:
            self.counters.repeated += 1
            answers.append(Answer(self._sent[repeat], None))
        return answers

    def on_reply(self, reply: MissedReply) -> list[Answer]:
        """Take the answer to `intake.wanted()`; return the decisions to send, in order."""
        for frame in reply.frames:
            stamp(frame.stamps, Stage.RECEIVED)
        fitting = [frame for frame in reply.frames if self._fits(frame)]
        reply = MissedReply(
            reply.epoch, reply.oldest_seq, reply.next_seq, reply.first_open_seq, fitting
        )
        deliveries = self.intake.answer(reply)
        return [a for d in deliveries if (a := self._take(d)) is not None]

    def swap(self, bundle: Bundle) -> None:
        """Serve another bundle from the next frame on, with the windows as they are.

        Raises EngineError if a generator cannot be loaded. The caller has verified the bundle and
        that `same_features` holds.
        """
        if self._decider is not None:
            new = Decider.of(bundle, self._decider.symbols, self.make_engine)
            new.take_windows(self._decider)
            self._decider.close()
            self._decider = new
        self.bundle = bundle

    def same_features(self, bundle: Bundle) -> bool:
        """Return whether `bundle` reads the same frames through the same windows."""
        return (
            self._accepted(bundle) == self._features_ids
            and bundle.manifest.window == self.bundle.manifest.window
        )

    def close(self) -> None:
        """Free the engines."""
        if self._decider is not None:
            self._decider.close()
            self._decider = None

    def _take(self, delivery: Delivery) -> Answer | None:
        decider = self._decider_for(delivery.frame.symbols)
        if delivery.restart:
            decider.restart()
            self._sent.clear()
        if delivery.after_hole:
            decider.hole(delivery.frame.seq)
        if not delivery.decide:
            decider.warm(delivery.frame)
            self.counters.warmed += 1
            return None
        decisions, predictions = decider.decide(delivery.frame)
        self._remember(decisions)
        self.counters.decided += 1
        self.counters.decisions += len(decisions.symbols)
        self.counters.signals += int(decisions.is_signal().sum())
        return Answer(decisions, predictions)

    def _decider_for(self, symbols: Sequence[str]) -> Decider:
        if self._decider is None or self._decider.symbols != tuple(symbols):
            self.close()
            self._decider = Decider.of(self.bundle, symbols, self.make_engine)
        return self._decider

    def _remember(self, decisions: Decisions) -> None:
        self._sent[decisions.seq] = decisions
        while len(self._sent) > self.remember:
            self._sent.popitem(last=False)

    def _fits(self, frame: FeatureFrame) -> bool:
        if frame.features_id in self._features_ids:
            return True
        self.counters.foreign += 1
        expected = ' or '.join(sorted(self._features_ids))
        self.foreign_text = (
            f'frame {frame.seq} of stream {frame.stream!r} carries features {frame.features_id}, '
            f'bundle {self.bundle.bundle_id} expects {expected}: '
            'put the same bundle on both boards'
        )
        return False

    @staticmethod
    def _accepted(bundle: Bundle) -> frozenset[str]:
        return frozenset(bundle.features_id(kind) for kind in ENGINE_KINDS)
