# SPDX-License-Identifier: Apache-2.0
"""Worker threads: started, stopped, reported."""

from __future__ import annotations

import sys
import threading
import time

from heqis_core.testing import wait_until
from heqis_ros import worker
from heqis_ros.worker import Workers


def collect():
    failures = []
    return failures, Workers('/node', lambda name, error: failures.append((name, repr(error))))


def test_workers_start_and_stop_together_and_again():
    failures, workers = collect()
    laps = {'a': 0, 'b': 0}

    def loop(name):
        def run(stop):
            while not stop.wait(0.001):
                laps[name] += 1

        return run

    workers.add('a', loop('a'))
    workers.add('b', loop('b'))
    for _ in range(2):
        seen = dict(laps)
        workers.start()
        assert workers.alive() == ['a', 'b']
        wait_until(lambda seen=seen: all(laps[n] > seen[n] for n in laps), 5.0)
        assert workers.stop() == []
        assert workers.alive() == []
    assert failures == []


def test_a_failure_is_told_from_its_thread_and_ends_only_that_worker():
    failures, workers = collect()
    workers.add('bad', lambda stop: [][1])
    workers.add('good', lambda stop: stop.wait())
    workers.start()
    wait_until(lambda: bool(failures), 5.0)
    assert failures == [('bad', "IndexError('list index out of range')")]
    wait_until(lambda: workers.alive() == ['good'], 5.0)
    assert workers.stop() == []


def test_even_an_exit_is_told():
    failures, workers = collect()
    workers.add('quitter', lambda stop: sys.exit(3))
    workers.start()
    wait_until(lambda: failures == [('quitter', 'SystemExit(3)')], 5.0)


def test_all_workers_share_the_deadline_and_the_deaf_are_named(monkeypatch):
    monkeypatch.setattr(worker, 'JOIN_S', 0.2)
    _, workers = collect()
    release = threading.Event()
    for name in ('deaf1', 'deaf2', 'deaf3'):
        workers.add(name, lambda stop: release.wait(20.0))
    workers.add('good', lambda stop: stop.wait())
    workers.start()
    start = time.monotonic()
    assert workers.stop() == ['deaf1', 'deaf2', 'deaf3']
    assert time.monotonic() - start < 1.0
    release.set()
    wait_until(lambda: not workers.alive(), 5.0)


def test_a_removed_worker_does_not_start_again():
    _, workers = collect()
    workers.add('a', lambda stop: stop.wait())
    workers.remove('a')
    workers.start()
    assert workers.alive() == []
