# SPDX-License-Identifier: Apache-2.0
"""What supervisor and agents say to each other, and the events that the control path writes down.

Plain data and its encoding: one byte, the version, then MessagePack tagged by `kind`. No socket:
`io/control_link.py` carries it.
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import TypeVar, Union

import msgspec

from heqis_core.errors import WireError

_T = TypeVar('_T')

CONTROL_VERSION = 1
"""Spoken version; an agent and a supervisor of different versions do not work together."""

MAX_MESSAGE_BYTES = 1 << 20
"""No control message is longer; a longer one is refused on both ends."""


class NodeState(IntEnum):
    """Lifecycle state of a node, with the codes of lifecycle_msgs/State."""

    UNKNOWN = 0
    UNCONFIGURED = 1
    INACTIVE = 2
    ACTIVE = 3
    FINALIZED = 4
    TRANSITIONING = 10


class Transition(str, Enum):
    """A lifecycle transition that the supervisor asks for."""

    CONFIGURE = 'configure'
    ACTIVATE = 'activate'
    DEACTIVATE = 'deactivate'
    CLEANUP = 'cleanup'


GOAL = {
    Transition.CONFIGURE: NodeState.INACTIVE,
    Transition.ACTIVATE: NodeState.ACTIVE,
    Transition.DEACTIVATE: NodeState.INACTIVE,
    Transition.CLEANUP: NodeState.UNCONFIGURED,
}
"""State that shows that a transition took effect."""


class Level(IntEnum):
    """Severity of an event, with the codes of heqis_msgs/Event and DiagnosticStatus."""

    INFO = 0
    WARN = 1
    ERROR = 2


class Event(msgspec.Struct, frozen=True, array_like=True):
    """Something that a person should be able to look up later.

    Attributes:
        stamp_ns: wall clock, ns UTC.
        level: severity.
        source: node or process that says it.
        kind: short stable name: node_up, node_lost, killed, kill_switch, ...
        subject: what it happened to.
        text: one sentence for people.
    """

    stamp_ns: int
    level: Level
    source: str
    kind: str
    subject: str
    text: str


class NodeBeat(msgspec.Struct, frozen=True):
    """One managed node inside a heartbeat; fields as in heqis_msgs/NodeStatus."""

    name: str
    state: int
    spin_count: int = 0
    progress: int = 0
    pending: int = 0
    counters: dict[str, int] = {}
    stages_us: dict[str, int] = {}
    info: str = ''
    degraded: bool = False


class ProcessBeat(msgspec.Struct, frozen=True):
    """One heartbeat of one process: fields of heqis_msgs/Heartbeat, and what the agent adds.

    Attributes:
        proc_start: start time of the pid in clock ticks since boot, read by the agent when it
        first saw the
            process; 0 = could not be read. It tells the process from a later one with the same
            pid.
        restarts: how often the agent saw the process begin anew.
    """

    board: str
    process: str
    host: str
    pid: int
    start_id: int
    count: int
    stamp_ns: int
    boot_id: str
    hold: bool = False
    nodes: tuple[NodeBeat, ...] = ()
    proc_start: int = 0
    restarts: int = 0


class Hello(msgspec.Struct, frozen=True, tag='hello', tag_field='kind'):
    """An agent reports in: after each connect, and once a second."""

    board: str
    agent_id: int
    host: str
    boot_id: str
    pid: int


class Beats(msgspec.Struct, frozen=True, tag='beats', tag_field='kind'):
    """Heartbeats of one board, from its agent."""

    board: str
    agent_id: int
    beats: tuple[ProcessBeat, ...]


class Transit(msgspec.Struct, frozen=True, tag='transit', tag_field='kind'):
    """Supervisor to agent: take a node through a lifecycle transition.

    Attributes:
        id: names this command; its result carries the same.
        node: fully qualified name of the node.
        transition: which one.
        timeout_ms: after this long the agent reports that no answer came.
    """

    id: int
    node: str
    transition: Transition
    timeout_ms: int


class Kill(msgspec.Struct, frozen=True, tag='kill', tag_field='kind'):
    """Supervisor to agent: end exactly this start of a process; launch starts it again."""

    id: int
    process: str
    pid: int
    start_id: int
    boot_id: str
    proc_start: int


class KillSilent(msgspec.Struct, frozen=True, tag='kill_silent', tag_field='kind'):
    """Supervisor to agent: end what launch runs as a process and what has long been silent.

    What stops before its first heartbeat has no identity that the supervisor could name.

    Attributes:
        id: names this command; its result carries the same.
        process: name of the process; its executable has the same name.
        silent_ms: only if it began, and was last heard by the agent, at least this long ago.
    """

    id: int
    process: str
    silent_ms: int


class Reboot(msgspec.Struct, frozen=True, tag='reboot', tag_field='kind'):
    """Supervisor to agent: reboot the board in good order, by the command of its parameters.

    Attributes:
        id: names this command; its result carries the same.
        boot_id: only while the board has this boot identity.
    """

    id: int
    boot_id: str


class Result(msgspec.Struct, frozen=True, tag='result', tag_field='kind'):
    """Agent to supervisor: what became of a command.

    Attributes:
        id: the command.
        board: the agent's board.
        agent_id: identity of the agent's start.
        ok: whether it was done.
        text: why not, in one line.
        state: state of the node that the agent knows of after a transition; UNKNOWN otherwise.
        gone: there was nothing to kill: the process had ended before, or was never there.
    """

    id: int
    board: str
    agent_id: int
    ok: bool
    text: str = ''
    state: NodeState = NodeState.UNKNOWN
    gone: bool = False


class Overview(msgspec.Struct, frozen=True, tag='overview', tag_field='kind'):
    """Supervisor to agents: its own heartbeat, to be heard on every board."""

    beat: ProcessBeat


FromAgent = Union[Hello, Beats, Result]  # noqa: UP007 -- a value, and Python 3.10 reads it too
FromSupervisor = Union[Transit, Kill, KillSilent, Reboot, Overview]  # noqa: UP007

_HEAD = bytes([CONTROL_VERSION])
_ENCODER = msgspec.msgpack.Encoder()
_FROM_AGENT: msgspec.msgpack.Decoder[FromAgent] = msgspec.msgpack.Decoder(FromAgent)
_FROM_SUPERVISOR: msgspec.msgpack.Decoder[FromSupervisor] = msgspec.msgpack.Decoder(FromSupervisor)


def encode(message: FromAgent | FromSupervisor) -> bytes:
    """Return the bytes of one control message; raise WireError if they would be too many."""
    data = _HEAD + _ENCODER.encode(message)
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(
            f'control message {type(message).__name__} has {len(data)} bytes, '
            f'more than {MAX_MESSAGE_BYTES}'
        )
    return data


def decode_from_agent(data: bytes) -> FromAgent:
    """Return what an agent sent; WireError if no agent may send it."""
    return _decode(_FROM_AGENT, data)


def decode_from_supervisor(data: bytes) -> FromSupervisor:
    """Return what the supervisor sent; WireError if no supervisor may send it."""
    return _decode(_FROM_SUPERVISOR, data)


def _decode(decoder: msgspec.msgpack.Decoder[_T], data: bytes) -> _T:
    if len(data) > MAX_MESSAGE_BYTES:
        raise WireError(f'control message of {len(data)} bytes, more than {MAX_MESSAGE_BYTES}')
    if data[:1] != _HEAD:
        raise WireError(
            f'control message of version {data[0] if data else "none"}, '
            f'this is {CONTROL_VERSION}; run the same version of HEQIS on every board'
        )
    try:
        return decoder.decode(memoryview(data)[1:])
    except (msgspec.DecodeError, RecursionError) as error:
        raise WireError(f'not a control message: {error}') from None
