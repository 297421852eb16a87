# SPDX-License-Identifier: Apache-2.0
"""Identities and counters, also under many threads."""

from __future__ import annotations

import subprocess
import sys
import threading

from heqis_msgs.msg import NodeStatus
from heqis_ros import vitals
from heqis_ros.vitals import Vitals


def test_each_start_has_its_own_identity():
    code = 'from heqis_ros import vitals; print(vitals.START_ID)'
    ids = {
        int(subprocess.run([sys.executable, '-c', code], capture_output=True, check=True).stdout)
        for _ in range(3)
    } | {vitals.START_ID}
    assert len(ids) == 4
    assert all(0 < each < 2**63 for each in ids)


def test_the_board_comes_from_the_environment(monkeypatch):
    monkeypatch.delenv('HEQIS_BOARD', raising=False)
    assert vitals.board() == 'local'
    monkeypatch.setenv('HEQIS_BOARD', 'compute')
    assert vitals.board() == 'compute'


def test_counts_from_many_threads_add_up():
    node = Vitals()

    def work():
        for _ in range(2000):
            node.count('a')
            node.add_progress(2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert node.counters() == {'a': 8000}
    assert node.progress == 16000


def test_status_message_carries_everything():
    node = Vitals()
    node.count('drops', 3)
    node.set_counter('open', 5)
    node.set_counter('open', 4)
    node.set_stage('infer', 812.7)
    node.pending = 7
    node.spin_count = 9
    node.info = 'engine onnxruntime'
    status = NodeStatus()
    node.fill(status)
    assert list(zip(status.counter_names, status.counter_values, strict=True)) == [
        ('drops', 3),
        ('open', 4),
    ]
    assert (status.stage_names, list(status.stage_last_us)) == (['infer'], [812])
    assert (status.pending, status.spin_count, status.progress) == (7, 9, 0)
    assert status.info == 'engine onnxruntime'
    node.failure = 'x' * 1000
    node.fill(status)
    assert status.info == 'x' * vitals.MAX_INFO


def test_values_that_a_message_cannot_hold_are_clipped_not_raised():
    node = Vitals()
    node.set_counter('negative', -1)
    node.set_stage('backwards', -5.0)
    node.set_counter('huge', 2**70)
    node.pending = 2**40
    status = NodeStatus()
    node.fill(status)
    assert list(status.counter_values) == [0, 2**64 - 1]
    assert list(status.stage_last_us) == [0]
    assert status.pending == 2**32 - 1
