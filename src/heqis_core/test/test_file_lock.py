# SPDX-License-Identifier: Apache-2.0
"""One process holds a file, names itself in it, and lets go by closing it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from heqis_core.io.file_lock import HeldError, hold_file


def test_one_holds_a_file_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / 'new' / 'lock'
    held = hold_file(path)
    assert path.read_text() == str(os.getpid())
    with pytest.raises(HeldError, match=str(os.getpid())) as caught:
        hold_file(path)
    assert caught.value.owner == str(os.getpid())
    held.close()
    hold_file(path).close()


def test_a_folder_that_is_a_file_is_the_systems_own_error(tmp_path: Path) -> None:
    (tmp_path / 'file').write_text('')
    with pytest.raises(OSError, match=r'File exists|Not a directory'):
        hold_file(tmp_path / 'file' / 'lock')
