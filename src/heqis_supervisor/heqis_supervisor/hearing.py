# SPDX-License-Identifier: Apache-2.0
"""The first half of a policy update: what the agents said becomes what is known.

A `Turn` is the working copy of one update; `policy.py` makes it, lets it hear, and then judges.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

from heqis_core.control import (
    GOAL,
    Beats,
    FromAgent,
    Hello,
    Level,
    NodeBeat,
    NodeState,
    ProcessBeat,
    Result,
)
from heqis_supervisor.facts import Action, Killing, NodeMind, Note, ProcessMind, ResetMind, State
from heqis_supervisor.rules import ProcessRule, Rules

GAP_S = 0.3
"""A supervisor or agent that was away for longer than this: nobody else was silent then."""
AGENT_LEASE_S = 0.8
"""Silence of an agent until its board counts as out of reach: as of a process by default."""
FIND_S = 6.0
"""Time for a new agent to find the processes of its board."""
SETTLE_S = 1.0
"""Within this the heartbeats must show what a transition or a kill is said to have done."""


_Mind = TypeVar('_Mind', NodeMind, ProcessMind, ResetMind)


def _changed(mind: _Mind, changes: dict[str, Any]) -> _Mind:
    # Nearly always nothing changes, and to compare costs a tenth of a new object.
    if all(getattr(mind, name) == value for name, value in changes.items()):
        return mind
    return replace(mind, **changes)


class Turn:
    """One update in the making."""

    def __init__(self, rules: Rules, time_s: float, state: State) -> None:
        self.rules = rules
        self.now = time_s
        self.before = state
        self.boards = dict(state.boards)
        self.agents = dict(state.agents)
        self.processes = dict(state.processes)
        self.nodes = dict(state.nodes)
        self.resets = dict(state.resets)
        self.strangers = set(state.strangers)
        self.next_id = state.next_id
        self.actions: list[Action] = []

    def note(self, level: Level, kind: str, subject: str, text: str) -> None:
        """Add an event."""
        self.actions.append(Note(level, kind, subject, text))

    def set_node(self, name: str, **changes: Any) -> NodeMind:
        """Change what is known of a node."""
        mind = self.nodes[name] = _changed(self.nodes[name], changes)
        return mind

    def set_process(self, key: str, **changes: Any) -> ProcessMind:
        """Change what is known of a process."""
        mind = self.processes[key] = _changed(self.processes[key], changes)
        return mind

    def set_reset(self, board: str, **changes: Any) -> ResetMind:
        """Change what is known of a board that can be reset."""
        mind = self.resets[board] = _changed(self.resets[board], changes)
        return mind

    def board_heard(self, board: str) -> bool:
        """Whether the agent of a board speaks now."""
        return self.now - self.boards.get(board, float('-inf')) <= AGENT_LEASE_S

    def stop_clocks(self) -> None:
        """Count no time for processes that could not have been heard."""
        dt = self.now - self.before.time_s
        for key, rule in self.rules.processes.items():
            away = dt > GAP_S or self.now - self.boards.get(rule.board, self.now) > GAP_S
            if away and self.processes[key].beat is not None:
                self._shift(key, rule, dt)
        for board, mind in self.resets.items() if dt > GAP_S else ():
            running = mind.running
            if running is not None:
                running = replace(running, deadline_s=running.deadline_s + dt)
            self.resets[board] = replace(mind, heard_s=mind.heard_s + dt, running=running)

    def _shift(self, key: str, rule: ProcessRule, dt: float) -> None:
        mind = self.processes[key]
        killing = mind.killing
        if killing is not None:
            killing = replace(killing, deadline_s=killing.deadline_s + dt)
        self.set_process(key, heard_s=mind.heard_s + dt, killing=killing)
        for name in rule.nodes:
            node = self.nodes[name]
            self.set_node(
                name,
                spin_moved_s=node.spin_moved_s + dt,
                progress_moved_s=node.progress_moved_s + dt,
                asking_s=node.asking_s + dt,
            )

    # --- messages ---

    def hear(self, message: FromAgent) -> None:
        """Take one message of an agent in."""
        if message.board in self.rules.boards and not self.board_heard(message.board):
            self.note(Level.INFO, 'agent_up', message.board, 'its agent reports in')
        self.boards[message.board] = self.now
        if message.board in self.resets:
            self.set_reset(message.board, heard_s=self.now)
        if self.agents.get(message.board, (0, 0.0))[0] != message.agent_id:
            self.agents[message.board] = message.agent_id, self.now
        if isinstance(message, Beats):
            for beat in message.beats:
                self._hear_beat(beat, message.agent_id)
        elif isinstance(message, Result):
            self._hear_result(message)
        else:
            assert isinstance(message, Hello)
            self._hear_boot(message.board, message.boot_id)

    def _hear_boot(self, board: str, boot_id: str) -> None:
        mind = self.resets.get(board)
        if mind is None or not boot_id or boot_id == mind.boot_id:
            return
        if mind.boot_id and mind.running is None:
            self.note(Level.WARN, 'board_rebooted', board, 'booted anew; it was not reset by this')
        self.set_reset(board, boot_id=boot_id, escalated=False)
        for key, rule in self.rules.processes.items():
            beat = self.processes[key].beat
            if rule.board == board and beat is not None and beat.boot_id != boot_id:
                self._ended_with_boot(rule, beat)
        for key in self.to_reboot(board):
            self.set_process(key, reboot='', births=(), kills=0, searched=0, retry_s=0.0)

    def _ended_with_boot(self, rule: ProcessRule, beat: ProcessBeat) -> None:
        """Wait for a process of an earlier boot as for one that was killed: it cannot be alive."""
        killing = Killing(0, beat.start_id, self.now + rule.respawn_s, confirmed=True)
        self.set_process(rule.key, trouble='lost: its board booted anew', killing=killing)
        for name in rule.nodes:
            self.set_node(name, running=None, expect=None, asks=0)

    def to_reboot(self, board: str) -> list[str]:
        """Return the processes of a board that only a reboot of it may bring back."""
        here = [key for key, rule in self.rules.processes.items() if rule.board == board]
        return [key for key in here if self.processes[key].reboot]

    def silence(self, rule: ProcessRule, lease_s: float) -> tuple[float, float]:
        """Return for how long a process has been silent, and how long it may be."""
        mind = self.processes[rule.key]
        agent_id, since_s = self.agents[rule.board]
        if mind.seen_by == agent_id:
            return self.now - mind.heard_s, lease_s
        # A new agent hears itself at once, but finds the others only after a while.
        return self.now - max(mind.heard_s, since_s), max(lease_s, FIND_S)

    def _hear_beat(self, beat: ProcessBeat, agent_id: int) -> None:
        key = f'{beat.board}/{beat.process}'
        rule = self.rules.processes.get(key)
        if rule is None:
            if key not in self.strangers and len(self.strangers) < 100:
                self.strangers.add(key)
                text = 'sends heartbeats, but the rules do not name it; it is not watched'
                self.note(Level.WARN, 'unknown_process', key, text)
            return
        mind = self.processes[key]
        if mind.beat is None or mind.beat.start_id != beat.start_id:
            self._new_start(rule, mind, beat)
        elif beat.count <= mind.beat.count:
            return
        restarts = max(self.processes[key].restarts, beat.restarts)
        self.set_process(key, beat=beat, heard_s=self.now, seen_by=agent_id, restarts=restarts)
        for node in beat.nodes:
            name = node.name.rpartition('/')[2]
            if name in rule.nodes:
                self._hear_node(name, node)

    def _new_start(self, rule: ProcessRule, mind: ProcessMind, beat: ProcessBeat) -> None:
        key = rule.key
        if mind.beat is None:
            self.set_process(key, began_s=self.now, searched=0)
        else:
            oldest = self.now - rule.restarts_window_s
            births = (*(born for born in mind.births if born > oldest), self.now)
            after = ', as was asked for' if mind.killing and mind.killing.id else ''
            text = (
                f'runs again as pid {beat.pid}{after}; start {mind.restarts + 1} after the first'
            )
            self.note(Level.WARN, 'process_restarted', key, text)
            self.set_process(
                key,
                began_s=self.now,
                births=births,
                restarts=mind.restarts + 1,
                killing=None,
                kills=0,
                searched=0,
                retry_s=0.0,
                trouble='',
            )
        for name in rule.nodes:
            node = self.nodes[name]
            self.nodes[name] = NodeMind(
                failures=node.failures,
                failure=node.failure,
                retry_s=node.retry_s,
                latched=node.latched,
                since_s=self.now,
            )

    def _hear_node(self, name: str, beat: NodeBeat) -> None:
        mind = self.nodes[name]
        first = not mind.full_name
        moved = first or beat.spin_count != mind.spin_count
        worked = first or beat.progress != mind.progress or beat.pending == 0
        self.set_node(
            name,
            full_name=beat.name,
            spin_count=beat.spin_count,
            spin_moved_s=self.now if moved else mind.spin_moved_s,
            progress=beat.progress,
            progress_moved_s=self.now if worked else mind.progress_moved_s,
            pending=beat.pending,
            info=beat.info,
            degraded=beat.degraded,
        )
        try:
            state = NodeState(beat.state)
        except ValueError:
            state = NodeState.UNKNOWN
        self._hear_state(name, state)

    def _hear_state(self, name: str, state: NodeState) -> None:
        mind = self.nodes[name]
        if mind.expect is not None:
            if state == mind.expect:
                self.set_node(name, expect=None)
            elif self.now < mind.expect_by_s:
                return  # this heartbeat may be older than the answer
            else:
                self.set_node(name, expect=None)
                self.failed(name, f'said to be {mind.expect.name}, but is {state.name}')
        if mind.running is not None and state == GOAL[mind.running.transition]:
            self._done(name)
        if state != self.nodes[name].state:
            self.set_node(name, state=state, since_s=self.now, asks=0)
        mind = self.nodes[name]
        # A finalized node is no failure yet: so ends every process that was told to.
        fallen = state in (NodeState.UNCONFIGURED, NodeState.INACTIVE)
        if not self.rules.nodes[name].managed:
            return
        if mind.was_active and fallen and mind.running is None:
            self.set_node(name, was_active=False, reset=state == NodeState.INACTIVE)
            self.failed(name, f'is {state.name} and was active: {mind.info or "no reason given"}')
        elif state == NodeState.ACTIVE and not mind.was_active:
            self.set_node(name, was_active=True)

    def _hear_result(self, result: Result) -> None:
        for name, mind in self.nodes.items():
            if mind.running is not None and mind.running.id == result.id:
                if result.ok:
                    goal = GOAL[mind.running.transition]
                    by = self.now + SETTLE_S
                    self._done(name)
                    self.set_node(name, state=goal, since_s=self.now, expect=goal, expect_by_s=by)
                else:
                    asked = mind.running.transition.value
                    reset = mind.state == NodeState.INACTIVE
                    self.set_node(name, running=None, asks=0, reset=reset)
                    self.failed(name, f'{asked}: {result.text}')
                return
        for key, process in self.processes.items():
            killing = process.killing
            if killing is not None and killing.id == result.id and not killing.confirmed:
                self._hear_killed(key, result)
                return
            if process.search and process.search == result.id:
                self._hear_searched(key, result)
                return

    def _hear_killed(self, key: str, result: Result) -> None:
        mind = self.processes[key]
        assert mind.killing is not None
        if result.ok:
            deadline = self.now + self.rules.processes[key].respawn_s
            killing = replace(mind.killing, confirmed=True, deadline_s=deadline)
            self.set_process(key, killing=killing)
            kind = 'process_ended' if result.gone else 'killed'
            self.note(Level.WARN, kind, key, f'{mind.trouble}: {result.text}')
        else:
            self.kill_failed(key, result.text)

    def _hear_searched(self, key: str, result: Result) -> None:
        mind, rule = self.processes[key], self.rules.processes[key]
        self.set_process(key, search=0)
        if not result.ok:
            self.note(Level.ERROR, 'kill_failed', key, result.text)
        elif not result.gone:
            searched = mind.searched + 1
            self.set_process(key, searched=searched)
            self.note(Level.WARN, 'killed', key, f'never reported in: {result.text}')
            if searched > rule.restarts_max:
                self.give_up(key, f'{searched} starts in a row never reported in')

    # --- what follows from an answer ---

    def _done(self, name: str) -> None:
        mind = self.nodes[name]
        assert mind.running is not None
        active = GOAL[mind.running.transition] == NodeState.ACTIVE
        self.set_node(name, running=None, asks=0, reset=False, was_active=active)
        if active:
            self.note(Level.INFO, 'node_up', name, 'is active')

    def failed(self, name: str, why: str) -> None:
        """Count a failure of a node: it waits, and after too many it is latched."""
        rule, mind = self.rules.nodes[name], self.nodes[name]
        failures = mind.failures + 1
        wait = min(rule.backoff_s * 2.0 ** min(failures - 1, 30), rule.backoff_max_s)
        text = f'{why} ({mind.info})' if mind.info and mind.info not in why else why
        self.set_node(name, failures=failures, failure=text, retry_s=self.now + wait)
        if failures >= rule.attempts:
            text = f'{text}; given up after {failures} failures in a row'
            self.set_node(name, latched=text)
            self.note(Level.ERROR, 'latched', name, text)
        else:
            text = f'{text}; failure {failures} of {rule.attempts}, next try in {wait:.2g} s'
            self.note(Level.WARN, 'node_failed', name, text)

    def kill_failed(self, key: str, why: str) -> None:
        """Count a kill without effect: it waits, and after too many the process is latched."""
        mind = self.processes[key]
        kills = mind.kills + 1
        self.set_process(key, killing=None, kills=kills, retry_s=self.now + float(min(kills, 5)))
        self.note(Level.ERROR, 'kill_failed', key, why)
        if kills >= 5:
            self.give_up(key, f'cannot be killed: {why}')

    def give_up(self, key: str, why: str) -> None:
        """Kill a process no more: have its board rebooted where that is allowed, or latch it."""
        if self.processes[key].reboot:
            return
        board = self.rules.processes[key].board
        rule = self.rules.resets.get(board)
        if rule is None or not rule.soft_reboot or self.resets[board].latched:
            self.latch_process(key, why)
            return
        self.set_process(key, reboot=why)
        self.note(Level.ERROR, 'process_spent', key, f'{why}; its board is to be rebooted')

    def latch_process(self, key: str, why: str) -> None:
        """Give a process up until a person clears it."""
        self.set_process(key, latched=why, reboot='')
        self.note(Level.ERROR, 'latched', key, why)
