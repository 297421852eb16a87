# SPDX-License-Identifier: Apache-2.0
"""The recovery ladder as data: every case that the policy knows, its step, and what follows.

The policy judges each part of the graph anew in every update and gives it one of these cases;
table and diagram in docs/supervision.md are made from them (`ladder_docs.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, IntEnum
from typing import NamedTuple


class Step(IntEnum):
    """The recovery ladder: the highest step that applies to a node or process wins."""

    NONE = 0
    WARN = 1
    HOLD_OUTPUT = 2
    RESTART_NODE = 3
    RESTART_PROCESS = 4
    SOFT_REBOOT = 5
    HARD_RESET = 6
    SAFE_LATCH = 7


class Row(NamedTuple):
    """What the policy knows of one case.

    Attributes:
        part: node, process, board or graph.
        step: its step on the ladder.
        when: what makes it so.
        action: what the policy does then.
        check: what must be seen for the part to be well again.
        otherwise: where it leads if that is not seen: name of a case, and when.
    """

    part: str
    step: Step
    when: str
    action: str = ''
    check: str = ''
    otherwise: Mapping[str, str] = {}


_BACK = 'its agent speaks'
_CLEARED = 'a person clears it'
_BEAT = 'its heartbeat shows ACTIVE'
_START = 'a new start of it sends heartbeats'
_BOOT = 'a new boot reports in'


class Case(Enum):
    """What may be the matter with a part of the graph; each is in exactly one case."""

    NODE_WELL = Row(
        'node',
        Step.NONE,
        'ACTIVE, and no other case applies',
        otherwise={
            'NODE_UNREACHED': 'its agent falls silent',
            'NODE_FAILED': 'it falls from ACTIVE',
            'NODE_STUCK': 'no progress',
            'NODE_STALLED': 'no progress, and on_stuck is warn',
            'NODE_DOWN': 'its process fails',
            'NODE_ENDING': 'it is FINALIZED',
        },
    )
    NODE_UNHEARD = Row(
        'node',
        Step.WARN,
        'its process has not been heard yet, or does not name it',
        check='its heartbeat',
        otherwise={'NODE_COMING': 'heard, and not ACTIVE'},
    )
    NODE_COMING = Row(
        'node',
        Step.WARN,
        'not ACTIVE, and nothing of it failed',
        'configure, then activate once all it depends on are well; asked again after 2, 4, 8 s',
        _BEAT,
        {'NODE_FAILED': 'refused, or without effect', 'NODE_DOWN': 'no request begins anything'},
    )
    NODE_ENDING = Row(
        'node',
        Step.WARN,
        'FINALIZED for less than 3 s',
        'nothing, its process is ending',
        _START,
        {'NODE_FINALIZED': 'still there'},
    )
    NODE_STALLED = Row(
        'node',
        Step.WARN,
        'input waits for `progress_ms` without progress, `on_stuck` is warn',
        'nothing but an event',
        'progress',
    )
    NODE_UNREACHED = Row(
        'node',
        Step.WARN,
        'the agent of its board is silent',
        'nothing: it can be neither watched nor helped',
        _BACK,
    )
    NODE_FAILED = Row(
        'node',
        Step.RESTART_NODE,
        'a transition failed or had no effect, or it fell from ACTIVE',
        'after `backoff_ms`, doubled each time: cleanup if need be, configure, activate',
        _BEAT,
        {'NODE_LATCHED': '`attempts` failures in a row'},
    )
    NODE_STUCK = Row(
        'node',
        Step.RESTART_PROCESS,
        'input waits for `progress_ms` without progress',
        'its process is killed',
        _START,
        {'NODE_DOWN': 'killed, not back yet'},
    )
    NODE_FINALIZED = Row(
        'node',
        Step.RESTART_PROCESS,
        'FINALIZED for 3 s: only a new process can bring it back',
        'its process is killed',
        _START,
        {'NODE_DOWN': 'killed, not back yet'},
    )
    NODE_DOWN = Row(
        'node',
        Step.RESTART_PROCESS,
        'its process is lost, hung or deaf',
        'its process is killed',
        _START,
        {'NODE_REBOOT': 'its process is spent', 'NODE_LATCHED': 'its process is latched'},
    )
    NODE_REBOOT = Row(
        'node',
        Step.SOFT_REBOOT,
        'its process is spent',
        'its board is rebooted',
        _BOOT,
        {'NODE_LATCHED': 'its process is latched'},
    )
    NODE_LATCHED = Row(
        'node',
        Step.SAFE_LATCH,
        '`attempts` failures in a row, or its process is latched',
        'nothing; all output is held if it has `hold_output`',
        _CLEARED,
    )

    PROCESS_WELL = Row(
        'process',
        Step.NONE,
        'heard within its lease, and no other case applies',
        otherwise={
            'PROCESS_UNREACHED': 'its agent falls silent',
            'PROCESS_DOWN': 'lost, hung, deaf or stuck',
        },
    )
    PROCESS_UNHEARD = Row(
        'process',
        Step.WARN,
        'not heard yet',
        'after `respawn_ms`, doubled each time: the agent ends what launch runs and nobody hears',
        'its heartbeat',
        {'PROCESS_LATCHED': 'ended more than `restarts_max` times in a row'},
    )
    PROCESS_UNREACHED = Row(
        'process',
        Step.WARN,
        'the agent of its board is silent',
        'nothing: it can be neither watched nor helped',
        _BACK,
    )
    PROCESS_DOWN = Row(
        'process',
        Step.RESTART_PROCESS,
        'silent for `lease_ms`, hung for `hang_ms`, deaf, or a node of it is stuck or finalized',
        'the agent kills this start of it, launch starts it again',
        _START,
        {
            'PROCESS_SPENT': 'too many starts or failed kills, with `soft_reboot`',
            'PROCESS_LATCHED': 'too many starts or failed kills, without',
        },
    )
    PROCESS_SPENT = Row(
        'process',
        Step.SOFT_REBOOT,
        '`restarts_max` starts in `restarts_window_ms`, or five kills without effect, and its '
        'board has `soft_reboot`',
        'its board is rebooted',
        _BOOT,
        {'PROCESS_LATCHED': 'nothing more may be done for its board'},
    )
    PROCESS_LATCHED = Row(
        'process',
        Step.SAFE_LATCH,
        'the same without `soft_reboot`, or no reboot and no reset helped',
        'nothing; all output is held if a node of it has `hold_output`',
        _CLEARED,
    )

    BOARD_WELL = Row(
        'board',
        Step.NONE,
        'no other case applies',
        otherwise={
            'BOARD_REBOOTS': 'a process of it is spent',
            'BOARD_RESETS': 'it is silent, or a person asks',
        },
    )
    BOARD_WAITS = Row(
        'board',
        Step.WARN,
        'a process of it is spent, or it is silent for `reset_after_ms`, and `cooldown_ms` is '
        'not over',
        'nothing yet',
        'it speaks again, or a new boot reports in',
        {'BOARD_RESETS': 'the cool-down is over'},
    )
    BOARD_REBOOTS = Row(
        'board',
        Step.SOFT_REBOOT,
        'a process of it is spent, its agent speaks, the budget allows it',
        'on the record first, then its agent reboots it',
        f'{_BOOT} within `boot_ms`',
        {'BOARD_WAITS': 'refused, failed or without effect'},
    )
    BOARD_RESETS = Row(
        'board',
        Step.HARD_RESET,
        'silent for `reset_after_ms`, a reboot did not help, or a person asks; the budget '
        'allows it',
        'on the record first, then its driver resets it',
        f'{_BOOT} within `boot_ms`',
        {
            'BOARD_WAITS': 'failed or without effect',
            'BOARD_LATCHED': 'silent after the last of its budget',
        },
    )
    BOARD_LATCHED = Row(
        'board',
        Step.SAFE_LATCH,
        'silent for `reset_after_ms`, and `resets_max` in `window_ms` are used up',
        'nothing; all output is held, across restarts too',
        _CLEARED,
    )

    GRAPH_WELL = Row(
        'graph', Step.NONE, 'no other case applies', otherwise={'GRAPH_HELD': 'one is latched'}
    )
    GRAPH_HELD = Row(
        'graph',
        Step.HOLD_OUTPUT,
        'a node with `hold_output` is latched or waits for a reboot, or a board is latched',
        'the heartbeat of the supervisor says hold: no decisions, signals are refused',
        'none of these is so any more',
    )

    @property
    def step(self) -> Step:
        """Return its step on the ladder."""
        return self.value.step

    @property
    def sticky(self) -> bool:
        """Return whether only a person ends it."""
        return self.value.check == _CLEARED
