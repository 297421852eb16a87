# SPDX-License-Identifier: Apache-2.0
"""The check of ROS parameter files against parameter tables, before any node reads them.

Scalars are read as rcl reads them, not as YAML 1.1 says: `15:00` is a string and `010` is eight.
Needs PyYAML, not rclpy.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from heqis_ros.params import Param, ParamTable, is_built_in

_TRUE = frozenset(['Y', 'y', 'yes', 'Yes', 'YES', 'true', 'True', 'TRUE', 'on', 'On', 'ON'])
_FALSE = frozenset(['N', 'n', 'no', 'No', 'NO', 'false', 'False', 'FALSE', 'off', 'Off', 'OFF'])
_INT = re.compile(r'[+-]?(0[xX][0-9a-fA-F]+|0[0-7]*|[1-9][0-9]*)\Z')
_FLOAT = re.compile(r'[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z')
_HEX = re.compile(r'[+-]?0[xX][0-9a-fA-F]+(\.[0-9a-fA-F]*)?([pP][+-]?\d+)?\Z')
_SPECIAL = re.compile(r'[+-]?((?i:nan|inf|infinity)|\.inf|\.Inf|\.INF)\Z|\.nan\Z|\.NaN\Z|\.NAN\Z')
_MARKER = 'ros__parameters'


class Problem(NamedTuple):
    """One thing that is wrong in a parameter file; its text form is one line."""

    path: str
    line: int
    """From 1; 0 if the whole file is meant."""
    key: str
    text: str

    def __str__(self) -> str:
        """Return `file:line: key: text`."""
        key = self.key and f'{self.key}: '
        return f'{self.path}:{self.line}: {key}{self.text}'


class _Section(NamedTuple):
    node: str
    line: int
    body: yaml.MappingNode


def check_file(path: str | Path, tables: Iterable[ParamTable]) -> list[Problem]:
    """Return everything in a parameter file that a node of `tables` would refuse or never see."""
    check = _Check(str(path), tables)
    check.run()
    return sorted(check.found, key=lambda problem: problem.line)


class _Check:
    def __init__(self, path: str, tables: Iterable[ParamTable]) -> None:
        self.path = path
        self.tables = {table.node: table for table in tables}
        self.found: list[Problem] = []

    def add(self, node: yaml.Node | int, key: str, text: str) -> None:
        line = node if isinstance(node, int) else node.start_mark.line + 1
        self.found.append(Problem(self.path, line, key, text))

    def run(self) -> None:
        try:
            text = Path(self.path).read_text(encoding='utf-8')
        except (OSError, UnicodeDecodeError) as error:
            self.add(0, '', f'cannot be read: {error}')
            return
        try:
            for event in yaml.parse(text, yaml.SafeLoader):
                if isinstance(event, yaml.AliasEvent):
                    line = event.start_mark.line + 1
                    self.add(line, '', 'ROS parameter files have no aliases (*); write it out')
            root = yaml.compose(text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            self.add(
                mark.line + 1 if mark else 0, '', f'not YAML: {error.problem or error.context}'
            )
            return
        except yaml.YAMLError as error:
            self.add(0, '', f'not YAML: {error}')
            return
        if not isinstance(root, yaml.MappingNode) or not root.value:
            self.add(1, '', f'holds no node; expected `/**/<node>:` with `{_MARKER}:` below it')
            return
        for section in self._sections(root, ''):
            self._check_section(section)

    def _items(
        self, mapping: yaml.MappingNode, where: str
    ) -> Iterator[tuple[str, yaml.Node, yaml.Node]]:
        seen: set[str] = set()
        for key, value in mapping.value:
            name = str(key.value)
            if name in seen:
                self.add(key, f'{where}{name}', 'is given twice; the first one is lost')
            seen.add(name)
            yield name, key, value

    def _sections(self, mapping: yaml.MappingNode, prefix: str) -> Iterator[_Section]:
        for name, key, value in self._items(mapping, ''):
            if name == _MARKER:
                if not isinstance(value, yaml.MappingNode):
                    self.add(key, prefix or name, 'holds no parameters')
                else:
                    yield _Section(prefix, key.start_mark.line + 1, value)
            elif isinstance(value, yaml.MappingNode):
                yield from self._sections(value, f'{prefix}/{name}' if prefix else name)
            else:
                self.add(key, name, f'expected `{_MARKER}:` below a node name')

    def _check_section(self, section: _Section) -> None:
        name, line = section.node.rsplit('/', 1)[-1], section.line
        if not section.node.startswith('/'):
            self.add(line, section.node, f'matches no node in a namespace; write `/**/{name}:`')
        if name in ('*', '**'):
            tables = list(self.tables.values())
        elif name in self.tables:
            tables = [self.tables[name]]
        else:
            self.add(line, section.node, f'no such node; known are: {", ".join(self.tables)}')
            return
        for param_name, node in self._values(section.body, ''):
            # A value for every node reaches those that know it, see ManagedNode.accept_siblings.
            for table in [t for t in tables if t.get(param_name)] or tables[:1]:
                if problem := _problem(table, param_name, node):
                    self.add(node, f'{table.node}.{param_name}', problem)

    def _values(self, mapping: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node]]:
        for name, _, value in self._items(mapping, prefix):
            if isinstance(value, yaml.MappingNode) and value.value:
                yield from self._values(value, f'{prefix}{name}.')
            else:
                yield f'{prefix}{name}', value


def _problem(table: ParamTable, name: str, node: yaml.Node) -> str | None:
    param = table.get(name)
    if param is None:
        return None if is_built_in(name) else f'unknown parameter{table.suggest(name)}'
    try:
        value = read_value(node)
    except ValueError as error:
        return f'{error}, expected {param.type_name}'
    return param.problem(_empty_as(param, value))


def _empty_as(param: Param, value: Any) -> Any:
    return [] if param.is_list and value is None else value


def read_value(node: yaml.Node) -> Any:
    """Return what rcl makes of a YAML node, None for an empty list; raises ValueError."""
    if isinstance(node, yaml.MappingNode):
        raise ValueError('has no value')
    if isinstance(node, yaml.SequenceNode):
        return _read_list(node.value) if node.value else None
    return _read_scalar(node)


def _read_list(nodes: Sequence[yaml.Node]) -> list[Any]:
    if not all(isinstance(node, yaml.ScalarNode) for node in nodes):
        raise ValueError('is a list of lists or maps')
    values = [_read_scalar(node) for node in nodes]
    if len({type(value) for value in values}) > 1:
        raise ValueError('mixes types in a list, which ROS cannot read')
    return values


def _read_scalar(node: yaml.ScalarNode) -> Any:
    text = node.value
    # PyYAML keeps no sign of an explicit tag, but it differs from what the text alone would
    # resolve to.
    implicit = yaml.SafeLoader('').resolve(yaml.ScalarNode, text, (True, False))
    if node.style is not None or (node.tag.endswith(':str') and node.tag != implicit):
        return text
    if not text:
        raise ValueError('has no value')
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if _INT.match(text) and -(2**63) <= (number := _c_int(text)) < 2**63:
        return number
    if _SPECIAL.match(text):
        return float(text.replace('.', ''))
    if _HEX.match(text):
        return float.fromhex(text)
    if _FLOAT.match(text):
        value = float(text)
        # Out of the range of normal doubles, rcl keeps the text.
        zero = not re.search('[1-9]', re.split('[eE]', text)[0])
        if zero or sys.float_info.min <= abs(value) <= sys.float_info.max:
            return value
    return text


def _c_int(text: str) -> int:
    digits = text.lstrip('+-')
    base = 16 if digits[:2] in ('0x', '0X') else 8 if digits.startswith('0') else 10
    return (-1 if text.startswith('-') else 1) * int(digits, base)
