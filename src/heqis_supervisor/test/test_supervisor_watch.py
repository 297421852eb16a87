# SPDX-License-Identifier: Apache-2.0
"""When a silent supervisor is missed: after its lease, once, never for one's own pause."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from heqis_supervisor.supervisor_watch import AWAY_S, LEASE_S, SupervisorWatch

STEP_S = 0.05


def looks(watch: SupervisorWatch, began_s: float, n: int) -> list[bool]:
    return [watch.look(began_s + i * STEP_S) for i in range(n)]


def test_a_supervisor_that_was_never_heard_is_not_missed() -> None:
    watch = SupervisorWatch()
    assert not any(looks(watch, 0.0, 200))
    assert not watch.lost


def test_a_silent_supervisor_is_missed_once_and_is_back_with_its_next_heartbeat() -> None:
    watch = SupervisorWatch()
    watch.heard()
    changes = looks(watch, 0.0, 100)
    assert changes.count(True) == 1
    assert LEASE_S < changes.index(True) * STEP_S <= LEASE_S + 2 * STEP_S
    assert watch.lost
    watch.heard()
    assert watch.look(100 * STEP_S)
    assert not watch.lost


@given(st.lists(st.floats(AWAY_S + 0.01, 1000.0), min_size=1, max_size=20))
def test_time_in_which_the_watcher_was_away_is_nobodys_silence(pauses: list[float]) -> None:
    watch = SupervisorWatch()
    watch.heard()
    now_s = 0.0
    watch.look(now_s)
    for pause in pauses:
        now_s += pause
        assert not watch.look(now_s)


@given(st.lists(st.floats(0.0, 0.75), max_size=50))
def test_heartbeats_within_the_lease_are_never_missed(gaps: list[float]) -> None:
    watch = SupervisorWatch()
    now_s = 0.0
    for gap in gaps:
        watch.heard()
        end_s = now_s + gap
        while now_s < end_s:
            assert not watch.look(now_s)
            now_s = min(now_s + STEP_S, end_s)
    assert not watch.lost
