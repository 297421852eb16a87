# SPDX-License-Identifier: Apache-2.0
"""When a board is reset in hardware, and what came of it: the upper end of the ladder. Pure.

`judge_resets` is a part of the policy's update. A reset is begun only within the budget, is done
only when a new boot of the board reports in, and what the budget did not cure is latched.
"""

from __future__ import annotations

from dataclasses import replace

from heqis_core.control import Level
from heqis_supervisor.facts import Facts, Reset, ResetMind, Resetting, Step
from heqis_supervisor.hearing import Turn
from heqis_supervisor.reset.rules import ResetRule


def judge_resets(turn: Turn, facts: Facts) -> None:
    """Judge every board that can be reset, and take answers of drivers and words of people in."""
    for board, rule in turn.rules.resets.items():
        for pulsed in facts.pulsed:
            running = turn.resets[board].running
            if running is not None and pulsed.id == running.id:
                _take_answer(turn, board, rule, pulsed.ok, pulsed.text)
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
    running = turn.resets[board].running
    assert running is not None
    if ok:
        deadline_s = turn.now + rule.boot_ms / 1000
        turn.set_reset(board, running=replace(running, acted=True, deadline_s=deadline_s))
        turn.note(Level.WARN, 'reset_carried_out', board, text)
    else:
        turn.set_reset(board, running=None)
        turn.note(Level.ERROR, 'reset_failed', board, text)


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
        turn.set_reset(board, running=None)
        what = 'no new boot of it reported in' if running.acted else 'its driver gave no answer'
        turn.note(Level.ERROR, 'reset_without_effect', board, f'{what} in time')


def _judge(turn: Turn, board: str, rule: ResetRule, asked: list[str]) -> None:
    mind = turn.resets[board]
    silent_s = turn.now - mind.heard_s
    # A board that never reported in may not have been installed yet: only a person resets it.
    due = bool(mind.boot_id) and 0 < rule.reset_after_ms / 1000 < silent_s
    idle = mind.running is None and not mind.latched
    if due and idle and not asked and _spent(rule, mind):
        text = f'silent for {silent_s:.0f} s although {_used(rule, mind)} are used up'
        turn.set_reset(board, latched=text)
        turn.note(Level.ERROR, 'latched', f'board/{board}', text)
    for reason in asked:
        _answer(turn, board, rule, f'asked for by a person: {reason}')
    if due and not asked and not refusal(rule, turn.resets[board], turn.now):
        _begin(turn, board, rule, f'silent for {silent_s:.0f} s')
    _conclude(turn, board, rule, silent_s if due else 0.0)


def _answer(turn: Turn, board: str, rule: ResetRule, reason: str) -> None:
    why_not = refusal(rule, turn.resets[board], turn.now)
    if why_not:
        turn.note(Level.WARN, 'reset_refused', board, f'{reason}; refused: {why_not}')
    else:
        _begin(turn, board, rule, reason)


def _begin(turn: Turn, board: str, rule: ResetRule, reason: str) -> None:
    mind = turn.resets[board]
    deadline_s = turn.now + rule.act_s + rule.boot_ms / 1000
    running = Resetting(turn.next_id, reason, mind.boot_id, deadline_s)
    mind = turn.set_reset(board, begun_s=(*mind.begun_s, turn.now), running=running)
    turn.next_id += 1
    turn.actions.append(Reset(board, running.id))
    turn.note(Level.ERROR, 'board_reset_begun', board, f'{reason}; {rule}; {_used(rule, mind)}')


def _conclude(turn: Turn, board: str, rule: ResetRule, silent_s: float) -> None:
    mind = turn.resets[board]
    step, reason = Step.NONE, ''
    if mind.latched:
        step, reason = Step.SAFE_LATCH, mind.latched
    elif mind.running is not None:
        done = 'was reset' if mind.running.acted else 'is being reset'
        step, reason = Step.HARD_RESET, f'{done}, {mind.running.reason}; no new boot of it yet'
    elif silent_s:
        left_s = cooldown_left_s(rule, mind, turn.now)
        step, reason = Step.WARN, f'silent for {silent_s:.0f} s; next reset in {left_s:.0f} s'
    turn.set_reset(board, step=step, reason=reason)
