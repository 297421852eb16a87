# SPDX-License-Identifier: Apache-2.0
"""YAML nodes with the place they stand at, `$(…)` substitutions, and typed parameter values.

The strictness is that of `ros2 launch` on Humble, where most attributes take nothing but text.
Which actions a launch file may hold is `launch_file`'s business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Union  # noqa: UP035

import yaml

from heqis_core.errors import ConfigError

Scalar = Union[bool, int, float, str]  # noqa: UP007  (evaluated at run time by Python 3.10)
ParamType = Union[Scalar, List[Scalar]]  # noqa: UP006, UP007

Perform = Callable[[str, 'list[str]'], str]
"""Name and arguments of a substitution to its text."""

_SCALAR_TYPES: dict[str, type] = {'str': str, 'int': int, 'float': float, 'bool': bool}


@dataclass(frozen=True)
class Entry:
    """A YAML node, the file it stands in and the key it stands under."""

    path: Path
    node: yaml.Node
    name: str

    @property
    def line(self) -> int:
        """Return the line of the node, from 1."""
        return int(self.node.start_mark.line) + 1

    def error(self, problem: str, expected: Iterable[str] = ()) -> ConfigError:
        """Return a ConfigError that says where the entry stands and what is wrong with it."""
        known = ', '.join(expected)
        ending = f'; expected one of {known}' if known else ''
        return ConfigError(f'{self.path}:{self.line}: {self.name!r} {problem}{ending}')

    def items(self) -> list[Entry]:
        """Return the entries of a list; raise ConfigError if it is none or empty."""
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            raise self.error('must be a list with at least one entry')
        return [Entry(self.path, item, self.name) for item in self.node.value]

    def keys(self, allowed: Iterable[str], required: Iterable[str] = ()) -> dict[str, Entry]:
        """Return the values of a mapping by key; raise ConfigError for other or missing keys."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error('must be a mapping of keys and values')
        allowed = tuple(allowed)
        found: dict[str, Entry] = {}
        for key, value in self.node.value:
            name = str(key.value)
            at = Entry(self.path, key, name)
            if name not in allowed:
                raise at.error(
                    f'in {self.name!r} is not in the part of launch that HEQIS understands',
                    allowed,
                )
            if name in found:
                raise at.error(f'stands twice in {self.name!r}')
            found[name] = Entry(self.path, value, name)
        for name in required:
            if name not in found:
                raise self.error(f'lacks {name!r}')
        return found

    def scalar(self) -> Scalar:
        """Return a single value with the type that YAML gives it."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error('must be a single value')
        value = yaml.SafeLoader('').construct_object(self.node)
        if not isinstance(value, (bool, int, float, str)):
            raise self.error(f'is {self.node.value!r}; expected text, a number, true or false')
        return value

    def literal(self, kind: type) -> Any:
        """Return a single value of exactly this type."""
        value = self.scalar()
        if type(value) is not kind:
            point = ' and with a decimal point' if kind is float else ''
            raise self.error(
                f'is {value!r}; expected a {kind.__name__}, written without quotes{point}'
            )
        return value

    def text(self) -> str:
        """Return a single value that is text."""
        value = self.scalar()
        if not isinstance(value, str):
            raise self.error(
                f'is {self.node.value}; put it in quotes: ros2 launch takes nothing but text here'
            )
        return value


def substitute(entry: Entry, text: str, perform: Perform) -> str:
    """Return `text` with each `$(name word …)` replaced, inner ones first.

    What a substitution returns is not looked at again. Raises ConfigError for a `$(` without end
    and for backslashes, whose rules in launch are not copied here.
    """
    if '\\' in text:
        raise entry.error(f'is {text!r}; a backslash is not understood here')
    out, end = [], 0
    while (start := text.find('$(', end)) >= 0:
        close = _closing(entry, text, start)
        words = [substitute(entry, word, perform) for word in split_words(text[start + 2 : close])]
        if not words:
            raise entry.error(f'is {text!r} with an empty $()')
        out += [text[end:start], perform(words[0], words[1:])]
        end = close + 1
    return ''.join([*out, text[end:]])


def param_value(entry: Entry, kind: str, perform: Perform) -> ParamType:
    """Return the value of a node parameter, typed as launch_ros does.

    `kind` is str, int, float, bool, or yaml for whatever the text reads as. Raises ConfigError if
    the value is of another type or no parameter value at all.
    """
    if kind != 'yaml' and kind not in _SCALAR_TYPES:
        raise entry.error(f'has the type {kind!r}', (*_SCALAR_TYPES, 'yaml'))
    if isinstance(entry.node, yaml.SequenceNode) and kind == 'yaml':
        return _uniform(entry, [param_value(item, 'yaml', perform) for item in entry.items()])
    value = entry.scalar()
    if isinstance(value, str) and '$(' in value:
        return _typed(entry, substitute(entry, value, perform), kind)
    if kind != 'yaml' and type(value) is not _SCALAR_TYPES[kind]:
        raise entry.error(f'is {value!r}, which is not of the type {kind}')
    return value


def _closing(entry: Entry, text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        if text.startswith('$(', index):
            depth += 1
        elif text[index] == ')':
            depth -= 1
            if depth == 0:
                return index
    raise entry.error(f'is {text!r}, where a $( is never closed')


def split_words(inside: str) -> list[str]:
    """Split text at spaces outside quotes and substitutions; quotes around a word go."""
    words, word, depth, quote, quoted = [], '', 0, '', False
    for index, char in enumerate(inside):
        if depth == 0 and not quote and char in '\'"':
            quote, quoted = char, True
        elif depth == 0 and char == quote:
            quote = ''
        elif depth == 0 and not quote and char == ' ':
            if word or quoted:
                words.append(word)
            word, quoted = '', False
        else:
            depth += inside.startswith('$(', index)
            depth -= char == ')' and depth > 0
            word += char
    return [*words, word] if word or quoted else words


def _typed(entry: Entry, text: str, kind: str) -> ParamType:
    if kind == 'str' or (kind == 'yaml' and not text):
        return text
    try:
        if kind in ('int', 'float'):
            return int(text) if kind == 'int' else float(text)
        value = yaml.safe_load(text)
    except (ValueError, yaml.YAMLError):
        raise entry.error(
            f'is {text!r} after substitution, expected a value of the type {kind}'
        ) from None
    if kind == 'bool' and not isinstance(value, bool):
        raise entry.error(f'is {text!r} after substitution, expected true or false')
    if isinstance(value, list):
        return _uniform(entry, value)
    if not isinstance(value, (bool, int, float, str)):
        raise entry.error(f'is {text!r} after substitution, which is no parameter value')
    return value


def _uniform(entry: Entry, items: list[Any]) -> list[Scalar]:
    kinds = {type(item) for item in items}
    if len(kinds) != 1 or not kinds <= {bool, int, float, str}:
        raise entry.error(
            'is a list whose items are not all of one type: text, int, float or bool'
        )
    return items
