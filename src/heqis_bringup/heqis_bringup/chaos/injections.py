# SPDX-License-Identifier: Apache-2.0
"""How each fault is done, and what must be true after some of them. The table is in `faults.py`.

What does something returns what ends it, or None. What looks afterwards returns what is wrong.
"""

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
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from heqis_bringup.chaos.graph import BenchError, Graph, Stored
from heqis_bringup.chaos.layout import COMPUTE, COMPUTE_AGENT, EVERYONE, GATEWAY, JOURNAL
from heqis_bringup.chaos.record import Seen
from heqis_bringup.chaos.trial import REPAIRED, Undo
from heqis_core.decision import Action
from heqis_core.io import journal_file
from heqis_core.io.journal_repair import repair

POISON = (math.nan, math.inf)
FLOOD_BLOCKS = 2000
SWAP_S = 60.0
_PAGES = ('page_count', 'page_size')


# --- processes ---


def send(number: int, keys: Sequence[str], graph: Graph) -> None:
    """Send a signal to processes."""
    for key in keys:
        graph.send(key, number)


def freeze_board(graph: Graph) -> Undo:
    """Stop every process of the compute board."""
    keys = (COMPUTE, COMPUTE_AGENT)
    send(signal.SIGSTOP, keys, graph)
    return partial(send, signal.SIGCONT, keys, graph)


def move_clocks(there: int, back: int, graph: Graph) -> Undo:
    """Move the wall clock of every process, and back."""
    send(there, EVERYONE, graph)
    return partial(send, back, EVERYONE, graph)


# --- what stands between the boards ---


def cut(close: bool, freeze: bool, graph: Graph) -> Undo | None:
    """Reset every connection between the boards, or let nothing pass, or both."""
    for proxy in graph.layout.proxies:
        if freeze:
            proxy.freeze()
        if close:
            proxy.reset()

    def thaw() -> None:
        for proxy in graph.layout.proxies:
            proxy.thaw()

    return thaw if freeze else None


def pull(graph: Graph) -> Undo:
    """Pull the cable."""
    assert graph.layout.cable is not None
    graph.layout.cable.pull()
    return graph.layout.cable.plug


# --- what the graph stands on ---


def fill_disk(graph: Graph) -> Undo:
    """Let the journal process write nothing beyond the first page of any file, as if full."""
    process = psutil.Process(graph.pid(JOURNAL))
    soft, hard = process.rlimit(resource.RLIMIT_FSIZE)
    process.rlimit(resource.RLIMIT_FSIZE, (4096, hard))
    return partial(process.rlimit, resource.RLIMIT_FSIZE, (soft, hard))


def take_port(graph: Graph) -> Undo:
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


def damage_bundle(graph: Graph) -> None:
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


def damage_journal(graph: Graph) -> Undo:
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


def says_how_to_repair(graph: Graph, _: Sequence[Seen], __: Stored) -> list[str]:
    """Look for the advice in the log of the process, once for each time that it was needed."""
    log = (graph.folder / 'log' / 'journal.log').read_text(encoding='utf-8')
    needed = len(list(graph.folder.glob('*.damaged')))
    told = log.count('journal_repair')
    return [] if told >= needed else ['nothing said that the journal is damaged, and what to do']


def names_port(graph: Graph, seen: Sequence[Seen], _: Stored) -> list[str]:
    """Look for an event that names the port."""
    port = graph.layout.endpoints['decisions'].rpartition(':')[2]
    named = any(port in s.text for s in seen if s.source == 'event' and s.kind == 'node_failed')
    return [] if named else [f'no event names port {port}']


# --- what feeds it ---


def silence(graph: Graph) -> Undo:
    """Let the feed say nothing."""
    assert graph.layout.feed is not None
    graph.layout.feed.pause()
    return graph.layout.feed.resume


def flood(graph: Graph) -> Undo:
    """Send blocks as fast as they are taken; what ends it waits until they are decided."""
    feed = graph.layout.feed
    assert feed is not None
    before, feed.pace = feed.sent, 0.0
    graph.wait(lambda: feed.sent >= before + FLOOD_BLOCKS, SWAP_S, 'the flood was not taken')

    def ebb() -> None:
        feed.pace = graph.subject.pace
        last_ns = feed.event_ns
        graph.wait(lambda: graph.record.newest_ns >= last_ns, SWAP_S, 'the flood was not decided')

    return ebb


def poison(graph: Graph) -> Undo:
    """Send prices that are no numbers."""
    feed = graph.layout.feed
    assert feed is not None
    feed.poisoned = (0, 0)
    feed.poison = POISON

    def stop() -> None:
        feed.poison = ()

    return stop


def every_bar(graph: Graph, _: Sequence[Seen], stored: Stored) -> list[str]:
    """Look for a bar that was sent and never became a frame."""
    assert graph.layout.feed is not None
    step_ns = graph.layout.feed.step_ns
    times = sorted(frame.event_time_ns for frame in stored.frames)
    lost = sum((b - a) // step_ns - 1 for a, b in itertools.pairwise(times))
    return [f'{lost} blocks were sent and never decided'] if lost else []


def only_sound_signals(graph: Graph, _: Sequence[Seen], stored: Stored) -> list[str]:
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
