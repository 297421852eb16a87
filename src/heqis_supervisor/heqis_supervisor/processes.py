# SPDX-License-Identifier: Apache-2.0
"""What the policy makes of a process: absent, lost, hung, deaf, or starting again without end.

Pure, like `policy.py`, which calls `judge_process` for each process before it judges nodes.
"""

from __future__ import annotations

from dataclasses import replace

from heqis_core.control import Level, NodeState, Transition
from heqis_supervisor.facts import NodeMind, ProcessMind, Running
from heqis_supervisor.hearing import SETTLE_S, Turn
from heqis_supervisor.ladder import Case
from heqis_supervisor.rules import NodeRule, ProcessRule

ANSWER_S = 2.0
"""How much later than its time-out the answer to a command may come."""
BEGIN_S = 2.0
"""Time for a transition to show in the heartbeats of a node whose executor runs; then it is asked
for again, and each time twice as long later."""
BEGIN_MAX_S = 8.0
"""Longest time between two such requests."""
DEAF_S = 30.0
"""A node for which no request begins anything is given at least this time before its process is
taken for deaf: longer than the middleware remembers a dead process (a DDS lease, 20 s unless
configured), after which nothing is left that could be in the way of a new one."""
NOT_BACK = 'killed, and nobody started it again; is respawn set in the launch file?'


def left_out(rule: ProcessRule, mind: ProcessMind) -> bool:
    """Whether a process is not there and need not be: optional, and never heard of."""
    return rule.optional and mind.beat is None and not mind.latched and not mind.reboot


def judge_process(turn: Turn, key: str, rule: ProcessRule) -> None:
    """Judge one process, and what became of the requests to its nodes."""
    mind = turn.processes[key]
    if left_out(rule, mind):
        return
    if mind.beat is None:
        _judge_absent(turn, key, rule)
        return
    _settle_commands(turn, rule)
    mind = _check_kill(turn, key)
    trouble = mind.trouble
    busy = any(_busy(turn, turn.rules.nodes[name]) for name in rule.nodes)
    asked = any(turn.nodes[name].asks or turn.nodes[name].running for name in rule.nodes)
    patient = busy or asked or _starting(turn, rule)
    silent, lease = turn.silence(rule, rule.busy_lease_s if patient else rule.lease_s)
    if silent > (rule.lease_s if trouble.startswith('lost') else lease):
        trouble = trouble if trouble.startswith('lost') else f'lost: silent for {silent:.1f} s'
    elif trouble.startswith('lost') and not (mind.killing and mind.killing.confirmed):
        trouble = ''  # it speaks again
        turn.note(Level.WARN, 'process_back', key, 'speaks again, it was only slow')
    if not trouble.startswith('lost'):
        trouble = _hung(turn, rule, busy) or _deaf(turn, rule)
    if trouble and not mind.trouble:
        turn.note(Level.ERROR, f'process_{trouble.partition(":")[0]}', key, trouble)
    mind = turn.set_process(key, trouble=trouble, case=Case.PROCESS_WELL, reason='')
    if len(mind.births) > rule.restarts_max and not mind.latched and not mind.reboot:
        why = f'{len(mind.births)} starts within {rule.restarts_window_s:g} s; last: {trouble}'
        turn.give_up(key, why.removesuffix('; last: '))


def is_late(turn: Turn, rule: ProcessRule) -> bool:
    """Whether a process that nobody has heard should have been: launch had the time for it."""
    return turn.now - turn.before.since_s > rule.respawn_s


def _judge_absent(turn: Turn, key: str, rule: ProcessRule) -> None:
    if turn.processes[key].latched or turn.processes[key].reboot:
        return
    late = is_late(turn, rule)
    reason = 'has not reported in yet'
    if late:
        reason = f'never reported in; is it in the launch file of board {rule.board}?'
    if late and turn.processes[key].reason != reason:
        turn.note(Level.ERROR, 'process_missing', key, reason)
    turn.set_process(key, case=Case.PROCESS_UNHEARD, reason=reason)


def timeout_s(rule: NodeRule, transition: Transition) -> float:
    """Return how long a transition of a node may take."""
    return rule.configure_s if transition == Transition.CONFIGURE else rule.transition_s


def _settle_commands(turn: Turn, rule: ProcessRule) -> None:
    for name in rule.nodes:
        mind = turn.nodes[name]
        running = mind.running
        if running is None:
            continue
        if mind.asks:
            _settle_unheard(turn, name, mind, running)
            continue
        begun_s = max(mind.since_s, running.asked_s)
        limit_s = timeout_s(turn.rules.nodes[name], running.transition)
        if turn.now > begun_s + limit_s + ANSWER_S:
            turn.set_node(name, running=None)
            turn.failed(name, f'{running.transition.value}: no answer in time')


def _settle_unheard(turn: Turn, name: str, mind: NodeMind, running: Running) -> None:
    """Let a request be made again that began nothing: the middleware lost it, not the node.

    It may take long until a process that has just been started can be reached.
    """
    wait = min(BEGIN_S * 2.0 ** (mind.asks - 1), BEGIN_MAX_S)
    if turn.now - running.asked_s <= wait:
        return
    turn.set_node(name, running=None)
    if mind.asks == 1:
        text = (
            f'{running.transition.value} was asked for {wait:g} s ago and has not begun: the '
            'middleware may not have found the new process yet; it is asked again'
        )
        turn.note(Level.WARN, 'node_unheard', name, text)


def _check_kill(turn: Turn, key: str) -> ProcessMind:
    mind = turn.processes[key]
    killing = mind.killing
    if killing is None or turn.now <= killing.deadline_s:
        return mind
    if not killing.confirmed:
        turn.kill_failed(key, 'the agent did not answer the order to kill it')
    elif turn.now - mind.heard_s < SETTLE_S:
        turn.kill_failed(key, 'said to be killed, but it still sends heartbeats')
    elif not killing.missed:
        turn.set_process(key, killing=replace(killing, missed=True))
        turn.note(Level.ERROR, 'process_missing', key, NOT_BACK)
    return turn.processes[key]


def _busy(turn: Turn, rule: NodeRule) -> bool:
    """Whether a transition has begun, ours or one that was found running, and may still run."""
    mind = turn.nodes[rule.name]
    running = mind.running
    limit = timeout_s(rule, running.transition if running else Transition.CONFIGURE)
    return mind.state == NodeState.TRANSITIONING and turn.now - mind.since_s < limit


def _hung(turn: Turn, rule: ProcessRule, busy: bool) -> str:
    seen = [turn.nodes[name] for name in rule.nodes if turn.nodes[name].full_name]
    if busy:
        for name in rule.nodes:
            turn.set_node(name, spin_moved_s=turn.now)
        return ''
    if not seen:
        return ''
    # Only heartbeats are evidence: time in which none came proves no standstill.
    heard_s = turn.processes[rule.key].heard_s
    still = heard_s - max(node.spin_moved_s for node in seen)
    return f'hung: its executor stands still for {still:.1f} s' if still > rule.hang_s else ''


def _deaf(turn: Turn, rule: ProcessRule) -> str:
    for name in rule.nodes:
        mind = turn.nodes[name]
        asking_s = turn.now - mind.asking_s
        if mind.asks and asking_s > max(turn.rules.nodes[name].configure_s, DEAF_S):
            return (
                f'deaf: {name} was asked {mind.asks} times in {asking_s:.0f} s and began nothing'
            )
    return ''


def _starting(turn: Turn, rule: ProcessRule) -> bool:
    """Whether a process of the same board is starting: what it imports starves all of them."""
    return any(
        _comes_up(turn, other, turn.processes[other.key])
        for other in turn.rules.processes.values()
        if other.board == rule.board
    )


def _comes_up(turn: Turn, rule: ProcessRule, mind: ProcessMind) -> bool:
    if mind.latched or mind.reboot:
        return False
    if mind.beat is None:
        return turn.now - turn.before.since_s <= rule.respawn_s
    if mind.killing is not None:
        return mind.killing.confirmed and not mind.killing.missed
    nodes = [turn.nodes[name] for name in rule.nodes]
    up = all(node.was_active or node.state == NodeState.ACTIVE for node in nodes)
    return not up and turn.now - mind.began_s <= rule.busy_lease_s
