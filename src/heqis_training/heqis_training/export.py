# SPDX-License-Identifier: Apache-2.0
"""From a trained network to the canonical ONNX file: fp32, static tile, checked against it.

Conversions to other engines start from this file; none of them live here.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import nn

from heqis_core.engine import Arrays, beyond, infer_tiled
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import OrtEngine

OPSET = 17
PARITY_TOLERANCE = 1e-5
"""Largest absolute plus relative difference between network and exported file."""


def export_onnx(
    model: nn.Module, shape: Sequence[int], input_name: str, output_names: Sequence[str]
) -> bytes:
    """Return the ONNX file of a one-input network, traced for exactly `shape`, the tile first.

    The same network gives the same bytes: the file holds neither paths nor times. Raises
    EngineError if the export is no valid static opset 17 model with these names.
    """
    model.eval()
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        path = Path(folder) / 'model.onnx'
        # the exporter that keeps opset 17 and recurrent layers whole announces its successor
        warnings.simplefilter('ignore')
        torch.onnx.export(
            model,
            (torch.zeros(*shape),),
            path,
            input_names=[input_name],
            output_names=list(output_names),
            opset_version=OPSET,
            do_constant_folding=True,
            dynamo=False,
        )
        proto = onnx.load(path)
    _start_from_zero(proto.graph)
    for node in proto.graph.node:
        node.doc_string = ''  # would hold the paths of the machine that exported
    proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    _check_proto(proto, list(shape), input_name, output_names)
    data: bytes = proto.SerializeToString(deterministic=True)
    return data


def checked_outputs(
    data: bytes, model: nn.Module, rows: npt.NDArray[np.float32], tile: int, names: Sequence[str]
) -> Arrays:
    """Return what ONNX Runtime answers to `rows` (n, ...) in padded tiles, by output name.

    Raises EngineError that names the output if it differs from what the network itself answers.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / 'model.onnx'
        path.write_bytes(data)
        engine = OrtEngine()
        engine.load(path)
        found = infer_tiled(engine, rows, tile)
        engine.close()
    with torch.no_grad():
        answers = model(torch.from_numpy(rows))
    answers = answers if isinstance(answers, tuple) else (answers,)
    for name, answer in zip(names, answers, strict=True):
        expected = answer.numpy()
        worst = beyond(found[name], expected, PARITY_TOLERANCE)
        if worst is not None:
            raise EngineError(
                f'export: output {name!r} of the ONNX file differs from the network by '
                f'{worst:.3g}, at most {PARITY_TOLERANCE:g} is accepted; check the versions of '
                'torch and onnxruntime'
            )
    return found


def golden_file(arrays: Mapping[str, npt.NDArray[np.generic]]) -> bytes:
    """Return an npz of golden arrays; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **dict(sorted(arrays.items())))
    return buffer.getvalue()


def _start_from_zero(graph: onnx.GraphProto) -> None:
    """Drop the first state of recurrent nodes, and the nodes that compute it.

    ONNX starts from zero without one, as our networks do (the parity check would tell). The
    exporter spells the zeros out with Shape and Expand nodes, which engines for small boards do
    not take.
    """
    for node in graph.node:
        if node.op_type in ('GRU', 'LSTM') and len(node.input) > 5:
            del node.input[5:]
    used = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            kept.append(node)
            used.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _check_proto(
    proto: onnx.ModelProto, shape: list[int], input_name: str, output_names: Sequence[str]
) -> None:
    onnx.checker.check_model(proto, full_check=True)
    opset = [entry.version for entry in proto.opset_import if entry.domain in ('', 'ai.onnx')]
    inputs = {value.name: _shape(value) for value in proto.graph.input}
    outputs = {value.name: _shape(value) for value in proto.graph.output}
    static = all(isinstance(size, int) and size for sizes in outputs.values() for size in sizes)
    if (
        opset != [OPSET]
        or inputs != {input_name: shape}
        or list(outputs) != list(output_names)
        or not static
    ):
        raise EngineError(
            f'export: opset {opset}, inputs {inputs}, outputs {outputs}; expected opset {OPSET}, '
            f'input {input_name!r} {shape} and static outputs {list(output_names)}'
        )


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [size.dim_value or size.dim_param for size in value.type.tensor_type.shape.dim]
