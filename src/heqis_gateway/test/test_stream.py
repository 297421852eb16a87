# SPDX-License-Identifier: Apache-2.0
"""Frame stream: each bar is one frame, open until acknowledged, and a kill changes nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle
from heqis_core.frame import FeatureFrame
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.link import MissedRequest
from heqis_core.source import TableSource
from heqis_core.testing import wait_until
from heqis_gateway.stream import FrameStream, StreamSettings

SPLIT = 80
"""Event times that only warm up: the training part of the fixture's bundle."""


def settings(bundle: Bundle, folder: Path, **changes: object) -> StreamSettings:
    base = StreamSettings(
        stream='daily',
        epoch=1,
        features_id='f' * 16,
        warm_until_ns=bundle.manifest.trained_until_ns,
        horizon=10,
        max_in_flight=8,
        resend_after_s=0.1,
        checkpoint=folder / 'checkpoint.npz',
        checkpoint_s=0.0,
        identity={'stream': 'daily'},
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def encoder_of(bundle: Bundle) -> OrtEngine:
    assert bundle.encoder_path is not None
    return open_engine(bundle.encoder_path)


def make(
    bundle: Bundle,
    table: BarTable,
    config: StreamSettings,
    send: Callable[[FeatureFrame], bool],
) -> FrameStream:
    pipeline = bundle.pipeline(table.symbols, encoder_of(bundle))
    stream = FrameStream(config, TableSource(table), pipeline, send)
    stream.resume()
    return stream


@contextmanager
def running(stream: FrameStream) -> Iterator[None]:
    stop = threading.Event()
    thread = threading.Thread(target=stream.run, args=(stop,))
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(5)
        assert not thread.is_alive()


def content(frame: FeatureFrame) -> tuple[int, int, tuple[bytes, ...]]:
    arrays = tuple(frame.tensors[name].tobytes() for name in sorted(frame.tensors))
    return frame.seq, frame.event_time_ns, arrays


@pytest.fixture
def quiet(bundle: Bundle, table: BarTable, tmp_path: Path) -> list[FeatureFrame]:
    """Return every frame of an undisturbed run whose consumer acknowledges at once."""
    frames: list[FeatureFrame] = []

    def send(frame: FeatureFrame) -> bool:
        frames.append(frame)
        stream.close_frames([frame.seq])
        return True

    stream = make(bundle, table, settings(bundle, tmp_path / 'quiet'), send)
    with running(stream):
        wait_until(lambda: stream.counters.source_done == 1, 20)
    assert stream.counters.frames_sent == len(frames)
    return frames


def test_warm_up_bars_are_not_sent_and_all_others_are_once_and_in_order(quiet, table):
    assert [frame.seq for frame in quiet] == list(range(SPLIT, len(table)))
    times = [frame.event_time_ns for frame in quiet]
    assert times == table.event_time_ns[SPLIT:].tolist()


def test_no_more_than_max_in_flight_are_open_until_someone_acknowledges(bundle, table, tmp_path):
    sent: list[int] = []
    stream = make(
        bundle,
        table,
        settings(bundle, tmp_path, resend_after_s=60),
        lambda frame: not sent.append(frame.seq),
    )
    with running(stream):
        wait_until(lambda: stream.n_open == 8, 20)
        assert sent == list(range(SPLIT, SPLIT + 8))
        stream.close_frames(sent[:3])
        wait_until(lambda: len(sent) == 11, 5)
    assert stream.n_open == 8


def test_open_frames_are_sent_again_in_order_after_silence(bundle, table, tmp_path):
    sent: list[int] = []
    config = settings(bundle, tmp_path)
    stream = make(bundle, table, config, lambda frame: not sent.append(frame.seq))
    with running(stream):
        wait_until(lambda: len(sent) >= 16, 20)
    assert sent[8:16] == sent[:8]
    assert stream.counters.frames_resent >= 8
    assert stream.counters.frames_sent == 8


def test_a_link_that_takes_nothing_makes_the_source_wait_and_loses_nothing(
    bundle, table, tmp_path
):
    sent: list[int] = []
    refusals = iter([False] * 5)

    def send(frame: FeatureFrame) -> bool:
        if not next(refusals, True):
            return False
        sent.append(frame.seq)
        stream.close_frames([frame.seq])
        return True

    stream = make(bundle, table, settings(bundle, tmp_path), send)
    with running(stream):
        wait_until(lambda: stream.counters.source_done == 1, 20)
    assert sent == list(range(SPLIT, len(table)))
    assert stream.counters.send_waits == 5


def test_missed_frames_come_from_the_ring_with_the_position_of_the_stream(bundle, table, tmp_path):
    stream = make(bundle, table, settings(bundle, tmp_path, resend_after_s=60), lambda _: True)
    with running(stream):
        wait_until(lambda: stream.n_open == 8, 20)
        stream.close_frames([SPLIT, SPLIT + 1])
        wait_until(lambda: stream.counters.frames_sent == 10, 5)
        reply = stream.missed(MissedRequest(1, SPLIT - 7, SPLIT + 1))
    assert (reply.epoch, reply.first_open_seq, reply.next_seq) == (1, SPLIT + 2, SPLIT + 10)
    assert [frame.seq for frame in reply.frames] == list(range(SPLIT - 7, SPLIT + 2))


@pytest.mark.parametrize('killed_at', [1, 30, 100])
def test_a_killed_gateway_goes_on_from_its_checkpoint_with_the_same_frames(
    killed_at, quiet, bundle, table, tmp_path
):
    """Scenario: the process ends after `killed_at` frames, some of them not acknowledged."""
    sent: list[FeatureFrame] = []
    snapshot: list[bytes] = []
    path = tmp_path / 'checkpoint.npz'

    def first_life(frame: FeatureFrame) -> bool:
        sent.append(frame)
        if len(sent) == killed_at:
            # What a kill leaves behind is the file as it is now, whatever the stream does later.
            snapshot.append(path.read_bytes())
        if len(sent) <= killed_at - 5:
            stream.close_frames([frame.seq])
        return len(sent) < killed_at

    stream = make(bundle, table, settings(bundle, tmp_path, resend_after_s=60), first_life)
    with running(stream):
        wait_until(lambda: bool(snapshot), 20)
    path.write_bytes(snapshot[0])
    before = [content(frame) for frame in sent[:killed_at]]

    again: list[FeatureFrame] = []

    def second_life(frame: FeatureFrame) -> bool:
        again.append(frame)
        second.close_frames([frame.seq])
        return True

    second = make(bundle, table, settings(bundle, tmp_path, epoch=2), second_life)
    with running(second):
        wait_until(lambda: second.counters.source_done == 1 and second.n_open == 0, 20)
    assert {frame.epoch for frame in again} == {2}
    after = [content(frame) for frame in again]
    expected = [content(frame) for frame in quiet]
    assert before == expected[: len(before)]
    first_open = max(0, killed_at - 5)
    assert set(after) >= set(expected[first_open:])
    assert set(after) <= set(expected)
    assert second.counters.bars_in == int((table.status != 0).sum())
    np.testing.assert_equal(second.counters.frames_made, len(table))


def test_a_checkpoint_whose_ring_cannot_be_read_is_said_and_the_stream_starts_anew(
    bundle, table, tmp_path
):
    first = make(bundle, table, settings(bundle, tmp_path, resend_after_s=60), lambda _: True)
    with running(first):
        wait_until(lambda: first.n_open == 8, 20)
    path = tmp_path / 'checkpoint.npz'
    with np.load(path) as file:
        arrays = dict(file)
    arrays['ring/messages'] = arrays['ring/messages'] ^ 1
    np.savez(path, **arrays)
    sent: list[int] = []
    second = FrameStream(
        settings(bundle, tmp_path, epoch=2),
        TableSource(table),
        bundle.pipeline(table.symbols, encoder_of(bundle)),
        lambda frame: not sent.append(frame.seq),
    )
    assert 'ring' in second.resume()
    with running(second):
        wait_until(lambda: second.n_open == 8, 20)
    assert sent[:8] == list(range(SPLIT, SPLIT + 8))


class Amending(TableSource):
    """A table of which one block comes wrong, and right once more after the next one."""

    def __init__(self, table: BarTable, wrong: int) -> None:
        super().__init__(table)
        self._wrong, self._due = wrong, False

    def poll(self, timeout_s: float):
        if self._due:
            self._due = False
            return replace(self.table.block(self._wrong), revision=1)
        block = super().poll(timeout_s)
        at = self._next - 1
        self._due = at == self._wrong + 1
        return replace(block, values=block.values * 1.05) if at == self._wrong else block


def test_a_corrected_bar_changes_what_comes_after_it_and_no_frame_before(
    bundle, table, tmp_path, quiet
):
    """Frames made with the wrong bar stay; every frame after its correction is that of `quiet`."""
    wrong, frames, amended = SPLIT + 5, [], []

    def send(frame: FeatureFrame) -> bool:
        frames.append(frame)
        stream.close_frames([frame.seq])
        return True

    pipeline = bundle.pipeline(table.symbols, encoder_of(bundle), amendable=2)
    stream = FrameStream(
        settings(bundle, tmp_path / 'shaken'),
        Amending(table, wrong),
        pipeline,
        send,
        on_amended=lambda seq, block: amended.append((seq, block.event_time_ns)),
    )
    stream.resume()
    with running(stream):
        wait_until(lambda: stream.counters.source_done == 1, 20)
    assert [frame.seq for frame in frames] == [frame.seq for frame in quiet]
    differ = [a.seq for a, b in zip(frames, quiet, strict=True) if content(a) != content(b)]
    assert differ == [wrong, wrong + 1]
    assert amended == [(wrong, int(table.event_time_ns[wrong]))]
    assert (stream.counters.blocks_amended, stream.counters.amendments_lost) == (1, 0)
