# SPDX-License-Identifier: Apache-2.0
"""Durable files: whole or as before, with nothing left beside them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from heqis_core.durable import force_folder, replace_forced, write_forced


def test_parts_are_written_one_after_the_other(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    write_forced(path, b'ab', memoryview(b'cd'), b'')
    assert path.read_bytes() == b'abcd'


def test_a_file_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    replace_forced(path, b'new')
    assert path.read_bytes() == b'new'
    assert os.listdir(tmp_path) == ['file']


def test_what_cannot_be_put_there_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / 'file'
    path.mkdir()  # a file cannot take the place of a folder
    (path / 'kept').write_bytes(b'old')
    with pytest.raises(OSError, match='file'):
        replace_forced(path, b'new')
    assert os.listdir(tmp_path) == ['file']
    assert (path / 'kept').read_bytes() == b'old'


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    if not Path('/dev/full').exists():
        pytest.skip('this system has no /dev/full')
    path = tmp_path / 'file'
    path.write_bytes(b'old')
    (tmp_path / 'file.partial').symlink_to('/dev/full')
    with pytest.raises(OSError, match='No space left'):
        replace_forced(path, b'new')
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['file']


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    if os.name == 'nt':
        pytest.skip('nothing is forced there')
    with pytest.raises(FileNotFoundError):
        force_folder(tmp_path / 'nowhere')
