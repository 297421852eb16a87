# SPDX-License-Identifier: Apache-2.0
"""Read a ROS 2 YAML launch file into the list of processes that it asks for.

A small part of what `ros2 launch` knows (docs/launch.md lists it), with the same results; anything
else is refused with file, line and name. Nothing is started here: see `launch_runner` for that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from heqis_bringup.launch_yaml import Entry, ParamType, param_value, split_words, substitute
from heqis_core.errors import ConfigError

_MAX_INCLUDES = 16
_NAME = re.compile(r'[A-Za-z_][A-Za-z0-9_]*\Z')
_CONDITIONS = ('if', 'unless')
_OUTPUTS = ('screen', 'log', 'both')
_SUBSTITUTIONS = ('var', 'env', 'find-pkg-share', 'dirname')
_NODE_KEYS = (
    *('pkg', 'exec', 'name', 'namespace', 'param', 'remap', 'env'),
    *('ros_args', 'respawn', 'respawn_delay', 'output'),
    *_CONDITIONS,
)


@dataclass(frozen=True)
class LaunchArgument:
    """One declared argument of a launch file; `default` None means that it must be given."""

    name: str
    default: str | None
    description: str
    choices: tuple[str, ...]


@dataclass(frozen=True)
class ProcessSpec:
    """One process, every substitution done.

    Attributes:
        package, executable: what to run, looked up like `ros2 run` does.
        name: node name to impose on every node of the process, or None.
        namespace: absolute namespace, or None where the file pushes none.
        params: in order, paths of parameter files and single values.
        remaps: pairs (from, to).
        ros_args: further ROS arguments, such as `--log-level debug`.
        env: variables added to the environment.
        respawn, respawn_delay_s: whether, and how long after, an ended process is started again.
        output: `screen` or `both` (all lines on the screen) or `log` (standard error alone).
        where: file and line of the entry.
    """

    package: str
    executable: str
    name: str | None = None
    namespace: str | None = None
    params: tuple[Path | tuple[str, ParamType], ...] = ()
    remaps: tuple[tuple[str, str], ...] = ()
    ros_args: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    respawn: bool = False
    respawn_delay_s: float = 0.0
    output: str = 'log'
    where: str = ''


@dataclass(frozen=True)
class LaunchPlan:
    """What a launch file asks for, given its arguments.

    Attributes:
        path: the file.
        processes: in the order of the file.
        arguments: every declared argument, those of included files too.
        values: value of each argument.
    """

    path: Path
    processes: tuple[ProcessSpec, ...]
    arguments: tuple[LaunchArgument, ...]
    values: Mapping[str, str]


def load_launch(
    path: Path,
    given: Mapping[str, str] | None = None,
    *,
    find_share: Callable[[str], Path],
    environ: Mapping[str, str] | None = None,
) -> LaunchPlan:
    """Read `path` with launch arguments `given`.

    `find_share` gives the share folder of a package for `$(find-pkg-share p)` and may raise
    ConfigError; `environ` answers `$(env X)`, by default this process's environment. Raises
    ConfigError that names file, line and entry for whatever is malformed or unknown, and for an
    argument that no file declares.
    """
    given = dict(given or {})
    reader = _Reader(find_share, os.environ if environ is None else environ)
    reader.read(Path(os.path.abspath(path)), _Scope(dict(given)), 0)
    known = {argument.name: argument for argument in reader.arguments}
    for name in given:
        if name not in known:
            names = ', '.join(sorted(known)) or 'none'
            raise ConfigError(f'{path} declares no argument {name!r}; it knows {names}')
    return LaunchPlan(Path(path), tuple(reader.processes), tuple(known.values()), reader.values)


def parse_arguments(words: Iterable[str]) -> dict[str, str]:
    """Return `name:=value` words as a dict; raise ConfigError for other forms and repetitions."""
    given: dict[str, str] = {}
    for word in words:
        name, sign, value = word.partition(':=')
        if not sign or not _NAME.match(name):
            raise ConfigError(f'launch argument {word!r} is not of the form name:=value')
        if name in given:
            raise ConfigError(f'launch argument {name!r} is given twice')
        given[name] = value
    return given


@dataclass
class _Scope:
    variables: dict[str, str]
    namespace: str | None = None


@dataclass
class _Reader:
    find_share: Callable[[str], Path]
    environ: Mapping[str, str]
    processes: list[ProcessSpec] = field(default_factory=list)
    arguments: list[LaunchArgument] = field(default_factory=list)
    values: dict[str, str] = field(default_factory=dict)

    def read(self, path: Path, scope: _Scope, depth: int) -> None:
        if depth > _MAX_INCLUDES:
            raise ConfigError(f'{path} is included {depth} files deep; does it include itself?')
        try:
            root = yaml.compose(path.read_text(encoding='utf-8'), Loader=yaml.SafeLoader)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f'launch file {path} cannot be read: {reason}') from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f'launch file {path} is not YAML: {error}') from None
        if root is None:
            raise ConfigError(f'launch file {path} is empty')
        actions = Entry(path, root, 'launch file').keys(('launch',), required=('launch',))
        self._actions(actions['launch'], scope, depth)

    def _actions(self, entry: Entry, scope: _Scope, depth: int) -> None:
        actions = {
            'arg': self._arg,
            'group': self._group,
            'include': self._include,
            'node': self._node,
            'push_ros_namespace': self._push,
            'push-ros-namespace': self._push,
        }
        for item in entry.items():
            found = item.keys(actions)
            if len(found) != 1:
                raise item.error('must be one action with one key', actions)
            for name, action in found.items():
                actions[name](action, scope, depth)

    def _wanted(self, keys: dict[str, Entry], scope: _Scope) -> bool:
        for name in _CONDITIONS:
            if name in keys:
                text = self._text(keys[name], scope).strip().lower()
                if text not in ('true', '1', 'false', '0'):
                    problem = f'is {text!r} after substitution'
                    raise keys[name].error(problem, ('true', '1', 'false', '0'))
                if (text in ('true', '1')) != (name == 'if'):
                    return False
        return True

    def _arg(self, entry: Entry, scope: _Scope, _depth: int) -> None:
        allowed = ('name', 'default', 'description', 'choice', *_CONDITIONS)
        keys = entry.keys(allowed, required=('name',))
        if not self._wanted(keys, scope):
            return
        name = keys['name'].text()
        choices = tuple(
            choice.keys(('value',), required=('value',))['value'].text()
            for choice in (keys['choice'].items() if 'choice' in keys else ())
        )
        default = self._text(keys['default'], scope) if 'default' in keys else None
        description = keys['description'].text() if 'description' in keys else ''
        if name not in scope.variables:
            if default is None:
                about = description or 'no description'
                raise entry.error(f'{name!r} ({about}) must be given as {name}:=value')
            scope.variables[name] = default
        value = scope.variables[name]
        if choices and value not in choices:
            raise entry.error(f'{name!r} has the value {value!r}', choices)
        if name not in self.values:
            self.arguments.append(LaunchArgument(name, default, description, choices))
            self.values[name] = value

    def _group(self, entry: Entry, scope: _Scope, depth: int) -> None:
        if isinstance(entry.node, yaml.SequenceNode):
            keys = {'children': entry}
        else:
            keys = entry.keys(('children', 'scoped', *_CONDITIONS), required=('children',))
        if not self._wanted(keys, scope):
            return
        scoped = keys['scoped'].literal(bool) if 'scoped' in keys else True
        inner = _Scope(dict(scope.variables), scope.namespace) if scoped else scope
        self._actions(keys['children'], inner, depth)

    def _push(self, entry: Entry, scope: _Scope, _depth: int) -> None:
        keys = entry.keys(('namespace', *_CONDITIONS), required=('namespace',))
        if self._wanted(keys, scope):
            scope.namespace = self._namespace(keys['namespace'], scope)

    def _include(self, entry: Entry, scope: _Scope, depth: int) -> None:
        keys = entry.keys(('file', 'arg', *_CONDITIONS), required=('file',))
        if not self._wanted(keys, scope):
            return
        path = Path(self._text(keys['file'], scope))
        if not path.is_absolute() or path.suffix not in ('.yaml', '.yml'):
            problem = f'is {str(path)!r}; expected a YAML file such as $(dirname)/name.launch.yaml'
            raise keys['file'].error(problem)
        # As in launch, an include opens no scope: what it sets stays set until its group ends.
        for name, value in self._pairs(keys.get('arg'), 'name', 'value', scope):
            scope.variables[name] = value
        self.read(path, scope, depth + 1)

    def _node(self, entry: Entry, scope: _Scope, _depth: int) -> None:
        keys = entry.keys(_NODE_KEYS, required=('pkg', 'exec'))
        if not self._wanted(keys, scope):
            return
        name = self._text(keys['name'], scope) if 'name' in keys else None
        if name is not None and not _NAME.match(name):
            raise keys['name'].error(f'is {name!r}, which is no node name')
        namespace = scope.namespace
        if 'namespace' in keys:
            namespace = self._namespace(keys['namespace'], scope)
        output = self._text(keys['output'], scope) if 'output' in keys else 'log'
        if output not in _OUTPUTS:
            raise keys['output'].error(f'is {output!r}', _OUTPUTS)
        params = keys['param'].items() if 'param' in keys else ()
        self.processes.append(
            ProcessSpec(
                package=self._text(keys['pkg'], scope),
                executable=self._text(keys['exec'], scope),
                name=name,
                namespace=namespace,
                params=tuple(self._param(param, scope) for param in params),
                remaps=tuple(self._pairs(keys.get('remap'), 'from', 'to', scope)),
                ros_args=tuple(self._args(keys.get('ros_args'), scope)),
                env=dict(self._pairs(keys.get('env'), 'name', 'value', scope)),
                respawn=self._flag(keys.get('respawn'), scope),
                respawn_delay_s=_delay(keys.get('respawn_delay')),
                output=output,
                where=f'{entry.path}:{entry.line}',
            )
        )

    def _pairs(
        self, entry: Entry | None, first: str, second: str, scope: _Scope
    ) -> Iterator[tuple[str, str]]:
        for item in entry.items() if entry else ():
            keys = item.keys((first, second), required=(first, second))
            yield self._text(keys[first], scope), self._text(keys[second], scope)

    def _args(self, entry: Entry | None, scope: _Scope) -> Iterator[str]:
        if entry is not None:
            for word in split_words(entry.text()):
                yield substitute(entry, word, self._perform(entry, scope))

    def _flag(self, entry: Entry | None, scope: _Scope) -> bool:
        if entry is None:
            return False
        text = self._text(entry, scope).lower()
        if text not in ('true', 'false'):
            raise entry.error(f'is {text!r}', ("'true'", "'false'"))
        return text == 'true'

    def _namespace(self, entry: Entry, scope: _Scope) -> str:
        text = self._text(entry, scope)
        if not text.startswith('/'):
            text = f'{(scope.namespace or "").rstrip("/")}/{text}'
        text = text.rstrip('/') or '/'
        if text != '/' and not all(_NAME.match(token) for token in text[1:].split('/')):
            raise entry.error(f'is {text!r}, which is no ROS namespace')
        return text

    def _param(self, entry: Entry, scope: _Scope) -> Path | tuple[str, ParamType]:
        keys = entry.keys(('from', 'name', 'value', 'type'))
        if set(keys) == {'from'}:
            path = Path(self._text(keys['from'], scope))
            if not path.is_file():
                raise keys['from'].error(f'names the parameter file {path}, which is not there')
            return path
        if 'from' in keys or 'name' not in keys or 'value' not in keys:
            raise entry.error("needs either 'from', or 'name' and 'value' and perhaps 'type'")
        kind = keys['type'].text() if 'type' in keys else 'yaml'
        value = keys['value']
        perform = self._perform(value, scope)
        return self._text(keys['name'], scope), param_value(value, kind, perform)

    def _text(self, entry: Entry, scope: _Scope) -> str:
        return substitute(entry, entry.text(), self._perform(entry, scope))

    def _perform(self, entry: Entry, scope: _Scope) -> Callable[[str, list[str]], str]:
        def perform(name: str, words: list[str]) -> str:
            if name == 'dirname' and not words:
                return str(entry.path.parent)
            if name == 'find-pkg-share' and len(words) == 1:
                return self._share(entry, words[0])
            if name in ('var', 'env') and len(words) in (1, 2):
                values = scope.variables if name == 'var' else self.environ
                if words[0] in values:
                    return values[words[0]]
                if len(words) == 2:
                    return words[1]
                hint = 'declare the argument before it' if name == 'var' else 'set the variable'
                raise entry.error(f'uses $({name} {words[0]}), which is not set; {hint}')
            text = ' '.join([name, *words])
            raise entry.error(f'uses $({text}), which is not understood here', _SUBSTITUTIONS)

        return perform

    def _share(self, entry: Entry, package: str) -> str:
        try:
            return str(self.find_share(package))
        except ConfigError as error:
            raise entry.error(f'uses $(find-pkg-share {package}): {error}') from None


def _delay(entry: Entry | None) -> float:
    if entry is None:
        return 0.0
    delay_s: float = entry.literal(float)
    if delay_s < 0:
        raise entry.error(f'is {delay_s}; expected seconds, zero or more')
    return delay_s
