# SPDX-License-Identifier: Apache-2.0
"""Start the processes of a launch file, forward their output, respawn them, end them all in time.

For machines without `ros2 launch`; processes get the arguments that launch_ros would give them.
What a launch file means is `launch_file`'s business.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import yaml

from heqis_bringup.ament import find_executable
from heqis_bringup.child_watch import ENVIRONMENT, ChildWatch
from heqis_bringup.launch_file import ProcessSpec
from heqis_bringup.process_output import LineBuffer, LogFile
from heqis_core.errors import ConfigError

SIGTERM_AFTER_S = 2.0
SIGKILL_AFTER_S = 3.5
"""From the wish to stop: SIGINT at once, then these; every process is gone within 5 s."""

_TICK_S = 0.05
_STEADY_S = 10.0
_LONGEST_DELAY_S = 30.0
_CHUNK_BYTES = 64 * 1024
_TAIL_LINES = 30
_PR_SET_PDEATHSIG = 1

Console = Callable[[str, str], None]


def ros_arguments(spec: ProcessSpec, params_stem: Path) -> list[str]:
    """Return the `--ros-args …` that launch_ros would pass.

    Single values go into `<params_stem>.<n>.yaml` files, one for each run of values between two
    parameter files, so that a later entry wins over an earlier one.
    """
    arguments = ['--ros-args', *spec.ros_args, '--ros-args'] if spec.ros_args else ['--ros-args']
    if spec.name is not None:
        arguments += ['-r', f'__node:={spec.name}']
    if spec.namespace is not None:
        arguments += ['-r', f'__ns:={spec.namespace}']
    for path in _parameter_files(spec, params_stem):
        arguments += ['--params-file', str(path)]
    for source, target in spec.remaps:
        arguments += ['-r', f'{source}:={target}']
    return arguments


def _parameter_files(spec: ProcessSpec, stem: Path) -> Iterator[Path]:
    key = '/**' if spec.name is None else f'{(spec.namespace or "").rstrip("/")}/{spec.name}'
    pending: dict[str, object] = {}
    count = 0
    for param in [*spec.params, None]:
        if isinstance(param, tuple):
            pending[param[0]] = param[1]
            continue
        if pending:
            path = stem.with_name(f'{stem.name}.{count}.yaml')
            path.write_text(yaml.safe_dump({key: {'ros__parameters': pending}}), encoding='utf-8')
            yield path
            pending, count = {}, count + 1
        if param is not None:
            yield param


@dataclass(frozen=True)
class ProcessView:
    """State of one process for people and reports."""

    name: str
    pid: int | None
    restarts: int
    last_exit: int | None
    tail: tuple[str, ...]
    status: str = ''


@dataclass
class _Process:
    name: str
    spec: ProcessSpec
    argv: list[str]
    popen: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float | None = 0.0
    restarts: int = 0
    quick_ends: int = 0
    last_exit: int | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    log: LogFile | None = None


@dataclass
class _Stream:
    process: _Process
    file: IO[bytes]
    on_screen: bool
    lines: LineBuffer = field(default_factory=LineBuffer)


class LaunchRunner:
    """Runs processes until told to stop; a context manager that stops on the way out.

    One thread starts, watches and ends every process, and lives as long as they do: the kernel
    ends a child whose starting thread is gone (PR_SET_PDEATHSIG), so that nothing outlives a
    killed runner.
    """

    def __init__(
        self,
        specs: Sequence[ProcessSpec],
        log_dir: Path,
        *,
        console: Console | None = None,
        environ: Mapping[str, str] | None = None,
        watch: ChildWatch | None = None,
    ) -> None:
        """Look up every executable; raise ConfigError if one is missing.

        `console(name, line)` is called from the runner's thread for each line that belongs on the
        screen and for the runner's own remarks. Every line goes to `<log_dir>/<name>.log` as well.
        `watch` ends what stands still; the runner closes it.
        """
        self._environ = dict(os.environ if environ is None else environ)
        self._environ.setdefault('PYTHONUNBUFFERED', '1')
        self._environ.setdefault('RCUTILS_COLORIZED_OUTPUT', '0')
        # What systemd gave is meant for the runner alone.
        for name in ENVIRONMENT:
            self._environ.pop(name, None)
        self._watch = watch or ChildWatch()
        self._environ.update(self._watch.environ())
        self._console = console
        self.turns = 0
        """How often the runner's thread has looked after everything."""
        self._log_dir = log_dir
        self._selector = selectors.DefaultSelector()
        # Plain flags: a signal handler may set them, whatever the main thread is doing then.
        self._stop = False
        self._stop_now = False
        self._lock = threading.Lock()
        log_dir.mkdir(parents=True, exist_ok=True)
        self._log = LogFile(log_dir / 'runner.log')
        self._processes: list[_Process] = []
        for name, spec in zip(_unique_names(specs), specs, strict=True):
            try:
                path = find_executable(spec.package, spec.executable, self._environ)
            except ConfigError as error:
                raise ConfigError(f'{spec.where}: {error}') from None
            self._processes.append(
                _Process(name, spec, [str(path), *ros_arguments(spec, log_dir / name)])
            )
        self._thread = threading.Thread(target=self._run, name='launch_runner', daemon=True)

    def start(self) -> None:
        """Start every process."""
        self._thread.start()

    def stop(self, *, now: bool = False) -> None:
        """Ask for the end: SIGINT, then SIGTERM, then SIGKILL; with `now` SIGKILL at once."""
        self._stop = True
        self._stop_now = self._stop_now or now

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait until every process is gone and return whether that is so."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def __enter__(self) -> LaunchRunner:
        """Start every process."""
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop every process and wait for the end."""
        self.stop()
        self.join()

    def processes(self) -> list[ProcessView]:
        """Return the state of every process, in the order of the launch file."""
        with self._lock:
            statuses = self._watch.statuses()
            return [
                ProcessView(
                    p.name,
                    p.popen.pid if p.popen else None,
                    p.restarts,
                    p.last_exit,
                    tuple(p.tail),
                    statuses.get(p.popen.pid, '') if p.popen else '',
                )
                for p in self._processes
            ]

    def _run(self) -> None:
        stopping_at_s: float | None = None
        sent: list[signal.Signals] = []
        while True:
            now_s = time.monotonic()
            self.turns += 1
            if self._stop:
                stopping_at_s = now_s if stopping_at_s is None else stopping_at_s
                after_s = SIGKILL_AFTER_S if self._stop_now else now_s - stopping_at_s
                self._escalate(after_s, sent)
            else:
                self._start_due(now_s)
                self._end_overdue(now_s)
            self._forward(_TICK_S)
            for process in self._processes:
                self._reap(process)
            if not any(
                p.popen or (p.start_at_s is not None and not self._stop) for p in self._processes
            ):
                break
        self._selector.close()
        self._watch.close()
        for process in self._processes:
            if process.log:
                process.log.close()
        self._log.close()

    def _start_due(self, now_s: float) -> None:
        for process in self._processes:
            if (
                process.popen is None
                and process.start_at_s is not None
                and now_s >= process.start_at_s
            ):
                self._spawn(process)

    def _spawn(self, process: _Process) -> None:
        process.start_at_s = None
        process.started_s = time.monotonic()
        process.log = process.log or LogFile(self._log_dir / f'{process.name}.log')
        parent = os.getpid()
        try:
            popen = subprocess.Popen(
                process.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env={**self._environ, **process.spec.env},
                # A session of its own: Ctrl-C in the terminal reaches the runner alone.
                start_new_session=True,
                preexec_fn=lambda: in_child(parent),
            )
        except OSError as error:
            self._ended(process, 127, f'could not be started: {error}')
            return
        for stream, on_screen in (
            (popen.stdout, process.spec.output != 'log'),
            (popen.stderr, True),
        ):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
            self._selector.register(
                stream, selectors.EVENT_READ, _Stream(process, stream, on_screen)
            )
        with self._lock:
            process.popen = popen
            speaks = process.spec.package.startswith('heqis_')
            self._watch.started(popen.pid, process.started_s, speaks=speaks)
        self._remark(f'{process.name}: started with pid {popen.pid}')

    def _forward(self, timeout_s: float) -> None:
        if not self._selector.get_map():
            time.sleep(timeout_s)
            return
        for key, _ in self._selector.select(timeout_s):
            if self._pump(key.data) is None:
                self._selector.unregister(key.fileobj)

    def _pump(self, stream: _Stream) -> int | None:
        """Forward what is there; return its length, None at the end of the stream."""
        try:
            data = os.read(stream.file.fileno(), _CHUNK_BYTES)
        except BlockingIOError:
            return 0
        except OSError:
            data = b''
        for line in stream.lines.add(data):
            self._line(stream, line)
        return len(data) or None

    def _line(self, stream: _Stream, line: str) -> None:
        process = stream.process
        with self._lock:
            process.tail.append(line)
        if process.log:
            process.log.write(line)
        if stream.on_screen:
            self._show(process.name, line)

    def _reap(self, process: _Process) -> None:
        popen = process.popen
        if popen is None:
            return
        # WNOWAIT keeps the dead leader's pid taken while its group is swept: no stranger is hit.
        if os.waitid(os.P_PID, popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return
        _signal_group(popen.pid, signal.SIGKILL)
        code = popen.wait()
        for key in list(self._selector.get_map().values()):
            if key.data.process is process:
                while self._pump(key.data):
                    pass
                self._selector.unregister(key.fileobj)
                for line in key.data.lines.add(b''):
                    self._line(key.data, line)
        for stream in (popen.stdout, popen.stderr):
            assert stream is not None
            stream.close()
        self._ended(process, code, f'signal {-code}' if code < 0 else f'exit code {code}')

    def _ended(self, process: _Process, code: int, how: str) -> None:
        with self._lock:
            if process.popen:
                self._watch.ended(process.popen.pid)
            process.popen = None
            process.last_exit = code
        if self._stop or not process.spec.respawn:
            self._remark(f'{process.name}: ended ({how})')
            return
        now_s = time.monotonic()
        process.quick_ends = process.quick_ends + 1 if now_s - process.started_s < _STEADY_S else 0
        delay_s = min(
            max(process.spec.respawn_delay_s, 0.1) * 2 ** min(max(process.quick_ends - 1, 0), 16),
            _LONGEST_DELAY_S,
        )
        process.start_at_s = now_s + delay_s
        with self._lock:
            process.restarts += 1
        self._remark(
            f'{process.name}: ended ({how}); restart {process.restarts} in {delay_s:.1f} s'
        )

    def _end_overdue(self, now_s: float) -> None:
        with self._lock:
            overdue = self._watch.look(now_s)
        for pid, number, why in overdue:
            name = next(p.name for p in self._processes if p.popen and p.popen.pid == pid)
            self._remark(f'{name}: {why}, sending {number.name}')
            if number == signal.SIGKILL:
                _signal_group(pid, number)
            else:
                os.kill(pid, number)

    def _escalate(self, after_s: float, sent: list[signal.Signals]) -> None:
        for due_s, number in (
            (0.0, signal.SIGINT),
            (SIGTERM_AFTER_S, signal.SIGTERM),
            (SIGKILL_AFTER_S, signal.SIGKILL),
        ):
            if after_s < due_s or number in sent:
                continue
            sent.append(number)
            for process in self._processes:
                if process.popen is None:
                    continue
                if number != signal.SIGINT:
                    self._remark(
                        f'{process.name}: still there after {after_s:.1f} s, sending {number.name}'
                    )
                if number == signal.SIGKILL:
                    _signal_group(process.popen.pid, number)
                else:
                    os.kill(process.popen.pid, number)

    def _remark(self, text: str) -> None:
        self._log.write(text)
        self._show('runner', text)

    def _show(self, name: str, line: str) -> None:
        # A closed terminal must not end the processes.
        if self._console:
            with contextlib.suppress(OSError, ValueError):
                self._console(name, line)


def _unique_names(specs: Sequence[ProcessSpec]) -> list[str]:
    names: list[str] = []
    for spec in specs:
        wish = spec.name or spec.executable
        number = 1
        while (name := wish if number == 1 else f'{wish}-{number}') in names:
            number += 1
        names.append(name)
    return names


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, number)


_LIBC = ctypes.CDLL(None)


def in_child(parent: int) -> None:
    """Between fork and exec: die with the starting thread, hear SIGINT even if started by `&`."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(127)
