# SPDX-License-Identifier: Apache-2.0
"""The table of faults, and how each is done. Nothing here is measured: see `trial.py`."""

from __future__ import annotations

import errno
import itertools
import json
import math
import resource
import shutil
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from heqis_bringup.chaos.disturbance import BACK, DEADLOCK, FORWARD, SLOW
from heqis_bringup.chaos.graph import SUPERVISOR, BenchError, Graph, Stored
from heqis_bringup.chaos.layout import cabled, disturbable, fed, linked, plain, spoilt
from heqis_bringup.chaos.record import Seen
from heqis_bringup.chaos.trial import REPAIRED, Fault, Undo
from heqis_core.decision import Action
from heqis_core.io import journal_file
from heqis_core.io.journal_repair import repair

SOON_S = 1.0
"""What is promised for a process that ends or stops."""
HELD_S = 2.0
POISON = (math.nan, math.inf)
FLOOD_BLOCKS = 2000
SWAP_S = 60.0
GATEWAY, JOURNAL = 'gateway/gateway', 'gateway/journal'
GATEWAY_AGENT, COMPUTE, COMPUTE_AGENT = 'gateway/agent', 'compute/compute', 'compute/agent'
WATCHED = (GATEWAY, COMPUTE, JOURNAL)
NODES = {
    GATEWAY: ('bridge', 'gateway'),
    JOURNAL: ('risk_gate', 'journal'),
    COMPUTE: ('compute',),
}
AGENTS = (GATEWAY_AGENT, COMPUTE_AGENT)
EVERYONE = (*WATCHED, SUPERVISOR, *AGENTS)
_PAGES = ('page_count', 'page_size')


# --- processes ---


def _kill(key: str, graph: Graph) -> None:
    graph.send(key, signal.SIGKILL)


def _send(number: int, keys: Sequence[str], graph: Graph) -> None:
    for key in keys:
        graph.send(key, number)


def _freeze_board(graph: Graph) -> Undo:
    keys = (COMPUTE, COMPUTE_AGENT)
    _send(signal.SIGSTOP, keys, graph)
    return partial(_send, signal.SIGCONT, keys, graph)


def _move_clocks(there: int, back: int, graph: Graph) -> Undo:
    _send(there, EVERYONE, graph)
    return partial(_send, back, EVERYONE, graph)


# --- what stands between the boards ---


def _cut(close: bool, freeze: bool, graph: Graph) -> Undo | None:
    for proxy in graph.layout.proxies:
        if freeze:
            proxy.freeze()
        if close:
            proxy.reset()

    def thaw() -> None:
        for proxy in graph.layout.proxies:
            proxy.thaw()

    return thaw if freeze else None


def _pull(graph: Graph) -> Undo:
    assert graph.layout.cable is not None
    graph.layout.cable.pull()
    return graph.layout.cable.plug


# --- what the graph stands on ---


def _fill_disk(graph: Graph) -> Undo:
    """Let the journal process write nothing beyond the first page of any file, as if full."""
    process = psutil.Process(graph.pid(JOURNAL))
    soft, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (4096, hard))
    return partial(process.rlimit, resource.RLIMIT_FSIZE, (soft, hard))


def _take_port(graph: Graph) -> Undo:
    """End the gateway and be faster than its next start at one of its ports."""
    port = int(graph.layout.endpoints['decisions'].rpartition(':')[2])
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    graph.send(GATEWAY, signal.SIGKILL)
    end_s = time.monotonic() + 1.0
    while True:
        try:
            taken.bind(('127.0.0.1', port))
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > end_s:
                raise BenchError(f'port {port} could not be taken: {error}') from error
            time.sleep(0.005)
    taken.listen()
    return taken.close


def _damage_bundle(graph: Graph) -> None:
    """Ask the compute node for a swap to a copy of the bundle with one bit turned."""
    from heqis_bringup.swap_node import call_swap

    folder = graph.folder / f'damaged-{time.monotonic_ns()}'
    shutil.copytree(graph.subject.bundle.path, folder)
    model = max(folder.glob('*.onnx'), key=lambda path: path.stat().st_size)
    _turn_bit(model, model.stat().st_size // 2)
    node = f'{graph.layout.namespace.rstrip("/")}/compute'
    answer = call_swap(node, str(folder), roll_back=False, timeout_s=SWAP_S)
    graph.record.note(
        'answer', 'served' if answer.accepted else 'refused', 'compute', answer.message
    )


def _turn_bit(path: Path, at: int) -> None:
    with path.open('r+b') as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def _damage_journal(graph: Graph) -> Undo:
    """End the journal, and before its next start spoil a page of the file; return the repair."""
    path = graph.layout.journal
    graph.kill(JOURNAL)
    page, size = _page_of_frames(path)
    with path.open('r+b') as file:
        file.seek((page - 1) * size)
        file.write(bytes(np.random.default_rng(page).integers(0, 256, size, np.uint8)))
    return partial(_repair_journal, graph)


def _page_of_frames(path: Path) -> tuple[int, int]:
    """Write everything back to the file; return a page in its middle, and the size of a page."""
    with closing(sqlite3.connect(path)) as db:
        db.execute('PRAGMA wal_checkpoint(TRUNCATE)')
        pages, size = (db.execute(f'PRAGMA {what}').fetchone()[0] for what in _PAGES)
    return int(pages) // 2, int(size)


def _repair_journal(graph: Graph) -> None:
    """Do what the refusal says: save what can be read, put the saved journal in its place."""
    path = graph.layout.journal
    saved = path.with_name(f'{path.name}.repaired')
    # Nobody else may open it meanwhile.
    with journal_file.lock(path):
        found = repair(path, saved)
        shutil.copy(path, path.with_name(f'{path.name}.{time.monotonic_ns()}.damaged'))
        for suffix in ('-wal', '-shm'):
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        saved.replace(path)
    graph.record.note('answer', REPAIRED, JOURNAL, json.dumps(found))


def _says_how_to_repair(graph: Graph, seen: Sequence[Seen], _: Stored) -> list[str]:
    """Look for the damage among the events, and for the whole advice in the process's log."""
    told = any('is damaged' in s.text for s in seen if s.kind == 'node_failed')
    log = (graph.folder / 'log' / 'journal.log').read_text(encoding='utf-8')
    if told and 'journal_repair' in log:
        return []
    return ['nothing said that the journal is damaged, and how to repair it']


def _names_port(graph: Graph, seen: Sequence[Seen], _: Stored) -> list[str]:
    port = graph.layout.endpoints['decisions'].rpartition(':')[2]
    named = any(port in s.text for s in seen if s.source == 'event' and s.kind == 'node_failed')
    return [] if named else [f'no event names port {port}']


# --- what feeds it ---


def _silence(graph: Graph) -> Undo:
    assert graph.layout.feed is not None
    graph.layout.feed.pause()
    return graph.layout.feed.resume


def _flood(graph: Graph) -> Undo:
    feed = graph.layout.feed
    assert feed is not None
    before, feed.pace = feed.sent, 0.0
    graph.wait(lambda: feed.sent >= before + FLOOD_BLOCKS, SWAP_S, 'the flood was not taken')

    def ebb() -> None:
        feed.pace = graph.subject.pace
        last_ns = feed.event_ns
        graph.wait(lambda: graph.record.newest_ns >= last_ns, SWAP_S, 'the flood was not decided')

    return ebb


def _poison(graph: Graph) -> Undo:
    feed = graph.layout.feed
    assert feed is not None
    feed.poisoned = (0, 0)
    feed.poison = POISON

    def stop() -> None:
        feed.poison = ()

    return stop


def _every_bar(graph: Graph, _: Sequence[Seen], stored: Stored) -> list[str]:
    """Look for a bar that was sent and never became a frame."""
    assert graph.layout.feed is not None
    step_ns = graph.layout.feed.step_ns
    times = sorted(frame.event_time_ns for frame in stored.frames)
    lost = sum((b - a) // step_ns - 1 for a, b in itertools.pairwise(times))
    return [f'{lost} blocks were sent and never decided'] if lost else []


def _only_sound_signals(graph: Graph, _: Sequence[Seen], stored: Stored) -> list[str]:
    """Look for a signal of a poisoned bar, and for one that is not a number."""
    feed = graph.layout.feed
    assert feed is not None
    first_ns, last_ns = feed.poisoned
    problems = []
    for frame in stored.frames:
        signals = frame.action >= Action.BUY
        if not np.isfinite(frame.score[signals]).all():
            problems.append(f'a signal of seq {frame.seq} has no number for a score')
        poisoned = np.isin(frame.symbols, feed.symbols[: len(POISON)])
        if first_ns <= frame.event_time_ns <= last_ns and (signals & poisoned).any():
            problems.append(f'a signal of seq {frame.seq} comes from a bar that was refused')
    covered = any(first_ns <= frame.event_time_ns <= last_ns for frame in stored.frames)
    return problems[:3] if covered else ['no poisoned bar was decided']


# --- the table ---


def _parts(key: str) -> tuple[str, ...]:
    """Return the parts of a process on /diagnostics, its nodes too."""
    return (f'process/{key}', *(f'node/{name}' for name in NODES[key]))


def _ends(key: str, word: str, inject: Callable[[str, Graph], None], why: str) -> Fault:
    """Return the fault of a process that the supervisor watches by its heartbeat."""
    name = key.rpartition('/')[2]
    return Fault(
        f'{word}-{name}',
        f'{why} {name} process',
        plain,
        partial(inject, key),
        (('event', 'process_', key),),
        _parts(key),
        SOON_S,
        (key,),
        restarts=True,
        promised=True,
    )


def _stop(key: str, graph: Graph) -> None:
    graph.send(key, signal.SIGSTOP)


def _agent(key: str, word: str, inject: Callable[[str, Graph], None], why: str) -> Fault:
    board = key.partition('/')[0]
    return Fault(
        f'{word}-{board}-agent',
        f'{why} agent of the {board} board',
        plain,
        partial(inject, key),
        (('event', 'agent_lost', board),),
        (f'board/{board}',),
        SOON_S,
        (key,),
        restarts=True,
        promised=True,
    )


def _supervisor(word: str, inject: Callable[[str, Graph], None], why: str) -> Fault:
    return Fault(
        f'{word}-supervisor',
        f'{why} supervisor',
        plain,
        partial(inject, SUPERVISOR),
        (('runner', 'ended', SUPERVISOR), ('heartbeat', 'holding', 'compute')),
        within_s=SOON_S,
        targets=(SUPERVISOR,),
        restarts=True,
        promised=True,
    )


def _slow(key: str) -> Fault:
    name = key.rpartition('/')[2]
    text = f'a callback of the {name} takes 1.5 s'
    return Fault(f'slow-{name}', text, disturbable, partial(_send, SLOW, (key,)))


def _deadlock(key: str) -> Fault:
    name = key.rpartition('/')[2]
    return Fault(
        f'deadlock-{name}',
        f'a callback of the {name} never comes back',
        disturbable,
        partial(_send, DEADLOCK, (key,)),
        (('event', 'process_hung', key),),
        _parts(key),
        4.5,
        (key,),
        restarts=True,
    )


def _table() -> tuple[Fault, ...]:
    kill, stop = 'SIGKILL to the', 'SIGSTOP to the'
    away = (('event', 'agent_lost', 'compute'),)
    return (
        *(_ends(key, 'kill', _kill, kill) for key in WATCHED),
        *(_agent(key, 'kill', _kill, kill) for key in AGENTS),
        _supervisor('kill', _kill, kill),
        *(_ends(key, 'stop', _stop, stop) for key in WATCHED),
        *(_agent(key, 'stop', _stop, stop) for key in AGENTS),
        _supervisor('stop', _stop, stop),
        Fault(
            'board-gone',
            'every process of the compute board stands still for a while',
            plain,
            _freeze_board,
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'bundle-damaged',
            'a swap to a bundle with one bit turned',
            plain,
            _damage_bundle,
            (('answer', 'refused', 'compute'),),
        ),
        Fault(
            'disk-full',
            'no room for the journal (RLIMIT_FSIZE of its process)',
            plain,
            _fill_disk,
            (('heartbeat', 'commit_errors', 'risk_gate'),),
            hold_s=HELD_S,
        ),
        Fault(
            'port-taken',
            'the gateway ends, and another program takes a port of it',
            plain,
            _take_port,
            (('event', 'node_failed', 'bridge'),),
            _parts(GATEWAY),
            targets=(GATEWAY,),
            restarts=True,
            hold_s=HELD_S,
            check=_names_port,
        ),
        *(_slow(key) for key in WATCHED),
        *(_deadlock(key) for key in WATCHED),
        Fault(
            'deadlock-supervisor',
            'a callback of the supervisor never comes back',
            disturbable,
            partial(_send, DEADLOCK, (SUPERVISOR,)),
            (('runner', 'no sign of life', SUPERVISOR),),
            within_s=7.0,
            targets=(SUPERVISOR,),
            restarts=True,
        ),
        Fault(
            'clock-forward',
            'the wall clock of every process is an hour ahead, then right again',
            disturbable,
            partial(_move_clocks, FORWARD, BACK),
        ),
        Fault(
            'clock-back',
            'the wall clock of every process is an hour behind, then right again',
            disturbable,
            partial(_move_clocks, BACK, FORWARD),
        ),
        Fault(
            'link-reset',
            'every connection between the boards is reset once',
            linked,
            partial(_cut, True, False),
        ),
        Fault(
            'link-half-open',
            'nothing passes between the boards, and no connection ends',
            linked,
            partial(_cut, False, True),
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'link-cut',
            'every connection is reset, and nothing passes on the next ones',
            linked,
            partial(_cut, True, True),
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'cable-pulled',
            'the compute board is in a network namespace; its cable is pulled, then plugged in',
            cabled,
            _pull,
            away,
            ('board/compute',),
            2.5,
            hold_s=HELD_S,
        ),
        Fault(
            'feed-silent',
            'the feed of bars says nothing for a while',
            fed,
            _silence,
            check=_every_bar,
        ),
        Fault(
            'feed-flood',
            f'{FLOOD_BLOCKS} blocks as fast as they are taken',
            fed,
            _flood,
            check=_every_bar,
        ),
        Fault(
            'feed-nan',
            'NaN and infinity as prices of two symbols',
            fed,
            _poison,
            check=_only_sound_signals,
        ),
        Fault(
            'journal-page',
            'a page of the journal is spoilt while its process is down; repaired by hand',
            spoilt,
            _damage_journal,
            (('event', 'node_failed', 'risk_gate'), ('event', 'node_failed', 'journal')),
            _parts(JOURNAL),
            targets=(JOURNAL,),
            restarts=True,
            check=_says_how_to_repair,
            harms=True,
        ),
    )


FAULTS = {fault.name: fault for fault in _table()}
"""Every fault by its name."""
