# SPDX-License-Identifier: Apache-2.0
"""Three ways from the gateway's process to the compute process and back: bypass, bare pyzmq, DDS.

Each carries a frame there and the decisions of its symbols back, as the graph does. Encoding and
decoding count for the bypass and for DDS, because a node has to do both; bare pyzmq moves as many
bytes and looks at eight of them. What is done with the times is not here.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zmq

from heqis_core import wire
from heqis_core.decision import Decisions
from heqis_core.frame import FeatureFrame, Stage, stamp
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.io.zmq_security import (
    LinkSecurity,
    secure_client,
    write_keys,
)

FEATURES = 32
WAIT_MS = 10_000
BOARDS = 'gateway', 'compute'
_TIME = struct.Struct('<q')


def make_frame(n_symbols: int) -> FeatureFrame:
    """Return a frame of random numbers."""
    rng = np.random.default_rng(n_symbols)
    return FeatureFrame(
        'bench',
        1,
        0,
        time.time_ns(),
        0,
        '0' * 16,
        tuple(f'{600000 + i}.SH' for i in range(n_symbols)),
        {
            'features': rng.standard_normal((n_symbols, FEATURES)).astype(np.float32),
            'status': np.ones(n_symbols, np.uint8),
            'close': rng.uniform(1, 100, n_symbols),
        },
    )


def make_decisions(n_symbols: int) -> Decisions:
    """Return the decisions of such a frame: all HOLD."""
    frame = make_frame(n_symbols)
    score = np.zeros(n_symbols, np.float32)
    return Decisions(
        frame.stream,
        frame.epoch,
        frame.seq,
        frame.event_time_ns,
        frame.revision,
        '0' * 16,
        'gru',
        frame.symbols,
        np.ones(n_symbols, np.uint8),
        np.zeros(n_symbols, np.uint32),
        score,
        np.full(n_symbols, np.nan, np.float32),
        np.full((n_symbols, 3), 1 / 3, np.float32),
        score.copy(),
        np.full(n_symbols, frame.event_time_ns, np.int64),
    )


class Way(Protocol):
    """One end: the first (gateway) sends frames, the second (compute) answers with decisions."""

    def use(self, n_symbols: int) -> None:
        """Send messages of so many symbols from now on."""

    def send(self) -> None:
        """Send one message."""

    def recv(self) -> int:
        """Receive one message; return its one-way time in ns (0 where it was not stamped)."""

    def close(self) -> None:
        """Free everything."""


class Bypass:
    """HEQIS's link."""

    def __init__(
        self, ports: list[int], first: bool, security: LinkSecurity | None = None
    ) -> None:
        """Open one end."""
        ends = map(tcp, ports)
        self._gateway = GatewayLink(*ends, security=security) if first else None
        self._compute = None if first else ComputeLink(*ends, security=security)
        self.last_seq = 0

    def use(self, n_symbols: int) -> None:
        """Send messages of so many symbols from now on."""
        self._frame, self._decisions = make_frame(n_symbols), make_decisions(n_symbols)

    def send(self) -> None:
        """Send one message; each frame has the next seq, as in a stream."""
        if self._gateway is not None:
            self.last_seq = self._frame.seq = self.last_seq + 1
            self.send_frame(self._frame)
        else:
            self.send_decisions(self._decisions)

    def recv(self) -> int:
        """Receive one message; return the one-way time of a frame in ns, 0 for decisions."""
        if self._gateway is not None:
            self.recv_decisions()
            return 0
        frame = self.recv_frame()
        return int(frame.stamps[Stage.RECEIVED] - frame.stamps[Stage.SENT])

    def counters(self) -> dict[str, int]:
        """Return the counters of this end."""
        link = self._gateway or self._compute
        assert link is not None
        return link.counters

    def send_frame(self, frame: FeatureFrame) -> None:
        """Send a frame, at the first end."""
        assert self._gateway is not None
        if not self._gateway.send(frame, WAIT_MS):
            raise TimeoutError(self._gateway.last_error)

    def recv_decisions(self) -> Decisions:
        """Receive decisions, at the first end."""
        assert self._gateway is not None
        decisions = self._gateway.recv_decisions(WAIT_MS)
        if decisions is None:
            raise TimeoutError(f'no decisions over the bypass: {self._gateway.last_error}')
        return decisions

    def recv_frame(self) -> FeatureFrame:
        """Receive a frame, at the second end."""
        assert self._compute is not None
        frame = self._compute.recv(WAIT_MS)
        if frame is None:
            raise TimeoutError(f'no frame over the bypass: {self._compute.last_error}')
        return frame

    def send_decisions(self, decisions: Decisions) -> None:
        """Send decisions, at the second end."""
        assert self._compute is not None
        if not self._compute.send_decisions(decisions, WAIT_MS):
            raise TimeoutError(self._compute.last_error)

    def close(self) -> None:
        """Free everything."""
        for link in (self._gateway, self._compute):
            if link is not None:
                link.close()


class Bare:
    """PUSH and PULL of pyzmq with as many bytes, the time of sending in the first eight."""

    def __init__(
        self, ports: list[int], first: bool, security: LinkSecurity | None = None
    ) -> None:
        """Open one end."""
        there, back = ports
        self._first = first
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._out = self._context.socket(zmq.PUSH)
        self._in = self._context.socket(zmq.PULL)
        self._in.rcvtimeo = WAIT_MS
        if security is not None:
            secure_client(self._out, security)
            self._in.curve_secretkey, self._in.curve_server = security.secret_key, True
        self._in.bind(tcp(back if first else there))
        self._out.connect(tcp(there if first else back))

    def use(self, n_symbols: int) -> None:
        """Send messages of so many symbols from now on."""
        if self._first:
            self.use_bytes(wire.encode_frame(make_frame(n_symbols)))
        else:
            self.use_bytes(wire.encode_decisions(make_decisions(n_symbols)))

    def use_bytes(self, data: bytes) -> None:
        """Send as many bytes from now on."""
        self._data = bytearray(data)

    def send(self) -> None:
        """Send one message."""
        _TIME.pack_into(self._data, 0, time.time_ns())
        self._out.send(self._data)

    def recv(self) -> int:
        """Receive one message; return its one-way time in ns."""
        data = self._in.recv()
        return time.time_ns() - int(_TIME.unpack_from(data)[0])

    def close(self) -> None:
        """Free everything."""
        self._context.destroy(0)


class Dds:
    """Topics of rclpy: Fast DDS over UDP on loopback, QoS and conversions as in the graph."""

    def __init__(self, first: bool) -> None:
        """Open one end."""
        import rclpy
        from rclpy.executors import SingleThreadedExecutor

        from heqis_msgs.msg import Decisions as DecisionsMsg
        from heqis_msgs.msg import FeatureFrame as FrameMsg
        from heqis_ros import convert, qos

        self._first, self._rclpy, self._convert = first, rclpy, convert
        rclpy.init(args=[])
        self._node = rclpy.create_node('gateway' if first else 'compute')
        frames = FrameMsg, 'features', qos.FRAMES
        decisions = DecisionsMsg, 'decisions/proposed', qos.DECISIONS
        out, back = (frames, decisions) if first else (decisions, frames)
        self._publisher = self._node.create_publisher(*out)
        self._node.create_subscription(back[0], back[1], self._on_message, back[2])
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        self._times: list[int] = []

    def use(self, n_symbols: int) -> None:
        """Send messages of so many symbols from now on; wait until the other end is discovered."""
        self._frame, self._decisions = make_frame(n_symbols), make_decisions(n_symbols)
        self._spin_until(
            lambda: self._publisher.get_subscription_count() > 0,
            'DDS: the other process was not discovered',
        )

    def send(self) -> None:
        """Send one message."""
        if self._first:
            stamp(self._frame.stamps, Stage.SENT)
            self._publisher.publish(self._convert.frame_to_msg(self._frame))
        else:
            self._publisher.publish(self._convert.decisions_to_msg(self._decisions))

    def recv(self) -> int:
        """Receive one message; return the one-way time of a frame in ns, 0 for decisions."""
        self._spin_until(lambda: bool(self._times), 'no message over DDS')
        return self._times.pop()

    def close(self) -> None:
        """Free everything."""
        self._executor.shutdown()
        self._node.destroy_node()
        self._rclpy.shutdown()

    def _on_message(self, message: Any) -> None:
        if self._first:
            self._convert.msg_to_decisions(message)
            self._times.append(0)
            return
        frame = self._convert.msg_to_frame(message)
        stamp(frame.stamps, Stage.RECEIVED)
        self._times.append(int(frame.stamps[Stage.RECEIVED] - frame.stamps[Stage.SENT]))

    def _spin_until(self, done: Any, failure: str) -> None:
        deadline_s = time.monotonic() + WAIT_MS / 1000
        while not done():
            self._executor.spin_once(0.1)
            if time.monotonic() > deadline_s:
                raise TimeoutError(failure)


def tcp(port: int) -> str:
    """Return the endpoint of a port on loopback."""
    return f'tcp://127.0.0.1:{port}'


N_PORTS = 5


def open_ways(
    ports: list[int], with_dds: bool, first: bool, keys: str | None = None
) -> dict[str, Any]:
    """Open one end of each way: on `N_PORTS` ports, and with a folder of keys on as many more."""
    ways: dict[str, Any] = {'bypass': Bypass(ports[:3], first), 'bare': Bare(ports[3:5], first)}
    if keys is not None:
        security, more = board_keys(keys, first), ports[N_PORTS:]
        ways['bypass CURVE'] = Bypass(more[:3], first, security)
        ways['bare CURVE'] = Bare(more[3:5], first, security)
    if with_dds:
        ways['dds'] = Dds(first)
    return ways


def make_keys(folder: str) -> None:
    """Write the key pairs of both boards."""
    for name in BOARDS:
        write_keys(folder, name)


def board_keys(folder: str, first: bool) -> LinkSecurity:
    """Read the keys of one board, which admits the other one alone."""
    own, peer = BOARDS if first else BOARDS[::-1]
    base = Path(folder)
    return LinkSecurity.load(base / f'{own}.key_secret', peer_key_file=base / f'{peer}.key')
