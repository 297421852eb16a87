# SPDX-License-Identifier: Apache-2.0
"""The RKNN toolkit as a function: ONNX in; `.rknn` file, placement and simulated outputs out.

The toolkit's pins stand against those of the workspace, so it lives in a virtual environment of
its own (`make rknn`) and runs as a process in a scratch folder, with a time limit.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.errors import ConfigError, EngineError
from heqis_training.convert.rknn_worker import MODEL, OUTPUTS, RESULT

Floats = npt.NDArray[np.float32]

PLATFORM = 'rk3568'
TIMEOUT_S = 600.0
_TAIL_LINES = 12
_TABLE = 'Network Layer Information Table'
_ROW = re.compile(r'\s\d+\s+(\S+)\s+(\S+)\s+(NPU|CPU|GPU)\s.*?\s\d+/\d+/(\d+)\s+\d+\s+(\S.*)')
_BORDERS = ('InputOperator', 'OutputOperator')
_COLOUR = re.compile(r'\x1b\[[0-9;]*m')


class Op(NamedTuple):
    """One operator of a built model: what it is, its data type, where it runs, cycles, name."""

    kind: str
    dtype: str
    unit: str
    cycles: int
    name: str


class Built(NamedTuple):
    """A built model.

    Attributes:
        data: content of the `.rknn` file; the toolkit never writes the same bytes twice.
        ops: every operator but the borders of the graph.
        outputs: float32 (n, *output), what the simulator answers to the n inputs.
        tool: name and version of the toolkit.
    """

    data: bytes
    ops: tuple[Op, ...]
    outputs: Floats
    tool: str


def default_python() -> Path:
    """Return the Python of `.venv-rknn`, beside the virtual environment that runs this."""
    return Path(sys.prefix).parent / '.venv-rknn' / 'bin' / 'python'


def check_python(python: Path) -> None:
    """Raise ConfigError if there is no toolkit to start."""
    if not os.access(python, os.X_OK):
        raise ConfigError(
            f'{python}: the RKNN toolkit is not installed; run `make rknn` (x86-64 Linux), or '
            'leave out rk3568 with --target tensorrt'
        )


def build_rknn(
    python: Path,
    onnx: bytes,
    calibration: Sequence[Floats],
    inputs: Floats,
    timeout_s: float = TIMEOUT_S,
) -> Built:
    """Build a model for the RK3568 and simulate it.

    Args:
        python: of the environment that has the toolkit.
        onnx: a float32 model with one input of static shape and one output.
        calibration: arrays of the input's shape to quantise to int8 with; none: float16.
        inputs: float32 (n, *input), to simulate.
        timeout_s: for all of it; then the process is killed.

    Raises ConfigError without a toolkit, EngineError with the end of the toolkit's log if it fails
    or takes too long.
    """
    check_python(python)
    with TemporaryDirectory(prefix='heqis-rknn-') as folder:
        scratch = Path(folder)
        (scratch / 'model.onnx').write_bytes(onnx)
        np.save(scratch / 'inputs.npy', inputs, allow_pickle=False)
        names = [f'calibration_{index}.npy' for index in range(len(calibration))]
        for name, array in zip(names, calibration, strict=True):
            np.save(scratch / name, array, allow_pickle=False)
        job = {
            'onnx': 'model.onnx',
            'platform': PLATFORM,
            'calibration': names,
            'inputs': 'inputs.npy',
        }
        (scratch / 'job.json').write_text(json.dumps(job), encoding='utf-8')
        status = _run(python, scratch, timeout_s)
        log = _COLOUR.sub('', (scratch / 'log').read_text(encoding='utf-8', errors='replace'))
        if status is None:
            raise EngineError(f'the RKNN toolkit took more than {timeout_s:g} s; {_tail(log)}')
        if not (scratch / RESULT).is_file():
            raise EngineError(f'the RKNN toolkit ended with status {status}; {_tail(log)}')
        result = json.loads((scratch / RESULT).read_text(encoding='utf-8'))
        if result['error']:
            raise EngineError(f'{result["tool"]}: {result["error"]}; {_tail(log)}')
        return Built(
            (scratch / MODEL).read_bytes(),
            parse_placement(log),
            np.load(scratch / OUTPUTS, allow_pickle=False),
            result['tool'],
        )


def parse_placement(log: str) -> tuple[Op, ...]:
    """Return the operators in the last layer table of a verbose log, without the graph's borders.

    Raises EngineError if there is no such table: a gate must not pass on what it cannot see.
    """
    # title, rule, headings, rule, then a line for each operator up to the next rule
    _, _, table = log.rpartition(_TABLE)
    lines = [line for line in table.splitlines()[1:] if line.strip()]
    rules = [at for at, line in enumerate(lines) if line.rstrip().endswith('-----')]
    rows = [_ROW.search(line) for line in lines[rules[1] + 1 : rules[2]]] if len(rules) > 2 else []
    found = [row for row in rows if row is not None]
    if not found or len(found) != len(rows):
        raise EngineError(
            f'the RKNN toolkit printed no {_TABLE} that can be read, so where the operators run '
            f'is not known; use the version of requirements/rknn.txt; {_tail(log)}'
        )
    ops = [Op(row[1], row[2], row[3], int(row[4]), row[5].strip()) for row in found]
    return tuple(op for op in ops if op.kind not in _BORDERS)


def _run(python: Path, scratch: Path, timeout_s: float) -> int | None:
    """Run the worker in a group and an environment of its own; None: it took too long."""
    worker = Path(__file__).with_name('rknn_worker.py')
    # Nothing of this environment's packages and libraries may shine through.
    environment = {
        'PATH': os.environ.get('PATH', os.defpath),
        'HOME': str(scratch),
        'TMPDIR': str(scratch),
        'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1'),
        'PYTHONDONTWRITEBYTECODE': '1',
    }
    with (scratch / 'log').open('wb') as log:
        process = subprocess.Popen(
            [python, worker],
            cwd=scratch,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _tail(log: str) -> str:
    # A progress bar overwrites its line, and the toolkit's own notes say where it stands.
    lines = [line.rpartition('\r')[2].rstrip() for line in log.splitlines()]
    kept = [line for line in lines if line.strip() and not line.startswith('D RKNN:')]
    return 'the end of its log:\n  ' + '\n  '.join(kept[-_TAIL_LINES:])
