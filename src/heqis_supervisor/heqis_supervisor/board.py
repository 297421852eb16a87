# SPDX-License-Identifier: Apache-2.0
"""What an agent knows of the processes of its board, and how it ends exactly one. No ROS here."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from heqis_core.control import Kill, KillSilent, ProcessBeat

_PARENT, _START_TIME = 1, 19
"""Fields of /proc/PID/stat after the command; the start time is in clock ticks since boot."""


def start_ticks(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if there is none of that pid."""
    fields = _stat(pid)
    return int(fields[_START_TIME]) if len(fields) > _START_TIME else 0


def age_s(ticks: int) -> float:
    """Return how long ago a process began that began at so many clock ticks since boot."""
    uptime_s = float(Path('/proc/uptime').read_text(encoding='ascii').split()[0])
    return uptime_s - ticks / os.sysconf('SC_CLK_TCK')


def launched(process: str, board: str) -> Iterator[int]:
    """Yield the pids of a process of a board that the launch of this process started.

    Such a process has the same parent, the board's name in its environment, and an executable
    (of a script: the script) that is called like the process.
    """
    for folder in Path('/proc').glob('[0-9]*'):
        fields = _stat(int(folder.name))
        if len(fields) <= _START_TIME or int(fields[_PARENT]) != os.getppid():
            continue
        try:
            words = folder.joinpath('cmdline').read_bytes().split(b'\0')
            environ = folder.joinpath('environ').read_bytes().split(b'\0')
        except OSError:
            continue  # it has ended, or belongs to somebody else
        script = next((word for word in words[1:] if not word.startswith(b'-')), b'')
        names = {os.path.basename(word) for word in (words[0], script)}
        if process.encode() in names and f'HEQIS_BOARD={board}'.encode() in environ:
            yield int(folder.name)


def _stat(pid: int) -> list[str]:
    try:
        text = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return []
    # The command stands in parentheses and may hold anything, parentheses too.
    return text.rpartition(')')[2].split()


class Killed(NamedTuple):
    """What became of a kill: whether the process is gone, how, and whether it was gone before."""

    ok: bool
    text: str
    gone: bool = False


class Watched:
    """The processes of one board, as their heartbeats show them."""

    def __init__(self, board: str, boot_id: str) -> None:
        """Watch the processes of `board` on the machine that booted as `boot_id`."""
        self.board = board
        self._boot_id = boot_id
        self._last: dict[str, ProcessBeat] = {}
        self._starts: dict[str, int] = {}
        self._heard_s: dict[tuple[int, int], float] = {}

    def take(self, beat: ProcessBeat) -> ProcessBeat | None:
        """Return a heartbeat of this board with what the kernel says added; None if it is old."""
        if beat.board != self.board:
            return None
        last = self._last.get(beat.process)
        if last is None or last.start_id != beat.start_id:
            here = beat.boot_id == self._boot_id
            beat = structs.replace(
                beat,
                proc_start=start_ticks(beat.pid) if here else 0,
                restarts=0 if last is None else last.restarts + 1,
            )
        elif beat.count <= last.count:
            return None
        else:
            beat = structs.replace(beat, proc_start=last.proc_start, restarts=last.restarts)
        if last is not None and last.pid != beat.pid:
            self._heard_s.pop((last.pid, last.proc_start), None)
        self._last[beat.process] = beat
        self._heard_s[beat.pid, beat.proc_start] = time.monotonic()
        for node in beat.nodes:
            self._starts[node.name] = beat.start_id
        return beat

    def start_of(self, node: str) -> int:
        """Return the start identity of the process that a node is in, 0 if it was not heard."""
        return self._starts.get(node, 0)

    def kill(self, order: Kill) -> Killed:
        """End the process that is meant, and no other."""
        if order.boot_id != self._boot_id:
            return Killed(False, f'process {order.process} does not run on this machine')
        if not order.proc_start:
            text = f'pid {order.pid} was never seen here: nothing tells it from another one'
            return Killed(False, text)
        return _kill(order.pid, order.proc_start)

    def kill_silent(self, order: KillSilent) -> Killed:
        """End every start of a process that launch runs here and that has been silent so long."""
        limit_s = order.silent_ms / 1000
        done = []
        for pid in launched(order.process, self.board):
            ticks = start_ticks(pid)
            heard_s = self._heard_s.get((pid, ticks), float('-inf'))
            silent_s = min(age_s(ticks), time.monotonic() - heard_s)
            if ticks and pid != os.getpid() and silent_s >= limit_s:
                done.append(_kill(pid, ticks))
        text = '; '.join(killed.text for killed in done)
        none = f'no process {order.process} runs here that was silent for {limit_s:g} s'
        return Killed(
            all(killed.ok for killed in done),
            text or none,
            all(killed.gone for killed in done),
        )


def _kill(pid: int, proc_start: int) -> Killed:
    ended = Killed(True, f'pid {pid} had ended already', gone=True)
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return ended
    except OSError as error:
        return Killed(False, f'pid {pid}: {error.strerror}')
    try:
        # Checked while the handle is held: the pid cannot pass to another process in between.
        if start_ticks(pid) != proc_start:
            return ended
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    except ProcessLookupError:
        return ended
    except OSError as error:
        return Killed(False, f'pid {pid}: {error.strerror}')
    finally:
        os.close(handle)
    return Killed(True, f'pid {pid} was killed')
