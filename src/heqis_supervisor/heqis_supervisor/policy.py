# SPDX-License-Identifier: Apache-2.0
"""The watchdog policy: a pure `update(rules, time, state, facts) -> (state, actions)`.

No clock, no I/O. Nodes are brought to ACTIVE, dependencies first; a process that is lost, hung,
deaf or stuck is killed (launch starts it again); what fails waits longer each time, and after too
many failures is latched until a person clears it. Only what failed is touched: nodes that wait
for it stay. Start and recovery are one path: the first update takes the world as it finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from heqis_core.control import Kill, KillSilent, Level, NodeState, Transit, Transition
from heqis_supervisor.facts import (
    Action,
    Command,
    Facts,
    Killing,
    NodeMind,
    ProcessMind,
    ResetMind,
    Running,
    State,
)
from heqis_supervisor.hearing import AGENT_LEASE_S, Turn
from heqis_supervisor.ladder import Case
from heqis_supervisor.processes import (
    BEGIN_MAX_S,
    NOT_BACK,
    is_late,
    judge_process,
    left_out,
    timeout_s,
)
from heqis_supervisor.reset.policy import judge_resets
from heqis_supervisor.rules import NodeRule, ProcessRule, Rules

KILL_ANSWER_S = 2.0
AGENT_PATIENCE_S = 2 * BEGIN_MAX_S
"""An agent gives no request up before it is made again."""
DEPTH_S = 1.0
UNSEEN_S = 3.0
"""Time for a process to name its nodes."""
SEARCH_S = 10.0
"""Between two searches for a process that never spoke."""
SLOWEST_START_S = 120.0
"""No start takes longer, however busy the board is."""
ENDING_S = 3.0
"""Time for a process whose nodes are finalized to end: that is how every clean stop looks."""


def initial(rules: Rules, time_s: float, resets: Mapping[str, ResetMind] | None = None) -> State:
    """Return the state of a supervisor that knows nothing yet but of the resets before."""
    known = resets or {}
    return State(
        time_s=time_s,
        since_s=time_s,
        boards={},
        agents={},
        processes={key: ProcessMind() for key in rules.processes},
        nodes={name: NodeMind() for name in rules.nodes},
        resets={b: replace(known.get(b, ResetMind()), heard_s=time_s) for b in rules.resets},
    )


def update(
    rules: Rules, time_s: float, state: State, facts: Facts
) -> tuple[State, tuple[Action, ...]]:
    """Take facts in and return the new state and what is to be done now.

    `time_s` is monotonic and never goes back. Every command carries an id of its own; what became
    of it comes back as a Result in later facts, as an effect in the heartbeats, or as
    `facts.unsent`.
    """
    turn = Turn(rules, time_s, state)
    turn.stop_clocks()
    for message in facts.messages:
        turn.hear(message)
    _take_back(turn, facts.unsent)
    _clear(turn, facts.cleared)
    _judge_boards(turn)
    judge_resets(turn, facts)
    for key, rule in rules.processes.items():
        judge_process(turn, key, rule)
    for node_rule in rules.nodes.values():
        _judge_node(turn, node_rule)
    for key, rule in rules.processes.items():
        _plan(turn, key, rule)
    hold = _hold(turn)
    after = State(
        time_s=time_s,
        since_s=state.since_s,
        boards=turn.boards,
        agents=turn.agents,
        processes=turn.processes,
        nodes=turn.nodes,
        resets=turn.resets,
        hold=hold,
        next_id=turn.next_id,
        strangers=frozenset(turn.strangers),
    )
    return after, tuple(turn.actions)


# --- answers of people and of the link ---


def _take_back(turn: Turn, unsent: tuple[int, ...]) -> None:
    for name, mind in list(turn.nodes.items()):
        if mind.running is not None and mind.running.id in unsent:
            turn.set_node(name, running=None, retry_s=turn.now + 0.2)
    for key, process in list(turn.processes.items()):
        if process.killing is not None and process.killing.id in unsent:
            turn.set_process(key, killing=None, retry_s=turn.now + 0.2)
        if process.search in unsent:
            turn.set_process(key, search=0, search_s=turn.now + 0.2)


def _clear(turn: Turn, cleared: tuple[str, ...]) -> None:
    everything = '*' in cleared
    for name, mind in list(turn.nodes.items()):
        if mind.latched and (everything or name in cleared):
            turn.set_node(name, latched='', failures=0, retry_s=0.0)
            turn.note(Level.INFO, 'cleared', name, 'cleared by a person')
    for key, process in list(turn.processes.items()):
        if _process_given_up(process) and (everything or key in cleared):
            fresh: dict[str, Any] = {'kills': 0, 'searched': 0, 'births': (), 'retry_s': 0.0}
            turn.set_process(key, latched='', reboot='', **fresh)
            turn.note(Level.INFO, 'cleared', key, 'cleared by a person')
    for board, reset in list(turn.resets.items()):
        if reset.latched and (everything or f'board/{board}' in cleared):
            turn.set_reset(board, latched='', escalated=False)
            turn.note(Level.INFO, 'cleared', f'board/{board}', 'cleared by a person')


def latched(state: State) -> tuple[str, ...]:
    """Return what is given up until a person clears it, as `Facts.cleared` names it."""
    nodes = [name for name, mind in state.nodes.items() if mind.latched]
    processes = [key for key, mind in state.processes.items() if _process_given_up(mind)]
    boards = [f'board/{board}' for board, mind in state.resets.items() if mind.latched]
    return (*nodes, *processes, *boards)


def _judge_boards(turn: Turn) -> None:
    for board in turn.rules.boards:
        heard = turn.before.boards.get(board)
        was_heard = heard is not None and turn.before.time_s - heard <= AGENT_LEASE_S
        if was_heard and not turn.board_heard(board):
            text = 'no word from its agent: processes there can be neither watched nor helped'
            turn.note(Level.ERROR, 'agent_lost', board, text)


# --- nodes: stuck, waiting, latched ---


def healthy(turn: Turn, name: str) -> bool:
    """Whether others may rely on a node now."""
    rule, mind = turn.rules.nodes[name], turn.nodes[name]
    process = turn.processes[f'{rule.board}/{rule.process}']
    fine = not process.trouble and not _process_given_up(process)
    fine = fine and turn.board_heard(rule.board)
    return fine and mind.state == NodeState.ACTIVE and mind.case == Case.NODE_WELL


def _judge_node(turn: Turn, rule: NodeRule) -> None:
    """Judge one node; those it depends on have been judged before."""
    mind = turn.nodes[rule.name]
    key = f'{rule.board}/{rule.process}'
    process = turn.processes[key]
    if left_out(turn.rules.processes[key], process):
        return
    broken = tuple(other for other in rule.depends_on if not healthy(turn, other))
    case, reason = Case.NODE_WELL, ''
    if process.latched or mind.latched:
        case, reason = Case.NODE_LATCHED, process.latched or mind.latched
    elif process.reboot:
        case, reason = Case.NODE_REBOOT, process.reboot
    elif process.trouble or process.beat is None:
        case = Case.NODE_DOWN if process.trouble else Case.NODE_UNHEARD
        reason = process.trouble or process.reason
    elif not turn.board_heard(rule.board):
        case, reason = Case.NODE_UNREACHED, f'no word from the agent of board {rule.board}'
    elif not mind.full_name:
        case, reason = Case.NODE_UNHEARD, 'has not reported in yet'
        if turn.now - process.began_s > UNSEEN_S:
            reason = f'process {key} has no node of this name'
    elif mind.state == NodeState.FINALIZED and turn.now - mind.since_s <= ENDING_S:
        case, reason = Case.NODE_ENDING, 'is finalized: its process is ending'
    elif mind.state == NodeState.FINALIZED:
        case = Case.NODE_FINALIZED
        reason = 'is finalized; only a new process can bring it back'
        turn.set_process(key, trouble=f'{rule.name} {reason}')
        if mind.reason != reason:
            turn.note(Level.ERROR, 'node_finalized', rule.name, reason)
    elif mind.state != NodeState.ACTIVE:
        case = Case.NODE_FAILED if mind.failures else Case.NODE_COMING
        reason = mind.failure if mind.failures else _not_active(turn, mind)
    else:
        case, reason = _judge_active(turn, rule, broken)
    turn.set_node(rule.name, case=case, reason=reason, waits_for=broken)


def _not_active(turn: Turn, mind: NodeMind) -> str:
    reason = f'is {mind.state.name}'
    if mind.running is None or mind.asks < 2:
        return reason
    asked = f'{mind.running.transition.value} was asked for {mind.asks} times'
    return f'{reason}; {asked} in {turn.now - mind.asking_s:.0f} s and has not begun'


def _judge_active(turn: Turn, rule: NodeRule, broken: tuple[str, ...]) -> tuple[Case, str]:
    mind = turn.nodes[rule.name]
    if mind.failures and turn.now - mind.since_s > rule.stable_s:
        turn.set_node(rule.name, failures=0)
    if broken or turn.before.hold:
        # Input waits because somebody else, or nobody, takes it: no fault of this node.
        turn.set_node(rule.name, progress_moved_s=turn.now)
        return Case.NODE_WELL, ''
    still = turn.processes[f'{rule.board}/{rule.process}'].heard_s - mind.progress_moved_s
    # What hangs on a stuck node stands still too, and must not be found first.
    if mind.pending == 0 or still <= rule.progress_s + rule.depth * DEPTH_S:
        return Case.NODE_WELL, ''
    reason = f'stuck: {mind.pending} units wait and nothing was done for {still:.0f} s'
    if not mind.reason.startswith('stuck'):
        turn.note(Level.ERROR, 'node_stuck', rule.name, reason)
    if rule.on_stuck == 'warn' or not rule.managed:
        return Case.NODE_STALLED, reason
    turn.set_process(f'{rule.board}/{rule.process}', trouble=f'{rule.name} is {reason}')
    return Case.NODE_STUCK, reason


def _hold(turn: Turn) -> bool:
    lost = [r.name for r in turn.rules.nodes.values() if r.hold_output and _given_up(turn, r)]
    lost += [
        f'board/{board}'
        for board, rule in turn.rules.resets.items()
        if rule.real and turn.resets[board].latched
    ]
    if lost and not turn.before.hold:
        turn.note(Level.ERROR, 'hold', ', '.join(lost), 'all output is held')
    elif turn.before.hold and not lost:
        turn.note(Level.INFO, 'hold', '', 'output is no longer held')
    return bool(lost)


def _given_up(turn: Turn, rule: NodeRule) -> bool:
    process = turn.processes[f'{rule.board}/{rule.process}']
    return bool(_process_given_up(process) or turn.nodes[rule.name].latched)


def _process_given_up(mind: ProcessMind) -> bool:
    return bool(mind.latched or mind.reboot)


# --- what to do ---


def _plan(turn: Turn, key: str, rule: ProcessRule) -> None:
    mind = turn.processes[key]
    if mind.latched:
        turn.set_process(key, case=Case.PROCESS_LATCHED, reason=mind.latched)
    elif mind.reboot:
        turn.set_process(key, case=Case.PROCESS_SPENT, reason=mind.reboot)
    elif not turn.board_heard(rule.board):
        if mind.beat is not None:
            reason = f'no word from the agent of board {rule.board}'
            turn.set_process(key, case=Case.PROCESS_UNREACHED, reason=reason)
    elif mind.beat is None:
        if is_late(turn, rule):
            _plan_search(turn, key, rule)
    elif mind.trouble:
        missed = mind.killing is not None and mind.killing.missed
        if missed:
            _plan_search(turn, key, rule)
        reason = f'{mind.trouble}; {NOT_BACK}' if missed else mind.trouble
        turn.set_process(key, case=Case.PROCESS_DOWN, reason=reason)
        _plan_kill(turn, key, rule)
    elif not any(turn.nodes[name].running for name in rule.nodes):
        _plan_transition(turn, rule)


def _plan_kill(turn: Turn, key: str, rule: ProcessRule) -> None:
    mind = turn.processes[key]
    if mind.killing is not None or turn.now < mind.retry_s or not rule.kill:
        return
    beat = mind.beat
    assert beat is not None
    order = Kill(turn.next_id, rule.name, beat.pid, beat.start_id, beat.boot_id, beat.proc_start)
    killing = Killing(turn.next_id, beat.start_id, turn.now + KILL_ANSWER_S)
    turn.set_process(key, killing=killing)
    turn.next_id += 1
    turn.actions.append(Command(rule.board, order))
    for name in rule.nodes:
        turn.set_node(name, running=None, expect=None)


def _plan_search(turn: Turn, key: str, rule: ProcessRule) -> None:
    """Have the agent end what launch runs as this process and nobody hears."""
    mind = turn.processes[key]
    if turn.now < mind.search_s or not rule.kill:
        return
    # Perhaps it is only slow to start: it gets twice the time after each that was ended.
    silent_s = min(rule.respawn_s * 2.0**mind.searched, max(rule.respawn_s, SLOWEST_START_S))
    order = KillSilent(turn.next_id, rule.name, int(silent_s * 1000))
    turn.set_process(key, search=turn.next_id, search_s=turn.now + SEARCH_S)
    turn.next_id += 1
    turn.actions.append(Command(rule.board, order))


def _plan_transition(turn: Turn, rule: ProcessRule) -> None:
    # One at a time in a process: its nodes share one executor.
    chosen = None
    for node in turn.rules.nodes.values():
        if node.name not in rule.nodes or not node.managed:
            continue
        transition = None if chosen else _next_transition(turn, node)
        if transition is None:
            turn.set_node(node.name, asks=0)
        else:
            chosen = node
            _ask(turn, node, transition)


def _ask(turn: Turn, rule: NodeRule, transition: Transition) -> None:
    mind = turn.nodes[rule.name]
    timeout_ms = int(max(timeout_s(rule, transition), AGENT_PATIENCE_S) * 1000)
    order = Transit(turn.next_id, mind.full_name, transition, timeout_ms)
    turn.set_node(
        rule.name,
        running=Running(turn.next_id, transition, turn.now),
        asks=mind.asks + 1,
        asking_s=mind.asking_s if mind.asks else turn.now,
    )
    turn.next_id += 1
    turn.actions.append(Command(rule.board, order))


def _next_transition(turn: Turn, rule: NodeRule) -> Transition | None:
    mind = turn.nodes[rule.name]
    if mind.latched or turn.now < mind.retry_s or not mind.full_name:
        return None
    if mind.state == NodeState.UNCONFIGURED:
        return Transition.CONFIGURE
    if mind.state == NodeState.INACTIVE:
        if mind.reset:
            return Transition.CLEANUP
        if not mind.waits_for:
            return Transition.ACTIVATE
    return None
