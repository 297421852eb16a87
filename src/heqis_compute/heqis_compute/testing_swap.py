# SPDX-License-Identifier: Apache-2.0
"""Swaps under load, for tests and the benchmark: two bundles, frames without end, a paced gateway.

What a plain decider of each bundle says to every frame is what the answers are held against.
"""

from __future__ import annotations

import io
import threading
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from heqis_core.bundle import Bundle, write_bundle
from heqis_core.decider import Decider
from heqis_core.decision import Decisions
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import open_engine
from heqis_core.io.zmq_link import GatewayLink
from heqis_core.link import MissedReply, MissedRequest
from heqis_core.testing import simulated_table
from heqis_core.testing_bundle import bundle_parts
from heqis_core.testing_link import COLUMNS

DISTINCT = 512
"""Rows of features that come over and over again."""
WARM_UP = 24
EPOCH = 7
OPEN = 256
"""Frames on their way at most; the judge remembers its answers to more."""
SEND_TIMEOUT_MS = 100
RECEIVE_MS = 5
CATCH_UP_S = 0.05
"""How far the gateway may be behind and still keep its rate; beyond, it falls back."""


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Write two bundles with the same features and windows, whose generators differ."""
    manifest, files = bundle_parts(seed=0)
    _, others = bundle_parts(seed=1)
    golden, other_golden = (_arrays(part['golden.npz']) for part in (files, others))
    golden.update({k: v for k, v in other_golden.items() if k.startswith('linear/')})
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **golden)
    second = {**files, 'linear.onnx': others['linear.onnx'], 'golden.npz': buffer.getvalue()}
    return write_bundle(folder, manifest, files), write_bundle(folder, manifest, second)


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


class Frames:
    """A stream of frames without end, any of them at any time."""

    def __init__(self, path: Path, symbols: int = 3, distinct: int = DISTINCT) -> None:
        bundle = Bundle.load(path)
        assert bundle.encoder_path is not None
        table = simulated_table(symbols, WARM_UP + distinct, seed=1)
        pipeline = bundle.pipeline(table.symbols, open_engine(bundle.encoder_path))
        rows = [pipeline.step(seq, table.block(seq)) for seq in range(WARM_UP + distinct)]
        self._rows = rows[WARM_UP:]
        self._features_id = bundle.features_id('onnxruntime')
        self._symbols = table.symbols

    def __getitem__(self, seq: int) -> FeatureFrame:
        """Return a frame, equal each time but for its stamps."""
        return FeatureFrame(
            'daily',
            EPOCH,
            seq,
            seq * 1_000_000_000,
            0,
            self._features_id,
            self._symbols,
            self._rows[seq % len(self._rows)],
        )

    def answers(self, path: Path, n: int) -> list[Decisions]:
        """Return what a plain decider of one bundle says to the first n frames."""
        decider = Decider.of(Bundle.load(path), self._symbols, open_engine)
        try:
            return [decider.decide(self[seq])[0] for seq in range(n)]
        finally:
            decider.close()


class Verdict(NamedTuple):
    """What became of the frames that were sent; all zero but `changes` is a clean run."""

    lost: int
    """Frames without an answer."""
    doubled: int
    """Answers beyond the first to a frame."""
    wrong: int
    """Answers that differ from what a plain decider of the bundle they name says."""
    changes: int
    """Times that the next frame was answered by another bundle."""


class PacedGateway:
    """A gateway that sends a frame every `1 / rate_hz` s, and keeps every answer.

    Two threads: one sends, one receives and serves requests for missed frames.
    """

    def __init__(self, frames: Frames, endpoints: list[str], rate_hz: float) -> None:
        self.frames = frames
        self.link = GatewayLink(*endpoints)
        self.sent_s: list[float] = []
        self.got: list[tuple[float, Decisions]] = []
        self.requests = 0
        self._period_s = 1.0 / rate_hz
        self._stop = threading.Event()
        self._enough = threading.Event()
        self._threads = [
            threading.Thread(target=f, daemon=True) for f in (self._send, self._receive)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def open(self) -> int:
        """Return how many frames wait for an answer."""
        return len(self.sent_s) - len(self.got)

    def finish(self, timeout_s: float = 10.0) -> None:
        """Send no more, wait until all are answered or the time is up, and close."""
        self._enough.set()
        self._threads[0].join()  # a frame that is being sent now counts too
        deadline_s = time.monotonic() + timeout_s
        while self.open > 0 and time.monotonic() < deadline_s:
            time.sleep(0.01)
        self.close()

    def close(self) -> None:
        """End the threads and free the sockets."""
        self._enough.set()
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self.link.close()

    def verdict(self, *bundles: Path) -> Verdict:
        """Judge the answers of a finished run, served by these bundles."""
        n = len(self.sent_s)
        expected = {path.name: self.frames.answers(path, n) for path in bundles}
        first: dict[int, Decisions] = {}
        for _, decisions in self.got:
            first.setdefault(decisions.seq, decisions)
        served = [first[seq].bundle_id for seq in sorted(first)]
        return Verdict(
            lost=n - len(first),
            doubled=len(self.got) - len(first),
            wrong=sum(not _same(d, expected[d.bundle_id][d.seq]) for _, d in self.got),
            changes=sum(a != b for a, b in pairwise(served)),
        )

    def _send(self) -> None:
        next_s = time.monotonic()
        while not self._enough.is_set():
            next_s = max(next_s + self._period_s, time.monotonic() - CATCH_UP_S)
            self._enough.wait(max(0.0, next_s - time.monotonic()))
            if self.open >= OPEN or self._enough.is_set():
                continue
            frame = self.frames[len(self.sent_s)]
            now_s = time.monotonic()
            if self.link.send(frame, SEND_TIMEOUT_MS):
                self.sent_s.append(now_s)

    def _receive(self) -> None:
        while not self._stop.is_set():
            self.requests += self.link.serve(self._missed, 0)
            decisions = self.link.recv_decisions(RECEIVE_MS)
            if decisions is not None:
                self.got.append((time.monotonic(), decisions))

    def _missed(self, request: MissedRequest) -> MissedReply:
        n = len(self.sent_s)
        wanted = range(request.first_seq, min(request.last_seq + 1, n))
        return MissedReply(EPOCH, 0, n, 0, [self.frames[seq] for seq in wanted])


def _same(a: Decisions, b: Decisions) -> bool:
    columns = [name for name in COLUMNS if name != 'stamps']
    return a.generator == b.generator and all(
        getattr(a, name).tobytes() == getattr(b, name).tobytes() for name in columns
    )
