# SPDX-License-Identifier: Apache-2.0
"""The gateway's stream: source to frames, ring, flow control, checkpoint. No ROS, no socket.

One worker thread calls `run`. Acknowledgements and requests for missed frames come from other
threads.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from heqis_core.bars import BarBlock, BarStatus
from heqis_core.errors import DataError
from heqis_core.frame import FeatureFrame, Stage, new_stamps
from heqis_core.link import MissedReply, MissedRequest
from heqis_core.pipeline import FeaturePipeline
from heqis_core.ring import FrameRing
from heqis_core.source import EndOfStream, Source
from heqis_gateway.checkpoint import (
    SCHEMA,
    Checkpoint,
    CheckpointHead,
    load_checkpoint,
    save_checkpoint,
)
from heqis_gateway.flow import FlowControl

_POLL_S = 0.05
_RETRY_S = 0.005


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """What a stream is.

    Attributes:
        stream: name, part of every decision's key.
        epoch: start identity of this process.
        features_id: hash that every frame carries.
        warm_until_ns: bars up to this event time only warm features and windows.
        horizon: frames that a restarted compute board may ask for before the first open one.
        max_in_flight: most open frames.
        resend_after_s: seconds without progress before open frames are sent again.
        checkpoint: file of the checkpoint.
        checkpoint_s: seconds between two checkpoints.
        identity: what a checkpoint must match.
    """

    stream: str
    epoch: int
    features_id: str
    warm_until_ns: int
    horizon: int
    max_in_flight: int
    resend_after_s: float
    checkpoint: Path
    checkpoint_s: float
    identity: dict[str, str]


@dataclass(slots=True)
class StreamCounters:
    """Counted over the life of the stream: a checkpoint carries them across a restart."""

    bars_in: int = 0
    bars_warmup: int = 0
    blocks_amended: int = 0
    amendments_lost: int = 0
    frames_made: int = 0
    frames_warmup: int = 0
    frames_sent: int = 0
    frames_resent: int = 0
    frames_closed: int = 0
    send_waits: int = 0
    source_done: int = 0


@dataclass(slots=True)
class _Ports:
    """What the stream calls: set once by the node."""

    send: Callable[[FeatureFrame], bool]
    on_block: Callable[[int, BarBlock], None] = field(default=lambda _seq, _block: None)
    on_busy: Callable[[bool], None] = field(default=lambda _busy: None)
    on_amended: Callable[[int, BarBlock], None] = field(default=lambda _seq, _block: None)


class FrameStream:
    """Make frames from a source, send each until its decisions are durable, survive a kill.

    Args:
        settings: see `StreamSettings`.
        source: opened by `run` at the checkpoint's cursor.
        pipeline: features of the source's symbols.
        send: stamps SENT and hands a frame to the link or topic; False when it could not take it
            in time.
        on_block: told of each bar block before its features are computed (the `bars` topic).
        on_busy: told True before and False after work on one block, for the progress rule.
        on_amended: told of each block that corrects an earlier one, with the seq of that one.
    """

    def __init__(
        self,
        settings: StreamSettings,
        source: Source,
        pipeline: FeaturePipeline,
        send: Callable[[FeatureFrame], bool],
        on_block: Callable[[int, BarBlock], None] = lambda _seq, _block: None,
        on_busy: Callable[[bool], None] = lambda _busy: None,
        on_amended: Callable[[int, BarBlock], None] = lambda _seq, _block: None,
    ) -> None:
        self.settings = settings
        self.counters = StreamCounters()
        self._source = source
        self._pipeline = pipeline
        self._ports = _Ports(send, on_block, on_busy, on_amended)
        self._ring = FrameRing(settings.horizon + 2 * settings.max_in_flight)
        self._flow = FlowControl(settings.max_in_flight, settings.resend_after_s)
        self._next_seq = 0
        self._first_sent = -1
        self._lock = threading.Lock()
        self._answered = threading.Event()
        self._next_checkpoint_s = 0.0

    @property
    def n_open(self) -> int:
        """Frames sent whose decisions are not known to be durable."""
        with self._lock:
            return self._flow.n_open

    def resume(self) -> str:
        """Take up the checkpoint if there is one that fits; return one line that says so."""
        found, text = load_checkpoint(self.settings.checkpoint, self.settings.identity)
        if found is not None:
            try:
                self._ring.load(found.ring)
            except DataError as error:
                found, text = None, f'{error}: the stream starts with its first bar'
        if found is None:
            self._source.open(None)
            return text
        head = found.head
        self._pipeline.load(found.pipeline)
        for frame in self._ring.tail(self._ring.capacity):
            frame.epoch = self.settings.epoch
        self._next_seq = head.next_seq
        self._first_sent = head.first_sent
        for name in StreamCounters.__slots__:
            setattr(self.counters, name, head.counters.get(name, 0))
        self._source.open(head.cursor)
        if head.first_sent >= 0:
            # Sent again by the time-out or asked for by the compute board, whichever comes first.
            for seq in range(max(head.first_open, head.first_sent), head.next_seq):
                self._flow.opened(seq, float('-inf'))
        return text

    def run(self, stop: threading.Event) -> None:
        """Work until `stop` is set, also after the last bar: frames may have to go out again."""
        while not stop.is_set():
            self._resend(stop)
            if self._source_may_go_on():
                try:
                    block = self._source.poll(_POLL_S)
                except EndOfStream:
                    self.counters.source_done = 1
                    self.checkpoint()
                else:
                    if block is not None and block.revision:
                        self._amend(block)
                    elif block is not None:
                        self._advance(block, stop)
            else:
                self._answered.wait(_POLL_S)
                self._answered.clear()
            self._checkpoint_if_due()
        self.checkpoint()

    def close_frames(self, seqs: Iterable[int]) -> None:
        """Note that the decisions of `seqs` are durable.

        The epoch does not matter: seq goes on across restarts, and the same seq is the same frame.
        """
        with self._lock:
            self.counters.frames_closed += self._flow.closed(seqs, time.monotonic())
        self._answered.set()

    def missed(self, request: MissedRequest) -> MissedReply:
        """Answer a request for frames, or (last < first) for the position alone."""
        with self._lock:
            next_seq = self._next_seq
            first_open = self._flow.first_open(next_seq)
        frames = self._ring.range(request.first_seq, request.last_seq)
        return MissedReply(
            self.settings.epoch, self._ring.oldest_seq, next_seq, first_open, frames
        )

    def checkpoint(self) -> None:
        """Write the checkpoint of this moment; only from the worker, or when none runs."""
        with self._lock:
            head = CheckpointHead(
                schema=SCHEMA,
                identity=self.settings.identity,
                next_seq=self._next_seq,
                first_open=self._flow.first_open(self._next_seq),
                first_sent=self._first_sent,
                cursor=self._source.cursor(),
                counters={name: getattr(self.counters, name) for name in StreamCounters.__slots__},
            )
        keep = self.settings.horizon + self.settings.max_in_flight
        state = Checkpoint(head, self._pipeline.save(), self._ring.save(keep))
        save_checkpoint(self.settings.checkpoint, state)
        self._next_checkpoint_s = time.monotonic() + self.settings.checkpoint_s

    def _source_may_go_on(self) -> bool:
        with self._lock:
            return self._flow.may_send and not self.counters.source_done

    def _checkpoint_if_due(self) -> None:
        if time.monotonic() >= self._next_checkpoint_s and not self.counters.source_done:
            self.checkpoint()

    def _advance(self, block: BarBlock, stop: threading.Event) -> None:
        self._ports.on_busy(True)
        frame = self._frame(block)
        warm_up = block.event_time_ns <= self.settings.warm_until_ns
        self._count(block, warm_up)
        self._ring.append(frame)
        with self._lock:
            self._next_seq = frame.seq + 1
            if not warm_up:
                self._flow.opened(frame.seq, time.monotonic())
                if self._first_sent < 0:
                    self._first_sent = frame.seq
        self._ports.on_busy(False)
        if not warm_up:
            self._send(frame, stop)
            self.counters.frames_sent += 1

    def _amend(self, block: BarBlock) -> None:
        """Let later features start from a corrected block; decisions that were made stay."""
        self._ports.on_busy(True)
        frames = self._ring.tail(self._ring.capacity)
        seqs = [f.seq for f in frames if f.event_time_ns == block.event_time_ns]
        # After a restart the state before the block is gone: what is decided then is still sound,
        # but does not know of the correction.
        if seqs and self._pipeline.amend(block):
            self.counters.blocks_amended += 1
            self._ports.on_amended(seqs[-1], block)
        else:
            self.counters.amendments_lost += 1
        self._ports.on_busy(False)

    def _frame(self, block: BarBlock) -> FeatureFrame:
        stamps = new_stamps()
        stamps[Stage.INGEST] = block.ingest_ns
        self._ports.on_block(self._next_seq, block)
        tensors = self._pipeline.step(self._next_seq, block, stamps)
        return FeatureFrame(
            self.settings.stream,
            self.settings.epoch,
            self._next_seq,
            block.event_time_ns,
            block.revision,
            self.settings.features_id,
            block.symbols,
            tensors,
            stamps,
        )

    def _count(self, block: BarBlock, warm_up: bool) -> None:
        n = int((block.status != BarStatus.NO_BAR).sum())
        self.counters.bars_in += n
        self.counters.frames_made += 1
        if warm_up:
            self.counters.bars_warmup += n
            self.counters.frames_warmup += 1

    def _send(self, frame: FeatureFrame, stop: threading.Event) -> None:
        # Policy block: a frame that the link cannot take now waits here, and with it the source.
        while not self._ports.send(frame):
            self.counters.send_waits += 1
            if stop.wait(_RETRY_S):
                return

    def _resend(self, stop: threading.Event) -> None:
        with self._lock:
            seqs = self._flow.due(time.monotonic())
        for seq in seqs:
            for frame in self._ring.range(seq, seq):
                self._send(frame, stop)
                self.counters.frames_resent += 1
