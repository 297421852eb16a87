# SPDX-License-Identifier: Apache-2.0
"""The gateway node: a `FrameStream` in a worker thread, topics and services around it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from heqis_core.bars import BarBlock
from heqis_core.bundle import Bundle
from heqis_core.errors import ConfigError
from heqis_core.frame import FeatureFrame, Stage, stamp
from heqis_core.link import MissedRequest
from heqis_core.source import PacedSource, Source, SourceConfig, open_source
from heqis_gateway.bar_history import BarHistory
from heqis_gateway.bridge_node import BridgeNode
from heqis_gateway.engines.encoder_engine import Encoder, open_encoder
from heqis_gateway.hub import Hub
from heqis_gateway.params import GATEWAY
from heqis_gateway.source_group import SourceGroup
from heqis_gateway.sources import open_group
from heqis_gateway.stream import FrameStream, StreamSettings
from heqis_msgs.msg import BarBlock as BarBlockMsg
from heqis_msgs.msg import Committed
from heqis_msgs.msg import FeatureFrame as FeatureFrameMsg
from heqis_msgs.srv import MissedBars, MissedFrames
from heqis_ros import qos
from heqis_ros.bundles import BundleDoor
from heqis_ros.convert import block_to_msg, frame_to_msg, reply_to_srv, srv_to_request
from heqis_ros.node import ManagedNode
from heqis_ros.process import run_process

COUNTERS_PERIOD_S = 0.1

_BYTES_PER_MB = 1_000_000
_POSITION = MissedRequest(epoch=0, first_seq=1, last_seq=0)


class GatewayNode(ManagedNode):
    """Makes feature frames from a source and keeps each until its decisions are durable.

    Late readers of `bars` catch up by `~/missed_bars`. That history is in memory alone: after a
    restart of the process it starts with the first bar after the checkpoint. Bars that came
    between the checkpoint and the end of the process are made again, with the seq they had.
    """

    PARAMS = GATEWAY

    def __init__(self, hub: Hub) -> None:
        """Share `hub` with the bridge node of this process."""
        super().__init__()
        self._hub = hub
        self._door = BundleDoor(self)
        self._stream: FrameStream | None = None
        self._group: SourceGroup | None = None
        self._history: BarHistory | None = None

    def configure(self, params: Any) -> None:
        """Load and verify the bundle, open the source, take up the checkpoint."""
        if not params.bundle:
            raise ConfigError(
                'parameter bundle is empty: name the folder that `heqis train` printed'
            )
        bundle = self._door.open(params.bundle, params.trusted_keys)
        encoder = self._open_encoder(bundle, params)
        warm_until_ns = bundle.manifest.trained_until_ns if params.start_after_training else 0
        source = self._open_source(params, bundle.spec.channels)
        self._group = source if isinstance(source, SourceGroup) else None
        source = PacedSource(source, params.pace_bars_per_s, warm_until_ns)
        self.defer(source.close)
        self._bars = self.publisher(BarBlockMsg, 'bars', qos.BARS)
        self._features = self.publisher(FeatureFrameMsg, 'features', qos.FRAMES)
        pipeline = bundle.pipeline(
            source.symbols,
            encoder.engine,
            source.channels,
            self._group.amend if self._group else 0,
        )
        self.defer(pipeline.close)
        stream = FrameStream(
            _settings(params, encoder.features_id, self.start_id, warm_until_ns, bundle, source),
            source,
            pipeline,
            self._send_on_topic if params.transport == 'dds' else self._send_on_link,
            self._publish_bars,
            self._busy,
            self._publish_amended,
        )
        found = stream.resume()
        self.get_logger().info(
            f'{len(source.symbols)} symbols, features {encoder.features_id}, {found}'
        )
        self.set_info(f'{params.source}, {found}; {encoder.text}')
        self._stream, self._source = stream, source
        self._history = BarHistory(
            params.bar_history_mb * _BYTES_PER_MB, stream.missed(_POSITION).next_seq
        )
        self.subscription(Committed, 'committed', qos.COMMITTED, self._on_committed)
        self.service(MissedFrames, '~/missed_frames', self._on_missed)
        self.service(MissedBars, '~/missed_bars', self._on_missed_bars)
        self.timer(COUNTERS_PERIOD_S, self._report)
        self.worker('stream', stream.run)

    def activate(self) -> None:
        """Let the bridge answer requests from the ring."""
        assert self._stream is not None
        self._hub.missed = self._stream.missed

    def deactivate(self) -> None:
        """Leave the last state in the heartbeat."""
        self._hub.missed = None
        self._report()

    def cleanup(self) -> None:
        """Forget the stream and its bars; its checkpoint stays."""
        self._stream = None
        self._history = None

    def _open_encoder(self, bundle: Bundle, params: Any) -> Encoder:
        encoder = open_encoder(bundle, params.encoder_engine, params.encoder_precision)
        if encoder.engine is not None:
            self.defer(encoder.engine.close)
        for kind, reason in encoder.passed_over:
            self.get_logger().info(f'engine {kind} is passed over: {reason}')
        return encoder

    def _open_source(self, params: Any, channels: Sequence[str]) -> Source:
        state_dir = Path(params.state_dir)
        quarantine = Path(params.quarantine) if params.quarantine else state_dir / 'quarantine.csv'
        if params.source == 'several':
            if not params.sources:
                raise ConfigError(
                    'parameter sources is empty: name a file like config/sources.example.yaml'
                )
            return open_group(params.sources, quarantine, self.get_logger().warning)
        return open_source(
            SourceConfig(
                kind=params.source,
                path=params.data,
                symbols=params.symbols,
                seed=params.seed,
                limit=params.limit or None,
                tz=params.timezone,
                close_time=params.close_time,
                quarantine=str(quarantine),
                channels=channels,
            )
        )

    def _send_on_link(self, frame: FeatureFrame) -> bool:
        if self._features.get_subscription_count():
            self.publish(self._features, frame_to_msg(frame))
        send = self._hub.send
        return send is not None and send(frame)

    def _send_on_topic(self, frame: FeatureFrame) -> bool:
        # Without a subscriber DDS would drop the frame at once; waiting costs less than asking
        # again.
        if not self._features.get_subscription_count():
            return False
        stamp(frame.stamps, Stage.SENT)
        return self.publish(self._features, frame_to_msg(frame))

    def _publish_bars(self, seq: int, block: BarBlock) -> None:
        assert self._history is not None
        # Before it is published: who hears a bar finds in the history all that came before it.
        self._history.append(seq, block)
        self._say_bars(seq, block)

    def _publish_amended(self, seq: int, block: BarBlock) -> None:
        assert self._history is not None
        self._history.amend(seq, block)
        self._say_bars(seq, block)

    def _say_bars(self, seq: int, block: BarBlock) -> None:
        assert self._stream is not None
        if self._bars.get_subscription_count():
            settings = self._stream.settings
            self.publish(self._bars, block_to_msg(block, settings.stream, settings.epoch, seq))

    def _busy(self, busy: bool) -> None:
        # Work on a block that never ends is a stall; waiting for a source or for the journal is
        # not.
        self.set_pending(int(busy))
        if not busy:
            self.progress()

    def _on_committed(self, msg: Committed) -> None:
        if self._stream is not None and msg.stream == self._stream.settings.stream:
            self._stream.close_frames(msg.seq)

    def _on_missed(
        self, request: MissedFrames.Request, response: MissedFrames.Response
    ) -> MissedFrames.Response:
        if self._stream is None:
            return response
        return reply_to_srv(self._stream.missed(srv_to_request(request)), response)

    def _on_missed_bars(
        self, request: MissedBars.Request, response: MissedBars.Response
    ) -> MissedBars.Response:
        if self._stream is None or self._history is None:
            return response
        stream, epoch = self._stream.settings.stream, self._stream.settings.epoch
        page = self._history.page(request.first_seq, request.last_seq)
        response.stream, response.epoch = stream, epoch
        response.oldest_seq, response.next_seq = page.oldest_seq, page.next_seq
        response.blocks = [block_to_msg(block, stream, epoch, seq) for seq, block in page.blocks]
        return response

    def _report(self) -> None:
        if self._stream is None or self._history is None:
            return
        counters = self._stream.counters
        for name in counters.__slots__:
            self.set_counter(name, getattr(counters, name))
        self.set_counter('frames_open', self._stream.n_open)
        self.set_counter('bar_history_dropped', self._history.dropped)
        self.set_counter('bars_rejected', sum(self._source.counts.values()))
        if self._group is not None:
            self._report_group(self._group)
        if counters.source_done and counters.frames_sent == 0:
            self.set_info(
                'no bar is later than the training data of the bundle: nothing to decide'
            )

    def _report_group(self, group: SourceGroup) -> None:
        for name, n in (group.fates | group.own_counts | group.counts).items():
            self.set_counter(f'source.{name}', n)
        for name, n in group.restarts.items():
            self.set_counter(f'source.{name}.restarts', n)
        problems = group.problems
        self.set_info(
            'several, '
            + (
                '; '.join(f'{name} gives nothing: {text}' for name, text in problems.items())
                or 'all sources run'
            ),
            degraded=bool(problems),
        )


def _settings(
    params: Any, features_id: str, epoch: int, warm_until_ns: int, bundle: Bundle, source: Source
) -> StreamSettings:
    encoder = bundle.manifest.encoder
    origin = {'file': params.data, 'several': params.sources}.get(
        params.source, f'seed {params.seed}'
    )
    return StreamSettings(
        stream=params.stream,
        epoch=epoch,
        features_id=features_id,
        warm_until_ns=warm_until_ns,
        horizon=max(bundle.manifest.window.horizon, encoder.horizon if encoder else 0),
        max_in_flight=params.max_in_flight,
        resend_after_s=params.resend_after_ms / 1e3,
        checkpoint=Path(params.state_dir) / 'checkpoint.npz',
        checkpoint_s=params.checkpoint_ms / 1e3,
        identity={
            'stream': params.stream,
            'features_id': features_id,
            'source': f'{params.source} {origin}',
            'symbols': ' '.join(source.symbols),
            'warm_until_ns': str(warm_until_ns),
        },
    )


def main() -> int:
    """Run the gateway process: gateway and bridge."""
    hub = Hub()
    return run_process(
        'gateway', [functools.partial(GatewayNode, hub), functools.partial(BridgeNode, hub)]
    )


if __name__ == '__main__':
    sys.exit(main())
