# SPDX-License-Identifier: Apache-2.0
"""The cache of built engines: only what fits and is whole comes back."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_compute.engines.engine_cache import (
    EngineKey,
    engine_file,
    read_engine,
    read_timing,
    replace_file,
    timing_file,
    write_engine,
)
from heqis_core.errors import EngineError

KEY = EngineKey('a' * 64, '10.3.0', 'Orin', (8, 7), ('fp32', 'no-tf32'))
OTHERS = [
    KEY._replace(onnx_sha256='b' * 64),
    KEY._replace(tensorrt='10.3.1'),
    KEY._replace(gpu='Orin Nano'),
    KEY._replace(capability=(8, 6)),
    KEY._replace(flags=('fp16', 'no-tf32')),
]


def test_an_engine_that_was_written_comes_back(tmp_path: Path) -> None:
    write_engine(tmp_path / 'new' / 'folder', KEY, b'plan')
    assert read_engine(tmp_path / 'new' / 'folder', KEY) == (b'plan', '')
    assert [p.name for p in (tmp_path / 'new' / 'folder').iterdir()] == [
        engine_file(tmp_path, KEY).name
    ]


def test_a_new_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    write_engine(tmp_path / 'cache', KEY, b'plan')
    assert (tmp_path / 'cache').stat().st_mode & 0o077 == 0


@pytest.mark.parametrize('other', OTHERS)
def test_an_engine_of_another_key_is_not_there(tmp_path: Path, other: EngineKey) -> None:
    write_engine(tmp_path, KEY, b'plan')
    assert read_engine(tmp_path, other) == (None, '')


@pytest.mark.parametrize('other', OTHERS)
def test_a_file_under_the_name_of_another_key_is_refused(tmp_path: Path, other: EngineKey) -> None:
    write_engine(tmp_path, KEY, b'plan')
    engine_file(tmp_path, KEY).rename(engine_file(tmp_path, other))
    plan, why = read_engine(tmp_path, other)
    assert plan is None
    assert 'another model, TensorRT, GPU or set of flags' in why


@settings(max_examples=60)
@given(data=st.data())
def test_one_changed_byte_or_a_cut_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp('cache')
    write_engine(folder, KEY, b'the plan of an engine')
    path = engine_file(folder, KEY)
    whole = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        whole[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(whole)
    else:
        path.write_bytes(whole[:place])
    plan, why = read_engine(folder, KEY)
    assert plan is None
    assert str(path) in why


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(EngineError, match='engine_cache'):
        write_engine(tmp_path / 'file' / 'cache', KEY, b'plan')


def test_the_timing_cache_is_shared_by_models_and_not_by_gpus(tmp_path: Path) -> None:
    replace_file(timing_file(tmp_path, KEY), b'timing')
    assert read_timing(tmp_path, KEY._replace(onnx_sha256='b' * 64)) == b'timing'
    assert read_timing(tmp_path, KEY._replace(gpu='Orin Nano')) == b''
    assert read_timing(tmp_path, KEY._replace(tensorrt='10.3.1')) == b''
