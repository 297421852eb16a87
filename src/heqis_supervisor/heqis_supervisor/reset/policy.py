# SPDX-License-Identifier: Apache-2.0
"""When a board is rebooted or reset, and what came of it: the upper end of the ladder. Pure.

`judge_resets` is a part of the policy's update. A board whose agent speaks is asked to reboot
itself, a silent one is reset in hardware. Both are begun only within one budget and are done only
when a new boot of the board reports in; what the budget did not cure is latched.
"""

from __future__ import annotations

from dataclasses import replace

from heqis_core.control import Level, Reboot, Result
from heqis_supervisor.facts import Command, Facts, Reset, ResetMind, Resetting
from heqis_supervisor.hearing import Turn
from heqis_supervisor.ladder import Case
from heqis_supervisor.reset.rules import ResetRule

_SAID = {
    False: ('is being reset', 'was reset'),
    True: ('is to be rebooted', 'was told to reboot'),
}


def judge_resets(turn: Turn, facts: Facts) -> None:
    """Judge every board that can be reset, and take answers of drivers and words of people in."""
    for board, rule in turn.rules.resets.items():
        for pulsed in facts.pulsed:
            running = turn.resets[board].running
            if running is not None and pulsed.id == running.id:
                _take_answer(turn, board, rule, pulsed.ok, pulsed.text)
        _take_agents_answer(turn, board, facts)
        _forget_old(turn, board, rule)
        _check_effect(turn, board)
        asked = [ask.reason for ask in facts.asked if ask.board == board]
        _judge(turn, board, rule, asked)


def refusal(rule: ResetRule, mind: ResetMind, now_s: float) -> str:
    """Return why a board must not be reset now; empty if it may be."""
    if mind.latched:
        return f'latched: {mind.latched}; clear it first'
    if mind.running is not None:
        return f'a reset is under way: {mind.running.reason}'
    if _spent(rule, mind):
        return f'{_used(rule, mind)} are used up'
    left_s = cooldown_left_s(rule, mind, now_s)
    return f'cool-down, {left_s:.0f} s are left' if left_s > 0 else ''


def cooldown_left_s(rule: ResetRule, mind: ResetMind, now_s: float) -> float:
    """Return the seconds until the next reset may begin, 0 or less if now."""
    last_s = max(mind.begun_s, default=float('-inf'))
    return last_s + rule.cooldown_ms / 1000 - now_s


def _spent(rule: ResetRule, mind: ResetMind) -> bool:
    return len(mind.begun_s) >= rule.resets_max


def _used(rule: ResetRule, mind: ResetMind) -> str:
    return f'{len(mind.begun_s)} of {rule.resets_max} resets in {rule.window_ms / 1000:g} s'


def _take_answer(turn: Turn, board: str, rule: ResetRule, ok: bool, text: str) -> None:
    mind = turn.resets[board]
    running = mind.running
    assert running is not None
    if not ok:
        turn.set_reset(board, running=None)
        turn.note(Level.ERROR, 'reset_failed', board, text)
        return
    running = replace(running, acted=True, deadline_s=turn.now + rule.boot_ms / 1000)
    if not running.soft:
        turn.note(Level.WARN, 'reset_carried_out', board, text)
    elif not turn.board_heard(board):
        _reboot_failed(turn, board, 'it fell silent before it was told')
        return
    elif rule.real and mind.boot_id == running.boot_before:
        running = replace(running, id=turn.next_id)
        turn.actions.append(Command(board, Reboot(turn.next_id, mind.boot_id)))
        turn.next_id += 1
    turn.set_reset(board, running=running)


def _take_agents_answer(turn: Turn, board: str, facts: Facts) -> None:
    """Take in what became of the order to reboot; a board that reboots may not answer at all."""
    running = turn.resets[board].running
    if running is None or not running.soft:
        return
    problem = 'no agent took the order' if running.id in facts.unsent else ''
    for message in facts.messages:
        if isinstance(message, Result) and message.id == running.id:
            if message.ok:
                turn.note(Level.WARN, 'reset_carried_out', board, message.text)
            else:
                problem = message.text
    if problem:
        _reboot_failed(turn, board, problem)


def _reboot_failed(turn: Turn, board: str, problem: str) -> None:
    turn.set_reset(board, running=None, escalated=True)
    turn.note(Level.ERROR, 'reset_failed', board, f'its agent did not reboot it: {problem}')


def _forget_old(turn: Turn, board: str, rule: ResetRule) -> None:
    oldest_s = turn.now - rule.window_ms / 1000
    begun_s = turn.resets[board].begun_s
    kept = tuple(at_s for at_s in begun_s if at_s > oldest_s)
    if kept != begun_s:
        turn.set_reset(board, begun_s=kept)


def _check_effect(turn: Turn, board: str) -> None:
    mind = turn.resets[board]
    running = mind.running
    if running is None:
        return
    if running.acted and mind.boot_id and mind.boot_id != running.boot_before:
        turn.set_reset(board, running=None)
        text = f'is back with a new boot identity; it was reset because: {running.reason}'
        if not running.boot_before:
            text = 'reports in for the first time, so nobody knows whether the reset booted it'
        turn.note(Level.INFO, 'board_reset', board, text)
    elif turn.now > running.deadline_s:
        turn.set_reset(board, running=None, escalated=running.soft or mind.escalated)
        what = 'no new boot of it reported in' if running.acted else 'its driver gave no answer'
        turn.note(Level.ERROR, 'reset_without_effect', board, f'{what} in time')


def _judge(turn: Turn, board: str, rule: ResetRule, asked: list[str]) -> None:
    mind = turn.resets[board]
    cause, soft = _cause(turn, board, rule)
    idle = mind.running is None and not mind.latched
    if cause and idle and not asked:
        why = _no_more(rule, mind, soft)
        if why:
            _give_up(turn, board, f'{cause} although {why}')
            cause = ''
    for reason in asked:
        _answer(turn, board, rule, f'asked for by a person: {reason}')
    if cause and not asked and not refusal(rule, turn.resets[board], turn.now):
        _begin(turn, board, rule, cause, soft)
    _conclude(turn, board, rule, cause)


def _cause(turn: Turn, board: str, rule: ResetRule) -> tuple[str, bool]:
    """Return why a board should boot anew, empty if it need not, and whether by its own agent."""
    mind = turn.resets[board]
    silent_s = turn.now - mind.heard_s
    # A board that never reported in may not have been installed yet: only a person resets it.
    if mind.boot_id and 0 < rule.reset_after_ms / 1000 < silent_s:
        return f'silent for {silent_s:.0f} s', False
    spent = turn.to_reboot(board)
    if not spent or not mind.boot_id or not turn.board_heard(board):
        return '', False
    cause = f'{spent[0]}: {turn.processes[spent[0]].reboot}'
    return (f'{cause}; no reboot helped', False) if mind.escalated else (cause, True)


def _no_more(rule: ResetRule, mind: ResetMind, soft: bool) -> str:
    """Return why nothing will be done for a board any more; empty if something will."""
    if _spent(rule, mind):
        return f'{_used(rule, mind)} are used up'
    hard = not soft and not rule.reset_after_ms
    return 'only a person may reset it in hardware' if hard else ''


def _give_up(turn: Turn, board: str, text: str) -> None:
    for key in turn.to_reboot(board):
        why = turn.processes[key].reboot
        turn.latch_process(key, f'{why}; board {board} is not reset: {text}')
    turn.set_reset(board, escalated=False)
    if not turn.board_heard(board):
        turn.set_reset(board, latched=text)
        turn.note(Level.ERROR, 'latched', f'board/{board}', text)


def _answer(turn: Turn, board: str, rule: ResetRule, reason: str) -> None:
    why_not = refusal(rule, turn.resets[board], turn.now)
    if why_not:
        turn.note(Level.WARN, 'reset_refused', board, f'{reason}; refused: {why_not}')
    else:
        _begin(turn, board, rule, reason, soft=False)


def _begin(turn: Turn, board: str, rule: ResetRule, reason: str, soft: bool) -> None:
    mind = turn.resets[board]
    deadline_s = turn.now + rule.act_s + rule.boot_ms / 1000
    running = Resetting(turn.next_id, reason, mind.boot_id, deadline_s, soft=soft)
    mind = turn.set_reset(board, begun_s=(*mind.begun_s, turn.now), running=running)
    turn.next_id += 1
    turn.actions.append(Reset(board, running.id, soft))
    kind = 'board_reboot_begun' if soft else 'board_reset_begun'
    how = 'its agent is asked to reboot it' if soft else str(rule)
    turn.note(Level.ERROR, kind, board, f'{reason}; {how}; {_used(rule, mind)}')


def _conclude(turn: Turn, board: str, rule: ResetRule, cause: str) -> None:
    mind = turn.resets[board]
    running = mind.running
    case, reason = Case.BOARD_WELL, ''
    if mind.latched:
        case, reason = Case.BOARD_LATCHED, mind.latched
    elif running is not None:
        case = Case.BOARD_REBOOTS if running.soft else Case.BOARD_RESETS
        before, after = _SAID[running.soft]
        done = after if running.acted else before
        reason = f'{done}, {running.reason}; no new boot of it yet'
    elif cause:
        left_s = cooldown_left_s(rule, mind, turn.now)
        case, reason = Case.BOARD_WAITS, f'{cause}; next reset in {left_s:.0f} s'
    turn.set_reset(board, case=case, reason=reason)
