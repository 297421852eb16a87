# SPDX-License-Identifier: Apache-2.0
"""Parameter tables: the one place that describes a node's parameters, and what is made from it.

A table becomes ROS descriptors, one frozen dataclass of values, a table in the docs, and the check
of a parameter file. Each node package keeps its tables in `<package>/params.py`, which imports no
rclpy; rclpy is imported here only when a node declares its parameters. How a file is read and
checked is in `param_files`.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, make_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from heqis_core.errors import ConfigError

_SCALARS = (bool, int, float, str)
_BUILT_IN = ('use_sim_time', 'start_type_description_service')
_INT64 = 2**63


@dataclass(frozen=True)
class Param:
    """One parameter of a node.

    Attributes:
        name: snake_case with the unit at its end (`_ms`, `_s`, `_hz`); dots make groups.
        type: `bool`, `int`, `float`, `str`, or a list of one of them (`list[str]`).
        default: value when nothing is given; lists are written as lists or tuples.
        description: one line for people.
        unit: for people; empty if it has none.
        minimum, maximum: inclusive bounds of a number, or of each number in a list.
        choices: the only values allowed (of each element, for a list).
        read_only: fixed when the process starts; else a change counts from the next configure.
    """

    name: str
    type: Any
    default: Any
    description: str
    unit: str = ''
    minimum: float | None = None
    maximum: float | None = None
    choices: Sequence[Any] | None = None
    read_only: bool = True

    def __post_init__(self) -> None:
        """Refuse a table that contradicts itself; raises ConfigError."""
        if not all(part.isidentifier() for part in self.name.split('.')):
            raise ConfigError(f'parameter {self.name!r}: not a name')
        if self.element not in _SCALARS:
            raise ConfigError(
                f'parameter {self.name}: type {self.type!r}, expected bool, int, float, str, list'
            )
        if problem := self.problem(self.default):
            raise ConfigError(f'parameter {self.name}: its default {problem}')

    @property
    def is_list(self) -> bool:
        """Whether the value is a list."""
        return get_origin(self.type) is list

    @property
    def element(self) -> Any:
        """Return the scalar type of the value or of each of its elements."""
        return get_args(self.type)[0] if self.is_list else self.type

    @property
    def type_name(self) -> str:
        """Return the type as people write it, `list of str` for a list."""
        return f'list of {self.element.__name__}' if self.is_list else str(self.type.__name__)

    @property
    def field(self) -> str:
        """Return the name of the dataclass field: dots become underscores."""
        return self.name.replace('.', '_')

    def allowed(self) -> str:
        """Return the allowed values for people, empty if every value of the type is."""
        if self.choices is not None:
            return 'one of ' + ', '.join(map(str, self.choices))
        if self.minimum is None and self.maximum is None:
            return ''
        if self.maximum is None:
            return f'>= {self.minimum}'
        if self.minimum is None:
            return f'<= {self.maximum}'
        return f'{self.minimum} to {self.maximum}'

    def problem(self, value: Any) -> str | None:
        """Return what is wrong with a value, None if nothing is."""
        if not self.is_list:
            return self._scalar_problem(value)
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            return f'is {value!r}, expected {self.type_name}'
        for index, item in enumerate(value):
            if problem := self._scalar_problem(item):
                return f'has an element {index} that {problem}'
        return None

    def _scalar_problem(self, value: Any) -> str | None:
        kind, limits = self.element, self.allowed()
        wanted = (int, float) if kind is float else kind
        if not isinstance(value, wanted) or (isinstance(value, bool) and kind is not bool):
            quotes = kind is str and isinstance(value, (bool, int, float))
            hints = (' (write it in quotes)' if quotes else '') + (limits and f', {limits}')
            return f'is {value!r} ({type(value).__name__}), expected {kind.__name__}{hints}'
        if kind is float and math.isnan(value):
            return f'is {value!r}, expected a number'
        if self.choices is not None and value not in self.choices:
            return f'is {value!r}, expected {limits}'
        if self.minimum is not None and value < self.minimum:
            return f'is {value!r}, out of range: {limits}'
        if self.maximum is not None and value > self.maximum:
            return f'is {value!r}, out of range: {limits}'
        if kind is int and not -_INT64 <= value < _INT64:
            return f'is {value!r}, more than 64 bits'
        return None

    def coerce(self, value: Any) -> Any:
        """Return a valid value in its final form: float for float, tuple for a list."""
        if self.is_list:
            return tuple(self.element(item) for item in value)
        return self.element(value)


class ParamTable:
    """The parameters of one node.

    Attributes:
        node: name of the node that has them.
        params: the parameters, in the order of the docs.
    """

    def __init__(self, node: str, params: Iterable[Param]) -> None:
        """Check that no name is given twice; raises ConfigError."""
        self.node = node
        self.params = tuple(params)
        self._by_name = {param.name: param for param in self.params}
        if len({param.field for param in self.params}) != len(self.params):
            raise ConfigError(f'parameter table of {node}: a name is given twice')
        title = ''.join(part.title() for part in node.split('_'))
        self._class = make_dataclass(
            f'{title}Params', [(param.field, param.type) for param in self.params], frozen=True
        )

    def __iter__(self) -> Iterator[Param]:
        """Iterate over the parameters."""
        return iter(self.params)

    def named(self, node: str) -> ParamTable:
        """Return the same parameters for a node of another name."""
        return ParamTable(node, self.params)

    def get(self, name: str) -> Param | None:
        """Return a parameter by name, None if there is none."""
        return self._by_name.get(name)

    def problems(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Return a line for each value that cannot be used, by parameter name.

        A line names node, parameter, value and what is allowed.
        """
        lines = {}
        for name, value in given.items():
            param = self._by_name.get(name)
            if param is None:
                if not is_built_in(name):
                    hint = self.suggest(name)
                    lines[name] = (
                        f'{self.node}: parameter {name} (given {value!r}) is unknown{hint}'
                    )
            elif problem := param.problem(value):
                lines[name] = f'{self.node}: parameter {name} {problem}'
        return lines

    def suggest(self, name: str) -> str:
        """Return `, did you mean …?` for a name close to a known one, else what there is."""
        close = difflib.get_close_matches(name, self._by_name, n=1)
        if close:
            return f', did you mean {close[0]}?'
        return f'; known are: {", ".join(self._by_name) or "none"}'

    def parse(self, given: Mapping[str, Any]) -> Any:
        """Return the frozen dataclass of plain values, defaults filled in.

        Raises ConfigError with every problem.
        """
        if lines := self.problems(given):
            raise ConfigError('; '.join(lines.values()))
        values = {
            param.field: param.coerce(given.get(param.name, param.default))
            for param in self.params
        }
        return self._class(**values)

    def declare(self, node: Any) -> dict[str, str]:
        """Declare every parameter on an rclpy node, from its overrides where they are given.

        Returns the problems of the overrides (see `problems`): such a parameter is declared with
        its default, and the node must refuse to be configured.
        """
        from rclpy.parameter import Parameter

        # rclpy has no public way to list overrides without declaring them all; the name is the
        # same on Humble, Jazzy and Kilted.
        given = {
            name: self._override(name, override.value)
            for name, override in node._parameter_overrides.items()
        }
        lines = self.problems(given)
        for param in self.params:
            value = given.get(param.name, param.default)
            value = param.coerce(param.default if param.problem(value) else value)
            initial = _initial(param, value, Parameter.Type)
            node.declare_parameter(param.name, initial, _descriptor(param), ignore_override=True)
        node.add_on_set_parameters_callback(self._on_set)
        return lines

    def _override(self, name: str, value: Any) -> Any:
        # rcl reads `[]` as no value at all, and rclpy may hand numbers out as array.array.
        param = self._by_name.get(name)
        if param is None or not param.is_list or isinstance(value, (str, bytes)):
            return value
        return list(value) if hasattr(value, '__iter__') else [] if value is None else value

    def _on_set(self, parameters: Sequence[Any]) -> Any:
        from rcl_interfaces.msg import SetParametersResult

        known = (p for p in parameters if p.name in self._by_name)
        lines = self.problems({p.name: self._override(p.name, p.value) for p in known})
        return SetParametersResult(successful=not lines, reason='; '.join(lines.values()))

    def values(self, node: Any) -> Any:
        """Return the values that a node holds now, as one frozen dataclass."""
        return self.parse({param.name: _held(node, param) for param in self.params})

    def markdown(self) -> str:
        """Return the table of the docs, with a heading."""
        lines = [
            f'## `{self.node}`',
            '',
            '| Parameter | Type | Default | Unit | Allowed | Description |',
            '|---|---|---|---|---|---|',
        ]
        for param in self.params:
            live = '' if param.read_only else ' A change counts from the next configure.'
            cells = (
                f'`{param.name}`',
                param.type_name,
                f'`{_yaml(param.default)}`',
                param.unit,
                param.allowed(),
                param.description + live,
            )
            lines.append('| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |')
        return '\n'.join(lines) + '\n'

    def check_file(self, path: str | Path) -> list[Any]:
        """Return the problems of a parameter file for this node, each with file and line."""
        from heqis_ros.param_files import check_file

        return check_file(path, [self])


def is_built_in(name: str) -> bool:
    """Return whether a parameter belongs to rclpy itself."""
    return name in _BUILT_IN or name.startswith('qos_overrides.')


def docs_table(tables: Iterable[ParamTable]) -> str:
    """Return the tables of several nodes, sorted by node name."""
    return '\n'.join(table.markdown() for table in sorted(tables, key=lambda table: table.node))


def _held(node: Any, param: Param) -> Any:
    from rclpy.exceptions import ParameterUninitializedException

    try:
        value = node.get_parameter(param.name).value
    except ParameterUninitializedException:  # an empty list, see _initial
        value = None
    return list(value or ()) if param.is_list else value


def _yaml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _initial(param: Param, value: Any, types: Any) -> Any:
    # rclpy takes the type from the value and would call an empty list bytes: declare the type
    # alone then.
    if not param.is_list:
        return value
    names = {
        bool: types.BOOL_ARRAY,
        int: types.INTEGER_ARRAY,
        float: types.DOUBLE_ARRAY,
        str: types.STRING_ARRAY,
    }
    return list(value) or names[param.element]


def _descriptor(param: Param) -> Any:
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(
        name=param.name,
        description=param.description + (f' [{param.unit}]' if param.unit else ''),
        additional_constraints=param.allowed(),
        read_only=param.read_only,
    )
    if param.is_list or (param.minimum is None and param.maximum is None):
        return descriptor
    low, high = param.minimum, param.maximum
    if param.element is int:
        first = -_INT64 if low is None else int(low)
        last = _INT64 - 1 if high is None else int(high)
        descriptor.integer_range = [IntegerRange(from_value=first, to_value=last, step=0)]
    else:
        start = -math.inf if low is None else float(low)
        stop = math.inf if high is None else float(high)
        descriptor.floating_point_range = [
            FloatingPointRange(from_value=start, to_value=stop, step=0.0)
        ]
    return descriptor


TRUSTED_KEYS = Param(
    'trusted_keys',
    str,
    '',
    'Folder of the public keys (NAME.pub.pem) whose bundles are run; empty: unsigned bundles too.',
)
"""The parameter of every node that opens a bundle."""
