# SPDX-License-Identifier: Apache-2.0
"""What an agent knows of the processes of its board, and how it ends exactly one. No ROS here."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import NamedTuple

from msgspec import structs

from heqis_core.control import Kill, ProcessBeat

_START_TIME = 19
"""Field of /proc/PID/stat after the command: start time in clock ticks since boot."""


def start_ticks(pid: int) -> int:
    """Return when a process began, in clock ticks since boot; 0 if there is none of that pid."""
    try:
        text = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8', errors='replace')
    except OSError:
        return 0
    # The command stands in parentheses and may hold anything, parentheses too.
    fields = text.rpartition(')')[2].split()
    return int(fields[_START_TIME]) if len(fields) > _START_TIME else 0


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
        self._last[beat.process] = beat
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
        ended = Killed(True, f'pid {order.pid} had ended already', gone=True)
        try:
            handle = os.pidfd_open(order.pid)
        except ProcessLookupError:
            return ended
        except OSError as error:
            return Killed(False, f'pid {order.pid}: {error.strerror}')
        try:
            # Checked while the handle is held: the pid cannot pass to another process in between.
            if start_ticks(order.pid) != order.proc_start:
                return ended
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        except ProcessLookupError:
            return ended
        except OSError as error:
            return Killed(False, f'pid {order.pid}: {error.strerror}')
        finally:
            os.close(handle)
        return Killed(True, f'pid {order.pid} was killed')
