# SPDX-License-Identifier: Apache-2.0
"""Read a YAML file into msgspec structs; what does not fit is named by file, line and field."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

from heqis_core.errors import ConfigError

_T = TypeVar('_T')
_WHERE = re.compile(r'(?P<problem>.*?)(?: - at `\$(?P<path>.*)`)?$', re.DOTALL)
_EXPONENT = re.compile(r'[+-]?\d+[eE][+-]?\d+')
_STEP = re.compile(r'\.(?P<key>[^.\[]+)|\[(?P<index>\d+)\]')


def load_struct(path: str | Path, kind: type[_T]) -> _T:
    """Return the content of a YAML file as `kind` (a msgspec Struct, or a type of them).

    Raises ConfigError as `file:line: field: what is wrong`.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: cannot be read ({error}); check the name') from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        plain = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = f':{mark.line + 1}' if mark else ''
        reason = ' '.join(str(getattr(error, 'problem', error)).split())
        raise ConfigError(f'{path}{line}: not YAML: {reason}') from error
    try:
        return msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        found = _WHERE.match(str(error))
        problem, where = (found['problem'], found['path'] or '') if found else (str(error), '')
        at = f'{where.lstrip(".")}: ' if where else ''
        known = _known(msgspec.inspect.type_info(kind), plain, where)
        told = any(word in problem for word in ('unknown field', 'Invalid value', 'Invalid enum'))
        if problem == 'Expected `float`, got `str`' and _EXPONENT.fullmatch(_text(plain, where)):
            problem += '; YAML reads a number such as 2e-3 as text: write 2.0e-3'
        more = f'; expected one of {", ".join(known)}' if known and told else ''
        raise ConfigError(f'{path}:{_line(root, where)}: {at}{problem}{more}') from error


def line_of(path: str | Path, where: str) -> int:
    """Return the line of the value at a path such as `.boards.compute` of a file that was read."""
    return _line(yaml.compose(Path(path).read_text(encoding='utf-8'), yaml.SafeLoader), where)


def _line(node: Any, path: str) -> int:
    """Return the line of the value at a path such as `.sources[2].kind`, or of what holds it."""
    for step in _STEP.finditer(path):
        if step['index'] is not None and isinstance(node, yaml.SequenceNode):
            node = node.value[int(step['index'])]
        elif isinstance(node, yaml.MappingNode):
            below = [value for key, value in node.value if key.value == step['key']]
            node = below[0] if below else node
    return 1 if node is None else int(node.start_mark.line) + 1


def _text(plain: Any, path: str) -> str:
    """Return the value at a path such as `.fit.learning_rate`, as text."""
    for step in _STEP.finditer(path):
        plain = plain[step['key'] if step['index'] is None else int(step['index'])]
    return str(plain)


def _known(kind: Any, plain: Any, path: str) -> list[str]:
    """Return what may stand at a path: the fields of an object, or the tags that tell it apart."""
    for step in _STEP.finditer(path):
        if step['index'] is not None:
            kind, plain = getattr(kind, 'item_type', None), plain[int(step['index'])]
            continue
        options = [one for one in getattr(kind, 'types', (kind,)) if hasattr(one, 'tag_field')]
        if step['key'] in {one.tag_field for one in options}:
            return [one.tag for one in options]
        fields = getattr(_chosen(kind, plain), 'fields', ())
        kind = next((one.type for one in fields if one.encode_name == step['key']), None)
        plain = plain.get(step['key'])
    if isinstance(kind, msgspec.inspect.LiteralType):
        return [str(value) for value in kind.values]
    chosen = _chosen(kind, plain)
    tags = [chosen.tag_field] if getattr(chosen, 'tag_field', None) else []
    return tags + [one.encode_name for one in getattr(chosen, 'fields', ())]


def _chosen(kind: Any, plain: Any) -> Any:
    """Return the struct that an object is, of those that it may be."""
    for one in getattr(kind, 'types', (kind,)):
        tag_field = getattr(one, 'tag_field', None)
        if tag_field is None or plain.get(tag_field) == one.tag:
            return one
    return None
