# SPDX-License-Identifier: Apache-2.0
"""A program that has its imports done and forks: tests kill the processes that it starts.

What is tried is a command, not the start of Python. Nothing outside a test imports this.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

SERVE = """
import os, sys
print('ready', flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        status = 70
        try:
            status = serve(line)
        finally:
            sys.stdout.flush()
            os._exit(status)
    print(pid, flush=True)
    ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    print(-ended.si_status if ended.si_code != os.CLD_EXITED else ended.si_status, flush=True)
    sys.stdin.readline()
    os.waitpid(pid, 0)
"""


class ForkServer:
    """Starts one process at a time, from a program that defines `serve(line) -> exit status`.

    Args:
        program: Python text; what it imports is there in each process at once.
        log: takes what the program and the processes say on standard error.
        environment: added to that of the test.
        deadline_s: how long the program may take to end.
    """

    def __init__(
        self, program: str, log: Path, environment: Mapping[str, str], deadline_s: float = 60.0
    ) -> None:
        self.log, self._deadline_s = log, deadline_s
        whole = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), **environment}
        with log.open('wb') as errors:
            self._process = subprocess.Popen(
                [sys.executable, '-c', program + SERVE],
                env=whole, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                text=True,
            )  # fmt: skip
        assert self._line() == 'ready'

    def start(self, line: str) -> int:
        """Start a process that serves this line, and return its id."""
        self._write(line)
        return int(self._line())

    def wait(self) -> int:
        """Return the exit status of the process, or the signal that ended it, negative."""
        status = int(self._line())
        # Until now the process id was kept, so that nothing else could be killed by it.
        self._write('over')
        return status

    def close(self) -> None:
        """End the program."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(self._deadline_s)
        self._process.stdout.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f'{line}\n')
        self._process.stdin.flush()

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, self.log.read_text(encoding='utf-8')
        return line
