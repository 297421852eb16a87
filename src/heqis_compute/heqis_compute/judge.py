# SPDX-License-Identifier: Apache-2.0
"""What the compute node does with frames: order, warm, decide, answer again. Pure, one thread.

A swap is prepared elsewhere (`heqis_compute.swap`); here it begins to look on, and takes over.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from heqis_compute.shadow import Shadow
from heqis_core.bundle import Bundle
from heqis_core.decider import Decider
from heqis_core.decision import Decisions, Predictions
from heqis_core.engine_probe import Choice, MakeEngine
from heqis_core.errors import ConfigError
from heqis_core.frame import FeatureFrame, Stage, stamp
from heqis_core.intake import Delivery, Intake
from heqis_core.link import MissedReply


@dataclass(frozen=True, slots=True)
class Answer:
    """Decisions to send; `predictions` is None when the same decisions have gone out before."""

    decisions: Decisions
    predictions: Predictions | None


@dataclass(slots=True)
class Served:
    """A bundle with what runs it.

    Attributes:
        bundle: verified.
        make_engine: loads one of its model files.
        choice: how its engine was chosen; None where nobody asks.
        decider: its engines, loaded; None until the symbols of the stream are known.
    """

    bundle: Bundle
    make_engine: MakeEngine
    choice: Choice | None = None
    decider: Decider | None = None

    @property
    def symbols(self) -> tuple[str, ...] | None:
        """Return the symbols that the decider is for."""
        return self.decider.symbols if self.decider else None

    def load(self, symbols: Sequence[str]) -> Decider:
        """Return the decider for these symbols; raise EngineError if a model cannot be loaded."""
        if self.decider is None or self.decider.symbols != tuple(symbols):
            self.close()
            self.decider = Decider.of(self.bundle, symbols, self.make_engine)
        return self.decider

    def close(self) -> None:
        """Free the engines; they can be loaded again."""
        if self.decider is not None:
            self.decider.close()
            self.decider = None


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


class Judge:
    """Decide the frames of one stream with one bundle, and another one after a swap.

    Args:
        bundle: verified.
        make_engine: loads one of its model files.
        choice: how its engine was chosen; None where nobody asks.
        remember: decisions kept to be sent again; more than the gateway keeps open.

    Attributes:
        served: the bundle that answers.
        previous: what was served before the last swap, loaded: a roll-back builds nothing.
        intake: what is asked for again.
        counters: what became of the frames.
        foreign_text: why the last foreign frame was refused; empty if none was.
    """

    def __init__(
        self,
        bundle: Bundle,
        make_engine: MakeEngine,
        choice: Choice | None = None,
        remember: int = 512,
    ) -> None:
        self.served = Served(bundle, make_engine, choice)
        self.previous: Served | None = None
        self.intake = Intake(bundle.manifest.window.horizon)
        self.counters = JudgeCounters()
        self.foreign_text = ''
        self._remembered = remember
        self._shadow: Shadow | None = None
        self._last: tuple[FeatureFrame, Decisions] | None = None
        self._sent: OrderedDict[int, Decisions] = OrderedDict()
        self._features_ids = bundle.features_ids()
        # Of the frames that came last: the gateway's encoder may be one of several files.
        self._features_id: str | None = None

    @property
    def bundle(self) -> Bundle:
        """Return the bundle that answers."""
        return self.served.bundle

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

    def start_shadow(self, shadow: Shadow) -> None:
        """Let a decider look on from now: with these windows, at the last frame and those to come.

        Raises ConfigError if the stream has other symbols by now.
        """
        self._check_symbols(shadow.decider.symbols)
        assert self.served.decider is not None
        shadow.decider.take_windows(self.served.decider)
        if self._last is not None:
            shadow.look_back(*self._last)
        self._shadow = shadow

    def stop_shadow(self) -> None:
        """Let nobody look on any more; any thread."""
        self._shadow = None

    def take_over(self, new: Served) -> Served | None:
        """Serve `new` from the next frame on, with the windows as they are.

        What was served stays loaded as `previous`. Returns what is left over: the one that was
        previous until now, for the caller to close, unless it is `new` itself. Raises ConfigError,
        and changes nothing, if the stream has other symbols or features by now. The caller has
        verified the bundle.
        """
        self._check_symbols(new.symbols)
        self.check_features(new.bundle)
        if new.decider is not None and self.served.decider is not None:
            new.decider.take_windows(self.served.decider)
        left_over = None if self.previous is new else self.previous
        self.previous, self.served = self.served, new
        self._features_ids = new.bundle.features_ids()
        return left_over

    def check_features(self, bundle: Bundle) -> None:
        """Raise ConfigError unless `bundle` reads the frames that come through the same windows.

        Before the first frame, what the two have in common is enough: whichever encoder file the
        gateway turns out to run, frames that the bundle does not read are counted, not decided.
        """
        expected = self._features_ids if self._features_id is None else {self._features_id}
        same_windows = bundle.manifest.window == self.bundle.manifest.window
        if not (same_windows and bundle.features_ids() & expected):
            raise ConfigError(
                f'bundle {bundle.bundle_id} reads other features or windows than '
                f'{self.bundle.bundle_id}: configure both boards with it'
            )

    def close(self) -> None:
        """Free the engines."""
        for served in (self.served, self.previous):
            if served is not None:
                served.close()

    def _take(self, delivery: Delivery) -> Answer | None:
        decider = self.served.load(delivery.frame.symbols)
        if delivery.restart:
            decider.restart()
            self._sent.clear()
        if delivery.after_hole:
            decider.hole(delivery.frame.seq)
        if not delivery.decide:
            decider.warm(delivery.frame)
            self.counters.warmed += 1
            self._after(delivery, None)
            return None
        decisions, predictions = decider.decide(delivery.frame)
        self._remember(decisions)
        self.counters.decided += 1
        self.counters.decisions += len(decisions.symbols)
        self.counters.signals += int(decisions.is_signal().sum())
        self._after(delivery, decisions)
        return Answer(decisions, predictions)

    def _after(self, delivery: Delivery, decisions: Decisions | None) -> None:
        self._last = None if decisions is None else (delivery.frame, decisions)
        shadow = self._shadow  # the swap's thread may end it at any time
        if shadow is not None:
            shadow.offer(delivery, decisions)

    def _check_symbols(self, symbols: tuple[str, ...] | None) -> None:
        if symbols != self.served.symbols:
            raise ConfigError(
                'the stream has got other symbols while the bundle was prepared: swap again'
            )

    def _remember(self, decisions: Decisions) -> None:
        self._sent[decisions.seq] = decisions
        while len(self._sent) > self._remembered:
            self._sent.popitem(last=False)

    def _fits(self, frame: FeatureFrame) -> bool:
        if frame.features_id in self._features_ids:
            self._features_id = frame.features_id
            return True
        self.counters.foreign += 1
        expected = ' or '.join(sorted(self._features_ids))
        self.foreign_text = (
            f'frame {frame.seq} of stream {frame.stream!r} carries features {frame.features_id}, '
            f'bundle {self.bundle.bundle_id} expects {expected}: '
            'put the same bundle on both boards'
        )
        return False
