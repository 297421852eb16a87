# SPDX-License-Identifier: Apache-2.0
"""The reader of the documents: short, free of HEQIS, and right; and that the documents are."""

from __future__ import annotations

import ast
import importlib.util
import re
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from heqis_core import wire
from heqis_core.decision import Decisions
from heqis_core.frame import FeatureFrame
from heqis_core.io.zmq_link import ComputeLink, GatewayLink
from heqis_core.testing import free_port, wait_until
from heqis_core.testing_link import COLUMNS, make_decisions, make_frame

pytest.importorskip('msgpack', reason='msgpack is a development requirement')


def document(name: str) -> Path:
    """Return a file of the project's docs, or skip where only the package is installed."""
    for folder in Path(__file__).resolve().parents:
        path = folder / 'docs' / name
        if path.is_file():
            return path
    pytest.skip(f'docs/{name} is not above this test')


@pytest.fixture(scope='module')
def reader() -> ModuleType:
    """Return the reader as a module."""
    spec = importlib.util.spec_from_file_location('read_frames', document('read_frames.py'))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reader_has_fewer_than_40_lines_and_needs_three_packages_alone() -> None:
    text = document('read_frames.py').read_text(encoding='utf-8')
    assert len(text.splitlines()) < 40
    imported = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            imported |= {name.name for name in node.names}
        assert not isinstance(node, ast.ImportFrom)
    assert imported - set(sys.stdlib_module_names) == {'zmq', 'msgpack', 'numpy'}


@pytest.mark.parametrize('symbols', [1, 4, 300])
def test_reader_gives_every_number_of_frames_and_decisions(
    reader: ModuleType, symbols: int
) -> None:
    frame = make_frame(5, symbols)
    frame.tensors['extra'] = np.arange(symbols * 6, dtype='<i2').reshape(symbols, 2, 3)
    seq, descriptor, stamps, tensors = reader.read(wire.encode_frame(frame))
    assert (seq, tuple(descriptor['symbols'])) == (5, frame.symbols)
    assert (descriptor['stream'], descriptor['features_id']) == (frame.stream, frame.features_id)
    assert stamps.tolist() == frame.stamps.tolist()
    assert list(tensors) == list(frame.tensors)
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, frame.tensors[name])

    decisions = make_decisions(7, symbols)
    seq, descriptor, stamps, tensors = reader.read(wire.encode_decisions(decisions))
    assert (seq, tuple(descriptor['symbols'])) == (7, decisions.symbols)
    assert (descriptor['bundle_id'], descriptor['generator']) == (
        decisions.bundle_id,
        decisions.generator,
    )
    for name, array in {**tensors, 'stamps': stamps}.items():
        np.testing.assert_array_equal(array, getattr(decisions, name))
    assert set(tensors) == set(COLUMNS) - {'stamps'}


def test_reader_refuses_what_was_altered_or_is_of_another_version(reader: ModuleType) -> None:
    altered = bytearray(wire.encode_frame(make_frame()))
    altered[-1] ^= 1
    with pytest.raises(ValueError, match='altered'):
        reader.read(bytes(altered))
    altered[8] = 1
    with pytest.raises(ValueError, match='version 1'):
        reader.read(bytes(altered))


@contextmanager
def running_reader(endpoint: str) -> Iterator[list[str]]:
    """Run the reader as a process; yield the lines that it has printed so far."""
    process = subprocess.Popen(
        [sys.executable, '-I', document('read_frames.py'), endpoint],
        stdout=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line.rstrip())

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield lines
    finally:
        process.kill()
        process.wait(10)
        thread.join(10)
        assert process.stdout is not None
        process.stdout.close()


def test_reader_prints_symbols_and_features_of_what_a_gateway_sends() -> None:
    endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)]
    gateway = GatewayLink(*endpoints)
    frames = [make_frame(seq, symbols=4) for seq in range(3)]
    for frame in frames:
        frame.tensors['features'] = np.arange(20, dtype=np.float32).reshape(4, 5) + frame.seq
    try:
        with running_reader(endpoints[0]) as lines:
            for frame in frames:
                wait_until(lambda frame=frame: gateway.send(frame, 100), 20)
            wait_until(lambda: len(lines) >= len(frames), 20, 'the reader prints each frame')
    finally:
        gateway.close()
    assert lines == [
        f'{seq} 600000.SH 600001.SH 600002.SH [{seq}.0, {seq + 1}.0, {seq + 2}.0]'
        for seq in range(3)
    ]


EXAMPLE = FeatureFrame(
    'ashare', 1, 2, 1_735_887_600_000_000_000, 0, '0123456789abcdef', ('600000.SH',),
    {
        'features': np.array([[1.0, -2.5]], np.float32),
        'status': np.array([1], np.uint8),
        'close': np.array([10.25]),
    },
)  # fmt: skip
"""The frame of the document's worked example."""


def hexdump(message: bytes) -> str:
    """Return lines of 16 bytes, with their offsets, leaving out those that are all zero."""
    rows = (message[at : at + 16] for at in range(0, len(message), 16))
    return '\n'.join(
        f'{16 * index:04x}  {row.hex(" ")}' for index, row in enumerate(rows) if any(row)
    )


def test_document_s_worked_example_is_what_the_code_writes() -> None:
    text = document('wire-format.md').read_text(encoding='utf-8')
    message = wire.encode_frame(EXAMPLE)
    assert hexdump(message) in text
    assert f'{len(message)} bytes' in text


def test_document_s_prologue_table_is_what_the_code_writes() -> None:
    text = document('wire-format.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (\d+) \| ([\w ]+) \| (\w+) \|', text.split('## Descriptor')[0], re.M)
    widths = {'uint8': 'B', 'uint16': 'H', 'uint32': 'I', 'uint64': 'Q', 'int64': 'q'}
    form, at = '<', 0
    for offset, kind, _ in rows:
        assert int(offset) == at, 'the fields leave no gap'
        form += widths.get(kind) or f'{kind.removesuffix(" bytes")}s'
        at = struct.calcsize(form)
    assert at == 64
    message = wire.encode_frame(EXAMPLE)
    values = struct.unpack_from(form, message)
    fields = dict(zip((name for _, _, name in rows), values, strict=True))
    assert fields['magic'] == b'HEQS'
    assert (fields['version'], fields['type'], fields['flags']) == (2, 1, 0)
    assert (fields['n_stamps'], fields['epoch'], fields['seq']) == (10, 1, 2)
    assert (fields['event_time_ns'], fields['revision']) == (EXAMPLE.event_time_ns, 0)
    body = 64 + -(-fields['descriptor_length'] // 64) * 64
    assert body + fields['body_length'] == len(message)


def test_document_tells_every_counter_of_both_ends_and_no_other() -> None:
    section = document('wire-format.md').read_text(encoding='utf-8').split('## Sockets')[1]
    section = section.split('\n## ')[0]
    told = re.findall(r'^\| ((?:`\w+`(?:, )?)+) \|', section, re.M)
    documented = {name for row in told for name in re.findall(r'`(\w+)`', row)}
    endpoints = [f'tcp://127.0.0.1:{free_port()}' for _ in range(3)]
    gateway, compute = GatewayLink(*endpoints), ComputeLink(*endpoints)
    try:
        assert documented == set(gateway.counters) | set(compute.counters)
    finally:
        gateway.close()
        compute.close()


def test_document_names_every_decision_column() -> None:
    section = document('wire-format.md').read_text(encoding='utf-8')
    section = section.split('## Body of DECISIONS')[1].split('\n## ')[0]
    named = set(re.findall(r'`(\w+)`\s+(?:u?int|float)', section))
    assert named == set(COLUMNS) - {'stamps'} <= set(Decisions.__dataclass_fields__)
