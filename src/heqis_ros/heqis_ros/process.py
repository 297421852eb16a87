# SPDX-License-Identifier: Apache-2.0
"""The main function of every HEQIS process: nodes, executor, heartbeat, signals, exit code.

Exit codes: 0 after SIGINT or SIGTERM; 1 after a failure while running (one line says which); 2 if
the process cannot be started as asked (arguments, parameter file, environment). A parameter value
that a node refuses is not an exit: launch would start the process again and again. The node stays
unconfigured, its configure answers FAILURE with the reason, and the supervisor decides.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence

import rclpy
from rclpy.exceptions import InvalidHandle
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from heqis_core.errors import ConfigError
from heqis_core.io.notify import Notifier
from heqis_msgs.msg import NodeStatus
from heqis_ros.heartbeat import HeartbeatThread, rate_hz
from heqis_ros.node import ManagedNode
from heqis_ros.ports import one_line

EXIT_S = 1.8
"""From the signal to the end of the process; what has not ended then is left behind."""
SPIN_S = 0.2
RETRY_S = (1.0, 2.0, 5.0, 10.0)
"""Back-off of a node that brings itself up."""


class _Signals:
    """SIGINT and SIGTERM, seen by a thread even while the executor is blocked."""

    def __init__(self, name: str) -> None:
        self.stopping = threading.Event()
        self._name = name
        self._done = threading.Event()
        self._wake: Callable[[], None] = lambda: None
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        self._sockets = (reader, writer)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, name='signals', daemon=True).start()

    def on_stop(self, wake: Callable[[], None]) -> None:
        """Set what is called, from the watching thread, when the first signal comes."""
        self._wake = wake

    def finished(self) -> None:
        """Say that the process ended in time."""
        self._done.set()

    def _watch(self) -> None:
        # Signals after the first change nothing: a terminal's Ctrl-C and the launcher's own signal
        # both come.
        while self._sockets[0].recv(1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        self.stopping.set()
        self._wake()
        if not self._done.wait(EXIT_S):
            _say(
                f'{self._name}: did not end within {EXIT_S} s of the signal: a callback or'
                ' a worker hangs; leaving'
            )
            os._exit(1)


def run_process(
    name: str, node_classes: Sequence[Callable[[], ManagedNode]], argv: Sequence[str] | None = None
) -> int:
    """Run nodes in one process until SIGINT or SIGTERM; return the exit code (see the module).

    `name` is the process in the heartbeat, `node_classes` are called without arguments, in order;
    `argv` is like `sys.argv[1:]` and carries ROS arguments: `--ros-args -r __ns:=/x -r a:=b -p
    name:=value --params-file`.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    os.environ.setdefault('RCUTILS_COLORIZED_OUTPUT', '0')
    faulthandler.enable()
    # `kill -USR1` prints where every thread is: what a hung process can still say.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signals = _Signals(name)
    starter = Notifier()
    nodes: list[ManagedNode] = []
    heartbeat: HeartbeatThread | None = None
    executor: SingleThreadedExecutor | None = None
    code = 2
    try:
        _check_arguments(name, arguments, len(node_classes))
        rate = rate_hz()
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
        executor = SingleThreadedExecutor()
        signals.on_stop(executor.wake)
        for node_class in node_classes:
            nodes.append(node_class())
            executor.add_node(nodes[-1])
        for node in nodes:
            node.accept_siblings(nodes)
        heartbeat = HeartbeatThread(name, nodes, rate=rate)
        starter.ready()
        code = 1
        _spin(executor, nodes, signals)
        code = 0
    except Exception as error:
        if code == 1:
            traceback.print_exc()
        what = 'cannot start' if code == 2 else 'failed'
        _say(f'{name}: {what}: {type(error).__name__}: {one_line(error)}')
    finally:
        starter.stopping()
        starter.close()
        code = max(code, _end(nodes, heartbeat, executor))
        signals.finished()
    return code


def _check_arguments(name: str, arguments: Sequence[str], n_nodes: int) -> None:
    if rest := remove_ros_args([name, *arguments])[1:]:
        raise ConfigError(
            f'unknown arguments {" ".join(rest)}; nodes take ROS arguments only (--ros-args …)'
        )
    renames = [text for text in arguments if text.startswith(('__node:=', '__name:='))]
    if renames and n_nodes > 1:
        raise ConfigError(
            f'{renames[0]} would give {n_nodes} nodes one name; remove `name` in the launch file,'
            f' or write `<node>:{renames[0]}`'
        )


def _spin(
    executor: SingleThreadedExecutor, nodes: Sequence[ManagedNode], signals: _Signals
) -> None:
    starters = [_Starter(node) for node in nodes if node.AUTOSTART]
    failures = 0
    while not signals.stopping.is_set():
        for starter in starters:
            starter.update(time.monotonic())
        try:
            executor.spin_once(timeout_sec=SPIN_S)
            failures = 0
        except ExternalShutdownException:
            return
        except (rclpy_implementation.RCLError, InvalidHandle) as error:
            # A client that left before its answer was ready; on Humble also a port that was freed
            # while its callback was due. Not a reason to end, unless it goes on.
            failures += 1
            if failures > 20:
                raise
            _say(f'executor: {one_line(error)}')


class _Starter:
    """Brings one node to ACTIVE, and again after a fault, with a back-off."""

    def __init__(self, node: ManagedNode) -> None:
        self._node = node
        self._tries = 0
        self._due = 0.0
        self._refused = False

    def update(self, now: float) -> None:
        state = self._node.state
        if state == NodeStatus.ACTIVE:
            # A node that falls rests for the first back-off, so that heartbeats show why it fell.
            self._tries, self._due = 0, now + RETRY_S[0]
        elif state == NodeStatus.UNCONFIGURED and now >= self._due and not self._refused:
            self._due = now + RETRY_S[min(self._tries, len(RETRY_S) - 1)]
            self._tries += 1
            self._node.trigger_configure()
            # No later attempt can change what this process was started with.
            self._refused = bool(self._node.param_problems)
            if self._node.state == NodeStatus.INACTIVE:
                self._node.trigger_activate()


def _end(
    nodes: Sequence[ManagedNode],
    heartbeat: HeartbeatThread | None,
    executor: SingleThreadedExecutor | None,
) -> int:
    code = 0
    for node in nodes:
        node.stop_soon()
    for node in reversed(nodes):
        node.close()
        code = max(code, int(node.worker_alive()))
    if heartbeat is not None:
        heartbeat.stop()
    for node in nodes:
        node.destroy_node()
    if executor is not None:
        executor.shutdown(timeout_sec=0.1)
    if rclpy.ok():
        rclpy.shutdown()
    return code


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
