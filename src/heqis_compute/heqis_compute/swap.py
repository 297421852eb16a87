# SPDX-License-Identifier: Apache-2.0
"""A swap, stage by stage, while frames flow: verify, load, warm, look on, take over; or go back.

It runs in a thread of its own and reaches into the judge's only between two frames.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heqis_compute.between import DEACTIVATED, BetweenFrames, StoppedError
from heqis_compute.judge import Judge, Served
from heqis_compute.served_state import Place, check_place, write_state
from heqis_compute.shadow import Shadow
from heqis_core.bundle import Bundle
from heqis_core.engine import Engine, infer_tiled
from heqis_core.engine_probe import Choice, MakeEngine
from heqis_core.errors import ConfigError

WAIT_S = 0.02


class Outcome(NamedTuple):
    """What a swap led to.

    Attributes:
        text: one sentence for people.
        shadow_frames: frames that both bundles judged before the new one took over.
        agreement: share of the decisions in them that are the same action; NaN without any.
    """

    text: str
    shadow_frames: int = 0
    agreement: float = math.nan


@dataclass
class Swap:
    """Swaps and roll-backs of one judge, one at a time.

    Args:
        judge: of the node.
        between: reaches its thread.
        open_bundle: returns the bundle of a folder, verified whole.
        verify: returns the bundle of a folder, signature and hashes verified, nothing run.
        choose: returns the engine for a verified bundle; may build for minutes.
        state_dir: folder of the file that says what is served.
        configured: folder that the node was configured with.
        previous: the bundle before the one that is served; None if none is known.
        shadow_frames: frames after which the shadow ends.
        shadow_s: seconds after which it ends.

    Every refusal is a HeqisError, after which the bundle that was served goes on.
    """

    judge: Judge
    between: BetweenFrames
    open_bundle: Callable[[str], Bundle]
    verify: Callable[[Path], Bundle]
    choose: Callable[[Bundle], Choice]
    state_dir: Path
    configured: Path
    previous: Place | None
    shadow_frames: int
    shadow_s: float

    def to(self, path: str, stop: threading.Event) -> Outcome:
        """Serve the bundle of a folder from some frame on; `stop` gives it up."""
        bundle = self.open_bundle(path)
        if bundle.bundle_id == self.judge.bundle.bundle_id:
            return Outcome(f'bundle {bundle.bundle_id} is served already')
        return self._replace(bundle, stop)

    def back(self, stop: threading.Event) -> Outcome:
        """Serve the bundle before again: at once if it is still loaded, else as any other one."""
        if self.previous is None:
            raise ConfigError('there is no bundle to go back to: nothing has been swapped')
        previous = self.judge.previous
        if previous is None:
            bundle = self.open_bundle(self.previous.path)
        else:
            # Verified when it was loaded; since then a key may have been revoked, a file changed.
            bundle = self.verify(previous.bundle.path)
        check_place(bundle, self.previous)
        if previous is None:
            return self._replace(bundle, stop)
        if symbols := self.judge.served.symbols:
            previous.load(symbols)
        self._take_over(previous, stop)
        return Outcome(f'back to bundle {bundle.bundle_id}')

    def _replace(self, bundle: Bundle, stop: threading.Event) -> Outcome:
        old = self.judge.bundle
        self.judge.check_features(bundle)
        _look(stop)
        choice = self.choose(bundle)
        new = Served(bundle, _warmed(bundle, choice.make_engine), choice)
        try:
            shadow = self._shadow(new, stop)
            self._take_over(new, stop)
        except BaseException:
            new.close()
            raise
        said = f'{shadow.frames} frames in the shadow' if shadow else 'no frame to be shown'
        if shadow and shadow.judged:
            said += f', {shadow.agreement:.1%} of {shadow.judged} decisions the same'
        text = f'bundle {bundle.bundle_id} is served in the place of {old.bundle_id}: {said}'
        return Outcome(text, shadow.frames, shadow.agreement) if shadow else Outcome(text)

    def _shadow(self, new: Served, stop: threading.Event) -> Shadow | None:
        """Let the new bundle look on; None where the stream has shown no frame in time."""
        until_s = time.monotonic() + self.shadow_s
        while (symbols := self.judge.served.symbols) is None:
            if time.monotonic() > until_s:
                return None
            _look(stop)
            stop.wait(WAIT_S)
        shadow = Shadow(new.load(symbols), self.shadow_frames)
        until_s = time.monotonic() + self.shadow_s
        self.between.ask(lambda: self.judge.start_shadow(shadow), stop)
        try:
            shadow.judge_last()
            while not shadow.done and (left_s := until_s - time.monotonic()) > 0:
                _look(stop)
                shadow.step(min(left_s, WAIT_S))
        finally:
            # No need to wait: a frame that is still offered changes nothing.
            self.judge.stop_shadow()
        return shadow

    def _take_over(self, new: Served, stop: threading.Event) -> None:
        old = Place.of(self.judge.bundle)
        # On the disk first: a process that is killed here goes on with a bundle that has said
        # nothing yet, not with one whose successor has.
        write_state(self.state_dir, self.configured, Place.of(new.bundle), old)
        try:
            left_over = self.between.ask(lambda: self.judge.take_over(new), stop)
        except BaseException:
            write_state(self.state_dir, self.configured, old, self.previous)
            raise
        self.previous = old
        if left_over is not None:
            left_over.close()


def _look(stop: threading.Event) -> None:
    if stop.is_set():
        raise StoppedError(DEACTIVATED)


def _warmed(bundle: Bundle, make_engine: MakeEngine) -> MakeEngine:
    """Return what loads a generator and runs its golden inputs: no frame pays for a first run."""
    golden = bundle.golden()
    rows_of = {
        bundle.generator_path(part.name): (part.tile, golden[f'{part.name}/input'])
        for part in bundle.manifest.generators
    }

    def make(path: Path) -> Engine:
        engine = make_engine(path)
        tile, rows = rows_of[path]
        infer_tiled(engine, cast('npt.NDArray[np.float32]', rows), tile)
        return engine

    return make
