# SPDX-License-Identifier: Apache-2.0
"""The whole path from bars to decisions in one loop: no graph, no clock, no socket.

It calls the pipeline and the decider that the graph calls, in the same order, so its decisions are
the graph's, bit for bit. What a risk gate does with them comes after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from heqis_core.bars import BarBlock
from heqis_core.bundle import NO_ENGINE, Bundle
from heqis_core.decider import Decider
from heqis_core.decision import Decisions, Predictions
from heqis_core.engine import Engine
from heqis_core.frame import FeatureFrame, Stage, new_stamps
from heqis_core.source import EndOfStream, Source

_POLL_S = 1.0


def decide_all(
    bundle: Bundle,
    source: Source,
    make_engine: Callable[[Path], Engine],
    *,
    stream: str = 'daily',
    start_after_training: bool = True,
) -> Iterator[Decisions]:
    """Yield the decisions of each bar block of a finite source, in order; see `answer_all`."""
    answers = answer_all(
        bundle, source, make_engine, stream=stream, start_after_training=start_after_training
    )
    for decisions, _ in answers:
        yield decisions


def answer_all(
    bundle: Bundle,
    source: Source,
    make_engine: Callable[[Path], Engine],
    *,
    stream: str = 'daily',
    start_after_training: bool = True,
) -> Iterator[tuple[Decisions, Predictions]]:
    """Yield decisions, and the predictions of every generator, for each block of a finite source.

    Args:
        bundle: verified.
        source: not open yet; read to its end.
        make_engine: loads one model file.
        stream: name in the decisions' keys.
        start_after_training: bars up to `trained_until_ns` only warm up and yield nothing.

    Raises EngineError if a model cannot be run, and what the source raises.
    """
    encoder = make_engine(bundle.encoder_path) if bundle.encoder_path else None
    pipeline = bundle.pipeline(source.symbols, encoder, source.channels)
    decider = Decider.of(bundle, source.symbols, make_engine)
    features_id = bundle.features_id(encoder.kind if encoder else NO_ENGINE)
    warm_until_ns = bundle.manifest.trained_until_ns if start_after_training else None
    try:
        for seq, block in enumerate(_blocks(source)):
            stamps = new_stamps()
            stamps[Stage.INGEST] = block.ingest_ns
            frame = FeatureFrame(
                stream,
                0,
                seq,
                block.event_time_ns,
                block.revision,
                features_id,
                block.symbols,
                pipeline.step(seq, block, stamps),
                stamps,
            )
            if warm_until_ns is not None and block.event_time_ns <= warm_until_ns:
                decider.warm(frame)
            else:
                yield decider.decide(frame)
    finally:
        decider.close()
        pipeline.close()
        if encoder is not None:
            encoder.close()


def _blocks(source: Source) -> Iterator[BarBlock]:
    source.open(None)
    try:
        while True:
            block = source.poll(_POLL_S)
            if block is not None:
                yield block
    except EndOfStream:
        return
    finally:
        source.close()
