# SPDX-License-Identifier: Apache-2.0
"""The rules of the graph: boards, processes, nodes, dependencies and leases, read from YAML.

Everything is checked before anything starts, each problem with file and line. What is done with
the rules is in `policy.py`. Needs PyYAML, not rclpy.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from heqis_core.errors import ConfigError
from heqis_supervisor.reset.rules import ResetRule

RULES_VERSION = 1
SPIN_PERIOD_MS = 200
"""How often a managed node's executor proves that it runs."""


class Setting(NamedTuple):
    """One value that a rule file may give, for all (`defaults`) or for one process or node."""

    default: Any
    minimum: int
    maximum: int
    text: str


ON_STUCK = ('restart_process', 'warn')

PROCESS_SETTINGS = {
    'lease_ms': Setting(800, 1, 600_000, 'silence until a process counts as lost'),
    'busy_lease_ms': Setting(
        10_000,
        1,
        600_000,
        'the same while one of its nodes is in a transition or a process of its board starts',
    ),
    'hang_ms': Setting(3_000, 1, 600_000, 'executor stands still until a process counts as hung'),
    'respawn_ms': Setting(
        15_000, 1, 600_000, 'time for launch to start a process until it is missed'
    ),
    'restarts_max': Setting(8, 1, 10_000, 'starts within the window until the process is latched'),
    'restarts_window_ms': Setting(120_000, 1, 86_400_000, 'the window of restarts_max'),
    'kill': Setting(True, 0, 0, 'whether the supervisor may end it'),
    'optional': Setting(False, 0, 0, 'whether nobody misses it until its first heartbeat'),
}
NODE_SETTINGS = {
    'progress_ms': Setting(15_000, 1, 3_600_000, 'no progress with input pending until stuck'),
    'on_stuck': Setting('restart_process', 0, 0, 'what is done about a stuck node'),
    'configure_ms': Setting(60_000, 1, 3_600_000, 'time for configure'),
    'transition_ms': Setting(10_000, 1, 3_600_000, 'time for every other transition'),
    'attempts': Setting(8, 1, 1_000, 'failures in a row until the node is latched'),
    'backoff_ms': Setting(250, 1, 600_000, 'wait after a failure, doubled each time'),
    'backoff_max_ms': Setting(8_000, 1, 600_000, 'longest wait after a failure'),
    'stable_ms': Setting(10_000, 1, 3_600_000, 'time active until earlier failures are forgotten'),
    'hold_output': Setting(False, 0, 0, 'hold all output while the node is latched'),
    'managed': Setting(True, 0, 0, 'whether the supervisor brings the node up'),
}


@dataclass(frozen=True)
class NodeRule:
    """What holds for one node; settings as in `NODE_SETTINGS`, times in seconds."""

    name: str
    board: str
    process: str
    depends_on: tuple[str, ...]
    progress_s: float
    on_stuck: str
    configure_s: float
    transition_s: float
    attempts: int
    backoff_s: float
    backoff_max_s: float
    stable_s: float
    hold_output: bool
    managed: bool
    depth: int = 0
    """Length of the longest chain of dependencies below it."""


@dataclass(frozen=True)
class ProcessRule:
    """What holds for one process; settings as in `PROCESS_SETTINGS`, times in seconds."""

    board: str
    name: str
    nodes: tuple[str, ...]
    lease_s: float
    busy_lease_s: float
    hang_s: float
    respawn_s: float
    restarts_max: int
    restarts_window_s: float
    kill: bool
    optional: bool

    @property
    def key(self) -> str:
        """Return `board/process`."""
        return f'{self.board}/{self.name}'


@dataclass(frozen=True)
class Rules:
    """The rules of one graph.

    Attributes:
        heartbeat_s: period of the heartbeats that the leases are made for.
        processes: by `board/process`.
        nodes: by name, dependencies first.
        resets: how a board is reset in hardware, by board; a file of its own.
    """

    heartbeat_s: float
    processes: Mapping[str, ProcessRule]
    nodes: Mapping[str, NodeRule]
    resets: Mapping[str, ResetRule] = field(default_factory=dict)

    @property
    def boards(self) -> tuple[str, ...]:
        """Return the names of the boards."""
        return tuple(dict.fromkeys(rule.board for rule in self.processes.values()))

    def dependents(self, name: str) -> tuple[str, ...]:
        """Return the nodes that depend on a node, directly or not."""
        found: list[str] = [name]
        for rule in self.nodes.values():
            if any(other in found for other in rule.depends_on):
                found.append(rule.name)
        return tuple(found[1:])


def load_rules(path: Path | str) -> Rules:
    """Read a rule file; raise ConfigError that lists every problem as `file:line: …`."""
    path = Path(path)
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f'{path}: cannot be read: {error}; give a file like config/graph.yaml'
        ) from None
    reader = _Reader(str(path))
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, 'problem_mark', None)
        line = mark.line + 1 if mark else 1
        raise ConfigError(f'{path}:{line}: not YAML: {getattr(error, "problem", error)}') from None
    rules = reader.rules(root)
    if reader.problems:
        raise ConfigError('\n'.join(text for _, text in sorted(reader.problems)))
    assert rules is not None
    return rules


@dataclass
class _Reader:
    path: str
    problems: list[tuple[int, str]] = field(default_factory=list)
    lines: dict[str, int] = field(default_factory=dict)

    def rules(self, root: yaml.Node | None) -> Rules | None:
        top = self.mapping(root, 'the file', ('version', 'heartbeat_ms', 'defaults', 'boards'))
        if 'version' not in top or self.scalar(top['version'], 'version', int) != RULES_VERSION:
            self.problem(top.get('version', 1), f'version: expected {RULES_VERSION}')
        beat = Setting(100, 1, 10_000, '')
        heartbeat_ms = self.number(top.get('heartbeat_ms'), 'heartbeat_ms', beat)
        known = {**PROCESS_SETTINGS, **NODE_SETTINGS}
        defaults = self.settings(self.mapping(top.get('defaults'), 'defaults', known), known, {})
        processes: dict[str, ProcessRule] = {}
        nodes: dict[str, NodeRule] = {}
        for board, board_body in self.mapping(top.get('boards'), 'boards').items():
            for name, body in self.mapping(board_body, f'board {board}').items():
                self.process(board, name, body, defaults, processes, nodes)
        if not processes and not self.problems:
            self.problem(root, 'boards: expected at least one process')
        self.check_leases(processes.values(), heartbeat_ms)
        self.check_optional(processes, nodes)
        ordered = self.in_order(nodes)
        return None if self.problems else Rules(heartbeat_ms / 1000, processes, ordered)

    def process(
        self,
        board: str,
        name: str,
        body: yaml.Node,
        defaults: Mapping[str, Any],
        processes: dict[str, ProcessRule],
        nodes: dict[str, NodeRule],
    ) -> None:
        key = f'{board}/{name}'
        self.lines[key] = body.start_mark.line + 1
        given = self.mapping(body, f'process {key}', ('nodes', *PROCESS_SETTINGS))
        node_bodies = self.mapping(given.pop('nodes', None), f'nodes of {key}')
        values = self.settings(given, PROCESS_SETTINGS, defaults)
        processes[key] = ProcessRule(board, name, tuple(node_bodies), **_seconds(values))
        for node, node_body in node_bodies.items():
            if node in nodes:
                other = nodes[node]
                self.problem(
                    node_body, f'node {node}: is in {other.board}/{other.process} already'
                )
                continue
            self.lines[node] = node_body.start_mark.line + 1
            items = self.mapping(node_body, f'node {node}', ('depends_on', *NODE_SETTINGS))
            depends_on = self.names(items.pop('depends_on', None), f'node {node}: depends_on')
            values = self.settings(items, NODE_SETTINGS, defaults)
            nodes[node] = NodeRule(node, board, name, depends_on, **_seconds(values))

    def check_leases(self, processes: Iterable[ProcessRule], heartbeat_ms: int) -> None:
        for rule in processes:
            line = self.lines[rule.key]
            if rule.lease_s * 1000 < 3 * heartbeat_ms:
                self.problem(
                    line,
                    f'process {rule.key}: lease_ms {rule.lease_s * 1000:.0f} is shorter than '
                    f'three heartbeats of {heartbeat_ms} ms; a late one would count as a loss',
                )
            if rule.busy_lease_s < rule.lease_s:
                self.problem(line, f'process {rule.key}: busy_lease_ms is shorter than lease_ms')
            if rule.hang_s * 1000 < 3 * SPIN_PERIOD_MS:
                self.problem(
                    line, f'process {rule.key}: hang_ms must be at least {3 * SPIN_PERIOD_MS}'
                )

    def check_optional(
        self, processes: Mapping[str, ProcessRule], nodes: Mapping[str, NodeRule]
    ) -> None:
        for rule in nodes.values():
            if processes[f'{rule.board}/{rule.process}'].optional:
                continue
            for other in rule.depends_on:
                home = f'{nodes[other].board}/{nodes[other].process}' if other in nodes else ''
                if home and processes[home].optional:
                    self.problem(
                        self.lines[rule.name],
                        f'node {rule.name}: depends on {other}, but process {home} is optional: '
                        f'where that is left out, {rule.name} would never become active; make '
                        f'process {rule.board}/{rule.process} optional too, or {home} not',
                    )

    def in_order(self, nodes: Mapping[str, NodeRule]) -> dict[str, NodeRule]:
        ordered: dict[str, NodeRule] = {}
        for rule in nodes.values():
            for other in rule.depends_on:
                if other not in nodes:
                    hint = _suggest(other, nodes)
                    self.problem(
                        self.lines[rule.name],
                        f'node {rule.name}: depends on unknown {other}{hint}',
                    )
        rest = dict(nodes)
        while rest:
            ready = [r for r in rest.values() if not any(o in rest for o in r.depends_on)]
            if not ready:
                loop = _loop(rest)
                text = ' -> '.join(loop)
                self.problem(
                    self.lines[loop[0]], f'node {loop[0]}: dependencies in a circle: {text}'
                )
                break
            for rule in ready:
                depths = [ordered[o].depth + 1 for o in rule.depends_on if o in ordered]
                ordered[rule.name] = replace(rest.pop(rule.name), depth=max(depths, default=0))
        return ordered

    # --- YAML with lines ---

    def mapping(
        self, node: yaml.Node | None, what: str, known: Iterable[str] | None = None
    ) -> dict[str, yaml.Node]:
        if node is None or (isinstance(node, yaml.ScalarNode) and node.value in ('', '~', 'null')):
            return {}
        if not isinstance(node, yaml.MappingNode):
            self.problem(node, f'{what}: expected a mapping of names to values')
            return {}
        found: dict[str, yaml.Node] = {}
        names = None if known is None else list(known)
        for key, value in node.value:
            name = str(key.value)
            if name in found:
                self.problem(key, f'{what}: {name} is given twice')
            elif names is not None and name not in names:
                self.problem(key, f'{what}: unknown key {name}{_suggest(name, names)}')
            elif names is None and not name.isidentifier():
                self.problem(key, f'{what}: {name!r} is no name')
            else:
                found[name] = value
        return found

    def settings(
        self,
        given: Mapping[str, yaml.Node],
        known: Mapping[str, Setting],
        defaults: Mapping[str, Any],
    ) -> dict[str, Any]:
        values = {name: defaults.get(name, setting.default) for name, setting in known.items()}
        for name, node in given.items():
            values[name] = self.number(node, name, known[name])
        return values

    def number(self, node: yaml.Node | None, name: str, setting: Setting) -> Any:
        if node is None:
            return setting.default
        value = self.scalar(node, name, type(setting.default))
        if isinstance(setting.default, str) and value not in ON_STUCK:
            self.problem(node, f'{name}: {value!r}, expected one of {", ".join(ON_STUCK)}')
        elif type(setting.default) is int and not setting.minimum <= value <= setting.maximum:
            self.problem(node, f'{name}: {value}, expected {setting.minimum} to {setting.maximum}')
        return value

    def scalar(self, node: yaml.Node, name: str, kind: type) -> Any:
        value = yaml.SafeLoader('').construct_object(node, deep=True)
        if type(value) is kind:
            return value
        self.problem(node, f'{name}: {value!r}, expected {kind.__name__}')
        return kind()

    def names(self, node: yaml.Node | None, what: str) -> tuple[str, ...]:
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.problem(node, f'{what}: expected a list of nodes, like [journal, risk_gate]')
            return ()
        return tuple(str(item.value) for item in node.value)

    def problem(self, where: yaml.Node | int | None, text: str) -> None:
        line = where if isinstance(where, int) else where.start_mark.line + 1 if where else 1
        self.problems.append((line, f'{self.path}:{line}: {text}'))


def _seconds(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with `x_ms` as `x_s`."""
    return {
        f'{name[:-3]}_s' if name.endswith('_ms') else name: value / 1000
        if name.endswith('_ms')
        else value
        for name, value in values.items()
    }


def _suggest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f', did you mean {close[0]}?' if close else f'; known are: {", ".join(names)}'


def _loop(rest: Mapping[str, NodeRule]) -> list[str]:
    """Return the nodes of one circle, the first also at the end."""
    walk = [next(iter(rest))]
    while True:
        step = next(other for other in rest[walk[-1]].depends_on if other in rest)
        if step in walk:
            return [*walk[walk.index(step) :], step]
        walk.append(step)


def settings_table() -> Iterator[str]:
    """Yield the lines of the docs' table of settings."""
    yield '| Setting | Default | Of | Meaning |'
    yield '|---|---|---|---|'
    for owner, settings in (('process', PROCESS_SETTINGS), ('node', NODE_SETTINGS)):
        for name, setting in settings.items():
            default = (
                str(setting.default).lower()
                if setting.default is False or setting.default is True
                else setting.default
            )
            yield f'| `{name}` | `{default}` | {owner} | {setting.text} |'
