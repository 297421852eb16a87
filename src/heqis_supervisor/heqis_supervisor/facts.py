# SPDX-License-Identifier: Apache-2.0
"""What the policy sees, remembers and asks for: plain immutable data without any decision.

Times are monotonic seconds. `policy.py` makes these, `health.py` reads them for people.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from heqis_core.control import (
    FromAgent,
    Kill,
    KillSilent,
    Level,
    NodeState,
    ProcessBeat,
    Reboot,
    Transit,
    Transition,
)
from heqis_supervisor.ladder import Case, Step


@dataclass(frozen=True)
class Asked:
    """A person's word that a board be reset, and why."""

    board: str
    reason: str


@dataclass(frozen=True)
class Pulsed:
    """What a driver made of a reset: it was carried out, or why not."""

    id: int
    ok: bool
    text: str


@dataclass(frozen=True)
class Facts:
    """What became known since the last update.

    Attributes:
        messages: what the agents said, in order.
        unsent: ids of commands that no agent took.
        cleared: nodes, `board/process` and `board/NAME` whose latch a person cleared; `*` means
            all.
        asked: resets that a person asks for.
        pulsed: what became of resets.
    """

    messages: tuple[FromAgent, ...] = ()
    unsent: tuple[int, ...] = ()
    cleared: tuple[str, ...] = ()
    asked: tuple[Asked, ...] = ()
    pulsed: tuple[Pulsed, ...] = ()


@dataclass(frozen=True)
class Command:
    """Action: send this to the agent of a board."""

    board: str
    message: Transit | Kill | KillSilent | Reboot


@dataclass(frozen=True)
class Note:
    """Action: publish this event."""

    level: Level
    kind: str
    subject: str
    text: str


@dataclass(frozen=True)
class Reset:
    """Action: reset a board in hardware, once this is on the disk.

    A soft one is only put on the disk: the order to the board's agent follows the answer.
    """

    board: str
    id: int
    soft: bool = False


Action = Command | Note | Reset


@dataclass(frozen=True)
class Running:
    """A transition that was asked for and not answered yet."""

    id: int
    transition: Transition
    asked_s: float


@dataclass(frozen=True)
class NodeMind:
    """What is known of one node.

    Attributes:
        full_name: as it calls itself, with namespace; empty until it was heard of.
        state: believed lifecycle state.
        since_s: since when.
        spin_count, spin_moved_s: proof that its executor runs, and when it last moved.
        progress, progress_moved_s: work done, and when it last moved or nothing was pending.
        pending, info, degraded: as it says.
        running: the transition in flight.
        asks, asking_s: how often it was asked for without a sign that it began, and since when.
        expect, expect_by_s: state that the last transition must show by then.
        was_active: it has been active in this start of its process.
        reset: it must go through cleanup before it is tried again.
        failures, failure, retry_s: in a row, the last one, and not before when the next attempt.
        latched: why nothing is tried any more; empty if not.
        case, reason: verdict of the last update; the reason is empty if all is well.
        waits_for: nodes it depends on that are not well.
    """

    full_name: str = ''
    state: NodeState = NodeState.UNKNOWN
    since_s: float = 0.0
    spin_count: int = -1
    spin_moved_s: float = 0.0
    progress: int = 0
    progress_moved_s: float = 0.0
    pending: int = 0
    info: str = ''
    degraded: bool = False
    running: Running | None = None
    asks: int = 0
    asking_s: float = 0.0
    expect: NodeState | None = None
    expect_by_s: float = 0.0
    was_active: bool = False
    reset: bool = False
    failures: int = 0
    failure: str = ''
    retry_s: float = 0.0
    latched: str = ''
    case: Case = Case.NODE_WELL
    reason: str = ''
    waits_for: tuple[str, ...] = ()

    @property
    def step(self) -> Step:
        """Return its step on the ladder."""
        return self.case.step


@dataclass(frozen=True)
class Killing:
    """A kill that was asked for: of which start, and by when its effect must show."""

    id: int
    start_id: int
    deadline_s: float
    confirmed: bool = False
    missed: bool = False


@dataclass(frozen=True)
class ProcessMind:
    """What is known of one process.

    Attributes:
        beat: its last heartbeat.
        heard_s: when that came.
        seen_by: identity of the agent that handed it on.
        began_s: when this start was first heard of.
        births: when new starts were first heard of, within the window of the rule.
        restarts: starts after the first, as far as anyone has seen.
        killing: the kill in flight.
        kills, retry_s: kills without effect in a row, and not before when the next.
        search, search_s: the search for a start that never spoke, and not before when the next.
        searched: how often one was found and ended, in a row.
        trouble: lost, hung, deaf, stuck or finalized; empty if none.
        reboot: why only a reboot of its board may help; empty if it need not be rebooted.
        latched: why nothing is tried any more; empty if not.
        case, reason: verdict of the last update.
    """

    beat: ProcessBeat | None = None
    heard_s: float = 0.0
    seen_by: int = 0
    began_s: float = 0.0
    births: tuple[float, ...] = ()
    restarts: int = 0
    killing: Killing | None = None
    kills: int = 0
    retry_s: float = 0.0
    search: int = 0
    search_s: float = 0.0
    searched: int = 0
    trouble: str = ''
    reboot: str = ''
    latched: str = ''
    case: Case = Case.PROCESS_WELL
    reason: str = ''

    @property
    def step(self) -> Step:
        """Return its step on the ladder."""
        return self.case.step


@dataclass(frozen=True)
class Resetting:
    """A reset or reboot that was asked for, and by when its effect must show.

    Attributes:
        id: its action, of a reboot then its order; 0 for one from before a restart.
        reason: why.
        boot_before: boot identity of the board then; empty if nobody knew.
        deadline_s: when it counts as without effect.
        acted: the driver is done, or the agent was told.
        soft: a reboot in good order by the board's own agent.
    """

    id: int
    reason: str
    boot_before: str
    deadline_s: float
    acted: bool = False
    soft: bool = False


@dataclass(frozen=True)
class ResetMind:
    """What is known of a board that can be reset.

    Attributes:
        boot_id: identity of the boot that reported in last; empty if none ever did.
        heard_s: when its agent was last heard, or since when anybody could have heard it.
        begun_s: when resets and reboots were begun, within the window of the rule.
        running: the one in flight.
        escalated: a reboot had no effect, so the next is a reset in hardware.
        latched: why it is reset no more; empty if it is.
        case, reason: verdict of the last update.
    """

    boot_id: str = ''
    heard_s: float = 0.0
    begun_s: tuple[float, ...] = ()
    running: Resetting | None = None
    escalated: bool = False
    latched: str = ''
    case: Case = Case.BOARD_WELL
    reason: str = ''

    @property
    def step(self) -> Step:
        """Return its step on the ladder."""
        return self.case.step


@dataclass(frozen=True)
class State:
    """Everything the policy remembers.

    Attributes:
        time_s: of the last update.
        since_s: of the first.
        boards: when the agent of each board was last heard.
        agents: identity of the agent of each board, and since when it is this one.
        processes: by `board/process`.
        nodes: by name.
        resets: by board, those that can be reset.
        hold: output must be held.
        next_id: of the next command.
        strangers: processes heard of that no rule names.
    """

    time_s: float
    since_s: float
    boards: Mapping[str, float]
    agents: Mapping[str, tuple[int, float]]
    processes: Mapping[str, ProcessMind]
    nodes: Mapping[str, NodeMind]
    resets: Mapping[str, ResetMind] = field(default_factory=dict)
    hold: bool = False
    next_id: int = 1
    strangers: frozenset[str] = frozenset()

    @property
    def case(self) -> Case:
        """Return the case of the whole graph."""
        return Case.GRAPH_HELD if self.hold else Case.GRAPH_WELL
