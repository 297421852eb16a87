# SPDX-License-Identifier: Apache-2.0
"""For tests of conversions: bundles with other encoders, and a stand-in for the toolkit's process.

The stand-in keeps the contract of `rknn_worker` (job.json in; model, outputs, result and log out)
and answers through ONNX Runtime. Nothing outside a test imports this.
"""

from __future__ import annotations

import io
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from heqis_core.bundle import write_bundle
from heqis_core.testing_bundle import (
    ENCODER_WINDOW,
    FACTORS,
    SPEC,
    TILE,
    bundle_parts,
)
from heqis_training.convert.outcome import answers_of

FEATURES = len(SPEC.names)
Op = tuple[str, list[str], dict[str, Any]]
"""An operator of a test's encoder: type, inputs, attributes."""
CONVOLUTION: Op = ('Conv', ['window', 'weight', 'bias'], {})
"""The operator of `bundle_parts`' own encoder: over all rows at once."""

_LAYERS = """\
D RKNN: [01:06:01.606] ----------------------------------------------------------------------
D RKNN: [01:06:01.606]                    Network Layer Information Table
D RKNN: [01:06:01.606] ----------------------------------------------------------------------
D RKNN: [01:06:01.606] ID   OpType   DataType Target InputShape OutputShape Cycles(DDR/NPU/Total) \
RW(KB) FullName
D RKNN: [01:06:01.606] ----------------------------------------------------------------------
D RKNN: [01:06:01.606] 0    InputOperator INT8 CPU \\ (1,3,8,4) 0/0/0 0 InputOperator:window
{ops}
D RKNN: [01:06:01.606] {end}    OutputOperator INT8 NPU (1,2,8,1) \\ 0/0/0 0 OutputOperator:factors
D RKNN: [01:06:01.606] ----------------------------------------------------------------------
"""

_STAND_IN = """#!{python}
import json, sys, time
import numpy as np
import onnxruntime
if {hang!r}:
    time.sleep(60)
job = json.load(open('job.json'))
assert all(np.load(path).ndim == 4 for path in job['calibration'])
print({log!r})
if {status}:
    sys.exit({status})
session = onnxruntime.InferenceSession(job['onnx'])
name = session.get_inputs()[0].name
rng = np.random.default_rng(0)
answers = [session.run(None, {{name: tile}})[0] for tile in np.load(job['inputs'])]
noisy = [answer + {noise} * rng.normal(size=answer.shape) for answer in answers]
np.save('outputs.npy', np.stack(noisy).astype(np.float32))
open('model.rknn', 'wb').write(b'rknn' * (1 + len(job['calibration'])) + bytes({size}))
json.dump({{'tool': 'stand-in 1.0', 'error': {error!r}}}, open('result.json', 'w'))
"""


def stand_in(
    folder: Path,
    *,
    units: Sequence[str] = ('NPU',),
    noise: float = 0.0,
    error: str = '',
    status: int = 0,
    size: int = 0,
    hang: bool = False,
) -> Path:
    """Write a program that stands in for the Python of `.venv-rknn`, and return it.

    Args:
        folder: for the program.
        units: where each operator of its layer table runs.
        noise: deviation of what is added to the answers.
        error: what the toolkit raised.
        status: with which it ends before a result is written; 0: it does not.
        size: bytes that are added to the model.
        hang: does nothing for a minute.
    """
    log = layer_log([('Conv', unit) for unit in units])
    text = _STAND_IN.format(
        python=sys.executable,
        log=log,
        noise=noise,
        error=error,
        status=status,
        size=size,
        hang=hang,
    )
    path = folder / 'stand_in'
    path.write_text(text, encoding='utf-8')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def layer_log(ops: Sequence[tuple[str, str]]) -> str:
    """Return the part of a verbose log with these operators: kind and unit."""
    row = 'D RKNN: [01:06:01.606] {at}    {kind} INT8 {unit} (1,3,8,4),(2,3,1,4),(2) (1,2,8,1) '
    row += '332/64/332 2 {kind}:{kind}_{at}'
    rows = [row.format(at=at, kind=kind, unit=unit) for at, (kind, unit) in enumerate(ops, 1)]
    return _LAYERS.format(ops='\n'.join(rows), end=len(ops) + 1)


def encoder_of(ops: Sequence[Op], output: tuple[int, ...] | None = None) -> bytes:
    """Return an encoder of these operators, one after the other.

    The first input of each is what the one before gives. Others may be `weight`
    (FACTORS, FEATURES, 1, ENCODER_WINDOW), `bias` (FACTORS,), `mix` (FACTORS, FACTORS, 1, 1) and
    `flat` (an integer shape).
    """
    rng = np.random.default_rng(0)
    constants = {
        'weight': rng.normal(0, 0.4, (FACTORS, FEATURES, 1, ENCODER_WINDOW)).astype(np.float32),
        'bias': rng.normal(0, 0.1, FACTORS).astype(np.float32),
        'mix': rng.normal(0, 1, (FACTORS, FACTORS, 1, 1)).astype(np.float32),
        'flat': np.array([TILE, FACTORS]),
    }
    nodes, before = [], 'window'
    for at, (kind, inputs, attributes) in enumerate(ops):
        after = 'factors' if at == len(ops) - 1 else f'between_{at}'
        nodes.append(helper.make_node(kind, [before, *inputs[1:]], [after], **attributes))
        before = after
    used = {name for node in nodes for name in node.input}
    given, shape = (TILE, FEATURES, 1, ENCODER_WINDOW), output or (TILE, FACTORS, 1, 1)
    graph = helper.make_graph(
        nodes,
        'test',
        [helper.make_tensor_value_info('window', TensorProto.FLOAT, given)],
        [helper.make_tensor_value_info('factors', TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(value, name)
            for name, value in constants.items()
            if name in used
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def bundle_with(parent: Path, encoder: bytes | None, trained_until_ns: int) -> Path:
    """Write the bundle of `bundle_parts` with another encoder, its own for None."""
    manifest, files = bundle_parts(trained_until_ns=trained_until_ns)
    if encoder is not None:
        files['encoder.onnx'] = encoder
        with np.load(io.BytesIO(files['golden.npz'])) as arrays:
            golden = dict(arrays)
        golden |= {
            f'encoder/{name}': values
            for name, values in answers_of(encoder, golden['encoder/input']).items()
        }
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **golden)
        files['golden.npz'] = buffer.getvalue()
    return write_bundle(parent, manifest, files)
