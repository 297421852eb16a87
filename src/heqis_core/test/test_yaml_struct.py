# SPDX-License-Identifier: Apache-2.0
"""A YAML file becomes structs, and what does not fit is named by line and field."""

from __future__ import annotations

import re

import msgspec
import pytest

from heqis_core.errors import ConfigError
from heqis_core.io.yaml_struct import load_struct


class Leaf(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    size: int = 1


class Tree(msgspec.Struct, forbid_unknown_fields=True):
    leaves: list[Leaf]
    high: bool = False


def test_a_file_becomes_what_it_says(tmp_path) -> None:
    file = tmp_path / 'tree.yaml'
    file.write_text('high: true\nleaves:\n- {name: a}\n- name: b\n  size: 2\n')
    assert load_struct(file, Tree) == Tree([Leaf('a'), Leaf('b', 2)], True)


@pytest.mark.parametrize(
    ('text', 'line', 'words'),
    [
        ('leaves:\n- {name: a}\n- name: b\n  size: big\n', 4, 'leaves[1].size: Expected `int`'),
        ('leaves:\n- {name: a}\n- {nane: b}\n', 3, 'leaves[1]: Object '),
        ('leaves:\n- {name: a}\nhigh: 3\n', 3, 'high: Expected `bool`'),
        ('leaves: {a: b}\n', 1, 'leaves: Expected `array`'),
        ('leaves:\n- {name: a\n', 3, 'not YAML'),
        ('', 1, 'Expected `object`'),
    ],
)
def test_what_does_not_fit_is_named_by_line_and_field(tmp_path, text, line, words) -> None:
    file = tmp_path / 'tree.yaml'
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f'{file}:{line}: {words}')):
        load_struct(file, Tree)


def test_a_file_that_cannot_be_read_is_named(tmp_path) -> None:
    with pytest.raises(ConfigError, match='cannot be read'):
        load_struct(tmp_path / 'none.yaml', Tree)
    file = tmp_path / 'binary.yaml'
    file.write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='cannot be read'):
        load_struct(file, Tree)
