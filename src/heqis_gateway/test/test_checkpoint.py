# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: what is read is what was written, whole, and of the stream that asks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.errors import DataError
from heqis_gateway.checkpoint import (
    SCHEMA,
    Checkpoint,
    CheckpointHead,
    load_checkpoint,
    save_checkpoint,
)

IDENTITY = {'stream': 'daily', 'features_id': 'f' * 16}


def checkpoint(seq: int = 5, schema: int = SCHEMA) -> Checkpoint:
    head = CheckpointHead(schema, IDENTITY, seq, seq - 2, 1, {'index': seq}, {'bars_in': 2**40})
    arrays = {
        'state.a': np.array([[np.nan, 1.5]]),
        'windows.rows': np.zeros((2, 0, 3), np.float32),
    }
    return Checkpoint(head, arrays, {'messages': np.arange(9, dtype=np.uint8)})


def test_everything_comes_back_bit_for_bit(tmp_path: Path):
    path = tmp_path / 'deep' / 'checkpoint.npz'
    save_checkpoint(path, checkpoint())
    found, text = load_checkpoint(path, IDENTITY)
    assert found is not None
    assert found.head == checkpoint().head
    assert text == 'resumed at 5'
    for part in ('pipeline', 'ring'):
        expected = getattr(checkpoint(), part)
        assert getattr(found, part).keys() == expected.keys()
        for name, array in expected.items():
            assert getattr(found, part)[name].tobytes() == array.tobytes()
            assert getattr(found, part)[name].dtype == array.dtype


def test_no_file_means_the_first_bar(tmp_path: Path):
    assert load_checkpoint(tmp_path / 'none.npz', IDENTITY)[0] is None


def test_a_checkpoint_of_something_else_is_not_used_and_the_difference_is_named(tmp_path: Path):
    path = tmp_path / 'checkpoint.npz'
    save_checkpoint(path, checkpoint())
    found, text = load_checkpoint(path, IDENTITY | {'features_id': '0' * 16})
    assert found is None
    assert 'features_id' in text
    save_checkpoint(path, checkpoint(schema=SCHEMA + 1))
    found, text = load_checkpoint(path, IDENTITY)
    assert found is None
    assert f'schema {SCHEMA + 1}' in text


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_is_told_apart_and_never_raises(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp('damaged') / 'checkpoint.npz'
    save_checkpoint(path, checkpoint())
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    flipped = bytearray(whole)
    flipped[cut] ^= data.draw(st.integers(1, 255))
    path.write_bytes(data.draw(st.sampled_from([whole[:cut], bytes(flipped)])))
    found, text = load_checkpoint(path, IDENTITY)
    assert found is None or found.head == checkpoint().head
    assert text


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    blocker = tmp_path / 'file'
    blocker.write_text('')
    with pytest.raises(DataError, match=r'file/checkpoint\.npz.*state_dir'):
        save_checkpoint(blocker / 'checkpoint.npz', checkpoint())
