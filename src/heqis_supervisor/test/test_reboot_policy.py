# SPDX-License-Identifier: Apache-2.0
"""A board whose processes no kill brings back is rebooted by its agent, then reset, then left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heqis_core.control import Kill, Level, Reboot
from heqis_supervisor.facts import Pulsed
from heqis_supervisor.health import report
from heqis_supervisor.ladder import Step
from heqis_supervisor.policy import latched
from heqis_supervisor.reset.ledger import Uptime, decode, encode
from heqis_supervisor.reset.rules import CommandReset, DryRun

KEY = 'compute/compute'
WHEN = {
    'board': 'compute',
    'reset_after_ms': 10_000,
    'boot_ms': 20_000,
    'resets_max': 3,
    'window_ms': 3_600_000,
    'cooldown_ms': 30_000,
    'soft_reboot': True,
}


def with_resets(world, how=CommandReset, **changes):
    how_to = {} if how is DryRun else {'argv': ('true',)}
    rule = how(**{**WHEN, **how_to, **changes})
    world.rules = replace(world.rules, resets={'compute': rule})
    return world


@pytest.fixture
def world(make_world):
    """Return a graph that is up, on a board that may be rebooted and reset."""
    world = with_resets(make_world())
    world.run_until(world.all_active, 10)
    world.run(1)
    world.commands.clear()
    world.notes.clear()
    return world


def spend(world) -> None:
    """Let a process end again and again until no kill is made any more."""
    process, births = world.processes[KEY], world.rules.processes[KEY].restarts_max + 1
    for _ in range(births):
        world.run_until(lambda: process.alive, 10)
        world.run(0.3)
        world.die(KEY)
    mind = lambda: world.state.processes[KEY]  # noqa: E731
    world.run_until(lambda: bool(mind().reboot or mind().latched), 10)


def orders(world) -> list[Reboot]:
    return [c.message for _, c in world.commands if isinstance(c.message, Reboot)]


def board(world):
    return world.state.resets['compute']


def health(world, name):
    return next(part for part in report(world.rules, world.state) if part.name == name)


def test_the_agent_reboots_its_board_and_only_a_new_boot_ends_it(world) -> None:
    world.heals = {'compute': {'soft'}}
    spend(world)
    world.run_until(lambda: orders(world) != [], 1)
    assert orders(world)[0].boot_id == 'b'
    assert (board(world).step, world.state.processes[KEY].step) == (Step.SOFT_REBOOT,) * 2
    assert world.state.nodes['compute'].step == Step.SOFT_REBOOT
    assert health(world, 'node/compute').level == Level.ERROR
    world.run_until(lambda: 'board_reset' in world.kinds(), 10)
    world.run_until(world.all_active, 30)
    world.run(60)
    assert [reset.soft for _, reset in world.resets] == [True]
    assert len(orders(world)) == 1
    wanted = ['process_spent', 'board_reboot_begun', 'reset_carried_out', 'board_reset']
    assert [kind for kind in world.kinds() if kind in wanted] == wanted
    assert board(world).step == Step.NONE
    assert not {'latched', 'kill_failed', 'process_back'} & set(world.kinds())
    begun = next(note for note in world.notes if note.kind == 'board_reboot_begun')
    assert '9 starts within 120 s' in begun.text
    assert 'its agent is asked to reboot it; 1 of 3 resets in 3600 s' in begun.text


def test_nothing_on_the_other_board_is_touched(world) -> None:
    world.heals = {'compute': {'soft'}}
    starts = {k: p.start_id for k, p in world.processes.items() if k.startswith('gateway/')}
    spend(world)
    world.run(60)
    assert starts == {k: world.processes[k].start_id for k in starts}
    assert {c.board for _, c in world.commands} == {'compute'}


def test_a_reboot_without_effect_is_followed_by_a_reset_in_hardware(world) -> None:
    world.heals = {'compute': {'hard'}}
    spend(world)
    world.run_until(lambda: 'reset_without_effect' in world.kinds(), 25)
    assert board(world).step == Step.WARN
    assert 'no reboot helped; next reset in' in board(world).reason
    world.run_until(lambda: len(world.resets) == 2, 15)
    (soft_s, _), (hard_s, hard) = world.resets
    assert not hard.soft
    assert hard_s - soft_s >= 30
    assert board(world).step == Step.HARD_RESET
    world.run_until(world.all_active, 30)
    assert (board(world).escalated, world.state.processes[KEY].reboot) == (False, '')


@pytest.mark.parametrize('refused', ['by the agent', 'nobody took it'])
def test_an_order_that_is_refused_or_not_taken_counts_and_goes_one_step_up(world, refused) -> None:
    world.refuse_reboot = True
    if refused == 'nobody took it':
        reset = world._reset

        def cut_first(action) -> None:
            reset(action)
            world.cut.add('compute')

        world._reset = cut_first
    spend(world)
    world.run_until(lambda: 'reset_failed' in world.kinds(), 3)
    failed = next(note for note in world.notes if note.kind == 'reset_failed')
    assert failed.text.startswith('its agent did not reboot it: ')
    world._reset = type(world)._reset.__get__(world)
    world.cut.clear()
    world.run_until(lambda: len(world.resets) == 2, 40)
    assert [reset.soft for _, reset in world.resets] == [True, False]


def test_what_the_budget_did_not_cure_is_latched_until_a_person_says_so(world) -> None:
    spend(world)
    world.run_until(lambda: bool(world.state.processes[KEY].latched), 300)
    assert [reset.soft for _, reset in world.resets] == [True, False, False]
    assert 'board compute is not reset' in world.state.processes[KEY].latched
    assert '3 of 3 resets in 3600 s are used up' in world.state.processes[KEY].latched
    assert latched(world.state) == (KEY,)
    assert health(world, f'process/{KEY}').values['step'] == 'SAFE_LATCH'
    world.commands.clear()
    world.run(200)
    assert (len(world.resets), world.commands) == (3, [])
    world.cleared = (KEY,)
    world.run_until(world.all_active, 20)
    spend(world)
    world.run(5)
    assert len(world.resets) == 3, 'a clear does not refill the budget'
    assert world.state.processes[KEY].latched


def test_where_only_a_person_resets_a_reboot_without_effect_ends_in_a_latch(make_world) -> None:
    world = with_resets(make_world(), reset_after_ms=0)
    world.run_until(world.all_active, 10)
    spend(world)
    world.run_until(lambda: bool(world.state.processes[KEY].latched), 60)
    assert [reset.soft for _, reset in world.resets] == [True]
    assert 'only a person may reset it in hardware' in world.state.processes[KEY].latched


def test_without_soft_reboot_a_process_is_latched_and_its_board_stays(make_world) -> None:
    world = with_resets(make_world(), soft_reboot=False)
    world.run_until(world.all_active, 10)
    spend(world)
    world.run(100)
    assert world.state.processes[KEY].latched
    assert world.resets == []


def test_a_board_that_falls_silent_while_it_reboots_is_reset_after_that(world) -> None:
    spend(world)
    world.run_until(lambda: orders(world) != [], 1)
    world.cut.add('compute')
    world.run_until(lambda: len(world.resets) == 2, 40)
    assert 'reset_without_effect' in world.kinds()
    begun = [note.text for note in world.notes if note.kind == 'board_reset_begun']
    assert begun[0].startswith('silent for ')


def test_a_person_clears_a_process_before_its_board_is_rebooted(make_world) -> None:
    world = with_resets(make_world(), resets_max=100)
    world.run_until(world.all_active, 10)
    spend(world)
    world.run(1)
    world.cleared = (KEY,)
    world.run_until(world.all_active, 10)
    assert latched(world.state) == ()


def test_a_dry_run_sends_no_order_and_goes_all_the_way(make_world) -> None:
    world = with_resets(make_world(), DryRun)
    world.run_until(world.all_active, 10)
    spend(world)
    world.run_until(lambda: bool(world.state.processes[KEY].latched), 300)
    assert len(world.resets) == 3
    assert orders(world) == []


def test_a_boot_in_between_makes_the_order_needless(world) -> None:
    spend(world)
    world.run_until(lambda: len(world.resets) == 1, 1)
    world.boot('compute')
    world._pulsed.clear()
    world.run(6)
    world._pulsed.append(Pulsed(world.resets[0][1].id, True, 'late'))
    world.run_until(world.all_active, 30)
    assert orders(world) == []
    assert not board(world).escalated


def test_processes_of_an_earlier_boot_are_gone_and_not_killed(world) -> None:
    """A board takes longer to start its processes than five kills take to fail."""
    world.respawn_s = 40.0
    world.boot('compute')
    world.run_until(lambda: 'board_rebooted' in world.kinds(), 10)
    assert health(world, 'node/compute').level == Level.ERROR
    world.run_until(world.all_active, 80)
    assert [c for _, c in world.commands if isinstance(c.message, Kill)] == []
    assert not {'latched', 'kill_failed', 'process_back'} & set(world.kinds())


def test_the_record_knows_what_kind_was_under_way_and_that_no_reboot_helped(world) -> None:
    spend(world)
    world.run_until(lambda: orders(world) != [], 1)
    here = Uptime('boot of the gateway', 1000.0)

    def reread():
        data = encode(world.state.resets, world.now, here)
        return decode(data, world.rules.resets, world.now, here)['compute']

    assert reread().running.soft
    world.run_until(lambda: board(world).escalated, 25)
    assert reread().escalated
    assert reread().running is None
    old = b'{"version": 1, "boot_id": "x", "up_s": 1, "boards": {"compute": {"boot_id": "b", '
    old += b'"ages_s": [], "latched": "", "running": {"reason": "r", "boot_before": "b"}}}}'
    assert not decode(old, world.rules.resets, world.now, here)['compute'].running.soft
