# SPDX-License-Identifier: Apache-2.0
"""A whole graph for tests: `heqis demo` in the background. Nothing outside a test imports it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from heqis_core.errors import JournalError
from heqis_core.io.journal import Journal

HEQIS = (sys.executable, '-m', 'heqis_bringup.cli')
RUN_TIMEOUT_S = 150


def heqis(*args: object, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run a `heqis` command to its end."""
    command = [*HEQIS, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False, **kwargs
    )


class Run:
    """One `heqis demo` in the background."""

    def __init__(self, data: Path, bundle: Path, folder: Path, *options: object) -> None:
        """Start it; the log, journal and report come into `folder`."""
        self.folder = folder
        self.report_file = folder / 'report.json'
        command = [
            *HEQIS, 'demo', '--data', data, '--bundle', bundle, '--run-dir', folder,
            '--report', self.report_file, *options,
        ]  # fmt: skip
        self.log = (folder / 'demo.log').open('w')
        self.process = subprocess.Popen(
            [str(word) for word in command], stdout=self.log, stderr=subprocess.STDOUT
        )

    def children(self) -> list[psutil.Process]:
        """Return every process of the run."""
        try:
            found: list[psutil.Process] = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return found

    def find(self, package: str, executable: str) -> psutil.Process | None:
        """Return the running process of an executable of a package."""
        wanted = f'{package}/{executable}'
        for child in self.children():
            try:
                if any(word.endswith(wanted) for word in child.cmdline()):
                    return child
            except psutil.Error:
                continue
        return None

    def committed(self) -> int:
        """Return how many frames are durable now."""
        path = self.folder / 'journal.db'
        try:
            with Journal.open(path, read_only=True, check=False) as journal:
                return journal.counts()['frames']
        except JournalError:
            return 0  # not made yet

    def kill(self, package: str, executable: str) -> None:
        """End a process with SIGKILL."""
        process = self.find(package, executable)
        assert process is not None, f'{package}/{executable} does not run'
        process.kill()

    def report(self) -> dict[str, Any]:
        """Wait for the end of the run and return its report."""
        code = self.process.wait(RUN_TIMEOUT_S)
        assert code == 0, self.text()
        report: dict[str, Any] = json.loads(self.report_file.read_text())
        return report

    def text(self) -> str:
        """Return the end of what the run has printed."""
        self.log.flush()
        return (self.folder / 'demo.log').read_text()[-6000:]

    def stop(self) -> None:
        """End the run; raise AssertionError if a process of it stays."""
        children = self.children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.log.close()
        _, alive = psutil.wait_procs(children, timeout=5)
        for process in alive:
            process.kill()
        assert not alive, f'left behind: {[p.name() for p in alive]}'


@contextmanager
def running(data: Path, bundle: Path, folder: Path, *options: object) -> Iterator[Run]:
    """Start a demo, and end it and every process of it."""
    run = Run(data, bundle, folder, *options)
    try:
        yield run
    finally:
        run.stop()
