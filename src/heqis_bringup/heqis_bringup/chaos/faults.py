# SPDX-License-Identifier: Apache-2.0
"""The table of faults. How each is done is in `injections.py`, what is measured in `trial.py`."""

from __future__ import annotations

import signal
from functools import partial

from heqis_bringup.chaos import injections as do
from heqis_bringup.chaos.disturbance import BACK, DEADLOCK, FORWARD, SLOW
from heqis_bringup.chaos.layout import (
    AGENTS,
    COMPUTE,
    GATEWAY,
    JOURNAL,
    SUPERVISOR,
    WATCHED,
    cabled,
    disturbable,
    fed,
    linked,
    plain,
    spoilt,
)
from heqis_bringup.chaos.trial import Fault

SOON_S = 1.0
"""What is promised for a process that ends or stops."""
HELD_S = 2.0
NODES = {
    GATEWAY: ('bridge', 'gateway'),
    JOURNAL: ('risk_gate', 'journal'),
    COMPUTE: ('compute',),
}


def _parts(key: str) -> tuple[str, ...]:
    """Return the parts of a process on /diagnostics, its nodes too."""
    return (f'process/{key}', *(f'node/{name}' for name in NODES[key]))


def _ends(word: str, number: int, key: str) -> Fault:
    """Return the fault of a process that the supervisor watches by its heartbeat."""
    name = key.rpartition('/')[2]
    return Fault(
        f'{word}-{name}',
        f'SIG{word.upper()} to the {name} process',
        plain,
        partial(do.send, number, (key,)),
        (('event', 'process_', key),),
        _parts(key),
        SOON_S,
        (key,),
        restarts=True,
        promised=True,
    )


def _agent(word: str, number: int, key: str) -> Fault:
    """Return the fault of an agent, which the supervisor hears over the link."""
    board = key.partition('/')[0]
    return Fault(
        f'{word}-{board}-agent',
        f'SIG{word.upper()} to the agent of the {board} board',
        plain,
        partial(do.send, number, (key,)),
        (('event', 'agent_lost', board),),
        (f'board/{board}',),
        SOON_S,
        (key,),
        restarts=True,
        promised=True,
    )


def _supervisor(word: str, number: int) -> Fault:
    """Return the fault of the supervisor, which its board's agent misses."""
    return Fault(
        f'{word}-supervisor',
        f'SIG{word.upper()} to the supervisor',
        plain,
        partial(do.send, number, (SUPERVISOR,)),
        (('event', 'supervisor_', SUPERVISOR),),
        (f'process/{SUPERVISOR}',),
        SOON_S,
        targets=(SUPERVISOR,),
        restarts=True,
        promised=True,
    )


def _slow(key: str) -> Fault:
    name = key.rpartition('/')[2]
    text = f'a callback of the {name} takes 1.5 s'
    return Fault(f'slow-{name}', text, disturbable, partial(do.send, SLOW, (key,)))


def _deadlock(key: str) -> Fault:
    name = key.rpartition('/')[2]
    return Fault(
        f'deadlock-{name}',
        f'a callback of the {name} never comes back',
        disturbable,
        partial(do.send, DEADLOCK, (key,)),
        (('event', 'process_hung', key),),
        _parts(key),
        4.5,
        (key,),
        restarts=True,
    )


def _table() -> tuple[Fault, ...]:
    away = (('event', 'agent_lost', 'compute'),)
    ends = [
        fault
        for word, number in (('kill', signal.SIGKILL), ('stop', signal.SIGSTOP))
        for fault in (
            *(_ends(word, number, key) for key in WATCHED),
            *(_agent(word, number, key) for key in AGENTS),
            _supervisor(word, number),
        )
    ]
    return (
        *ends,
        Fault(
            'board-gone',
            'every process of the compute board stands still for a while',
            plain,
            do.freeze_board,
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'bundle-damaged',
            'a swap to a bundle with one bit turned',
            plain,
            do.damage_bundle,
            (('answer', 'refused', 'compute'),),
        ),
        Fault(
            'disk-full',
            'no room for the journal (RLIMIT_FSIZE of its process)',
            plain,
            do.fill_disk,
            (('heartbeat', 'commit_errors', 'risk_gate'),),
            ('node/risk_gate',),
            hold_s=HELD_S,
        ),
        Fault(
            'port-taken',
            'the gateway ends, and another program takes a port of it',
            plain,
            do.take_port,
            (('event', 'node_failed', 'bridge'),),
            _parts(GATEWAY),
            targets=(GATEWAY,),
            restarts=True,
            hold_s=HELD_S,
            check=do.names_port,
        ),
        *(_slow(key) for key in WATCHED),
        *(_deadlock(key) for key in WATCHED),
        Fault(
            'deadlock-supervisor',
            'a callback of the supervisor never comes back',
            disturbable,
            partial(do.send, DEADLOCK, (SUPERVISOR,)),
            (('runner', 'no sign of life', SUPERVISOR),),
            within_s=7.0,
            targets=(SUPERVISOR,),
            restarts=True,
        ),
        Fault(
            'clock-forward',
            'the wall clock of every process is an hour ahead, then right again',
            disturbable,
            partial(do.move_clocks, FORWARD, BACK),
        ),
        Fault(
            'clock-back',
            'the wall clock of every process is an hour behind, then right again',
            disturbable,
            partial(do.move_clocks, BACK, FORWARD),
        ),
        Fault(
            'link-reset',
            'every connection between the boards is reset once',
            linked,
            partial(do.cut, True, False),
        ),
        Fault(
            'link-half-open',
            'nothing passes between the boards, and no connection ends',
            linked,
            partial(do.cut, False, True),
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'link-cut',
            'every connection is reset, and nothing passes on the next ones',
            linked,
            partial(do.cut, True, True),
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'cable-pulled',
            'the compute board is in a network namespace; its cable is pulled, then plugged in',
            cabled,
            do.pull,
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'feed-silent',
            'the feed of bars says nothing for a while',
            fed,
            do.silence,
            check=do.every_bar,
        ),
        Fault(
            'feed-flood',
            f'{do.FLOOD_BLOCKS} blocks as fast as they are taken',
            fed,
            do.flood,
            check=do.every_bar,
        ),
        Fault(
            'feed-nan',
            'NaN and infinity as prices of two symbols',
            fed,
            do.poison,
            check=do.only_sound_signals,
        ),
        Fault(
            'journal-page',
            'a page of the journal is spoilt while its process is down; repaired by hand',
            spoilt,
            do.damage_journal,
            (('event', 'node_failed', 'risk_gate'), ('event', 'node_failed', 'journal')),
            _parts(JOURNAL),
            targets=(JOURNAL,),
            restarts=True,
            hold_s=HELD_S,
            check=do.says_how_to_repair,
            harms=True,
        ),
    )


FAULTS = {fault.name: fault for fault in _table()}
"""Every fault by its name."""
