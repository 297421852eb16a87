# SPDX-License-Identifier: Apache-2.0
"""What the policy knows, for people: one line and a level for each board, process and node. Pure.

A node is OK only while it is ACTIVE and nothing is wrong with it or its process: crashed, hung
and latched are ERROR. What is optional and was never heard of is OK too, and says so. Cause and
consequence are kept apart: a node that merely waits for another one is a WARN that names the
root cause.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from heqis_core.control import Level, NodeState
from heqis_supervisor.facts import NodeMind, State
from heqis_supervisor.hearing import AGENT_LEASE_S
from heqis_supervisor.ladder import Step
from heqis_supervisor.policy import UNSEEN_S
from heqis_supervisor.processes import left_out
from heqis_supervisor.rules import NodeRule, Rules

LEFT_OUT = 'not started (optional)'


@dataclass(frozen=True)
class Health:
    """State of one part of the graph.

    Attributes:
        name: `board/…`, `process/board/…` or `node/…`.
        board: where it is.
        level: INFO stands for OK.
        message: one line.
        values: details, names to texts.
    """

    name: str
    board: str
    level: Level
    message: str
    values: dict[str, str] = field(default_factory=dict)


def report(rules: Rules, state: State) -> list[Health]:
    """Return the health of every board, process and node, in the order of the rules."""
    parts = [_board(board, rules, state) for board in rules.boards]
    parts += [_process(key, rules, state) for key in rules.processes]
    parts += [_node(rule, rules, state) for rule in rules.nodes.values()]
    return parts


def overall(parts: list[Health]) -> tuple[Level, str]:
    """Return the worst level and a line that names the causes, not their consequences."""
    worst = max((part.level for part in parts), default=Level.INFO)
    if worst == Level.INFO:
        return worst, 'all nodes are active'
    bad = [part for part in parts if part.level == worst]
    # A cause may be better off than what waits for it: optional, and left out.
    causes = [part for part in bad if 'root_cause' not in part.values] or bad
    return worst, '; '.join(f'{part.name.partition("/")[2]}: {part.message}' for part in causes)


def _board(board: str, rules: Rules, state: State) -> Health:
    part = _agent(board, rules, state)
    reset = state.resets.get(board)
    if reset is None:
        return part
    budget = f'{len(reset.begun_s)} of {rules.resets[board].resets_max}'
    values = {'step': reset.step.name, 'case': reset.case.name.lower()}
    values.update(resets=budget, boot_id=reset.boot_id)
    if reset.step == Step.NONE:
        return replace(part, values=values)
    text = f'given up: {reset.reason}' if reset.latched else reset.reason
    return replace(part, level=Level.ERROR, message=text, values=values)


def _agent(board: str, rules: Rules, state: State) -> Health:
    heard = state.boards.get(board)
    if heard is None and all(r.optional for r in rules.processes.values() if r.board == board):
        return Health(f'board/{board}', board, Level.INFO, LEFT_OUT)
    silent = state.time_s - (state.since_s if heard is None else heard)
    if silent <= AGENT_LEASE_S:
        known = 'its agent speaks' if heard is not None else 'its agent has not reported in yet'
        return Health(
            f'board/{board}', board, Level.INFO if heard is not None else Level.WARN, known
        )
    text = f'no word from its agent for {silent:.1f} s'
    return Health(f'board/{board}', board, Level.ERROR, text)


def _process(key: str, rules: Rules, state: State) -> Health:
    mind = state.processes[key]
    beat = mind.beat
    values = {
        'restarts': str(mind.restarts),
        'step': mind.step.name,
        'case': mind.case.name.lower(),
    }
    if beat is not None:
        values.update(pid=str(beat.pid), host=beat.host, start_id=f'{beat.start_id:x}')
    level, message = Level.INFO, 'runs'
    if left_out(rules.processes[key], mind):
        message = LEFT_OUT
    elif mind.reason:
        waiting = (
            mind.step == Step.WARN
            and state.time_s - state.since_s <= rules.processes[key].respawn_s
        )
        level, message = (Level.WARN if waiting else Level.ERROR), mind.reason
    return Health(f'process/{key}', rules.processes[key].board, level, message, values)


def _node(rule: NodeRule, rules: Rules, state: State) -> Health:
    mind = state.nodes[rule.name]
    key = f'{rule.board}/{rule.process}'
    process = state.processes[key]
    values = {
        'state': mind.state.name,
        'restarts': str(process.restarts),
        'step': mind.step.name,
        'case': mind.case.name.lower(),
        'failures': str(mind.failures),
        'process': key,
        'pending': str(mind.pending),
        'progress': str(mind.progress),
    }
    nodes = process.beat.nodes if process.beat is not None else ()
    for node in nodes:
        if node.name == mind.full_name:
            values.update({f'counter.{name}': str(n) for name, n in node.counters.items()})
    causes = root_causes(rule.name, rules, state)
    if causes:
        values['root_cause'] = ', '.join(causes)
    level, message = Level.INFO, LEFT_OUT
    if not left_out(rules.processes[key], process):
        level, message = _judge(rule, mind, state, causes)
    return Health(f'node/{rule.name}', rule.board, level, message, values)


def _judge(
    rule: NodeRule, mind: NodeMind, state: State, causes: tuple[str, ...]
) -> tuple[Level, str]:
    well = mind.state == NodeState.ACTIVE and mind.step == Step.NONE
    if well and not causes:
        return Level.WARN if mind.degraded else Level.INFO, mind.info or 'active'
    if well:
        return Level.INFO, f'active, but {", ".join(causes)} is not well'
    if causes and mind.step == Step.WARN:
        return Level.WARN, f'waits for {", ".join(causes)}'
    process = state.processes[f'{rule.board}/{rule.process}']
    unseen = process.beat is not None and state.time_s - process.began_s > UNSEEN_S
    stuck = mind.state == NodeState.ACTIVE
    if mind.step > Step.WARN or stuck or (not mind.full_name and unseen):
        return Level.ERROR, mind.reason or mind.info or mind.state.name
    return Level.WARN, mind.reason or mind.state.name


def root_causes(name: str, rules: Rules, state: State) -> tuple[str, ...]:
    """Return the nodes whose trouble keeps a node waiting: those that wait for nobody."""
    found: dict[str, None] = {}
    for other in state.nodes[name].waits_for:
        for cause in root_causes(other, rules, state) or (other,):
            found[cause] = None
    return tuple(found)
