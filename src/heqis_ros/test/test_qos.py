# SPDX-License-Identifier: Apache-2.0
"""The named QoS profiles: what the rest of the project relies on."""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, ReliabilityPolicy

from heqis_ros import qos


def test_every_name_of_the_graph_has_a_profile():
    names = 'frames decisions signals heartbeat events bars predictions committed diagnostics'
    assert set(qos.PROFILES) == set(names.split())
    for name, profile in qos.PROFILES.items():
        assert getattr(qos, name.upper()) is profile


def test_nothing_is_delivered_to_late_joiners_and_every_queue_is_bounded():
    for name, profile in qos.PROFILES.items():
        assert profile.durability == DurabilityPolicy.VOLATILE, name
        assert profile.history == HistoryPolicy.KEEP_LAST, name
        assert 1 <= profile.depth <= 1024, name


def test_only_heartbeats_may_get_lost_on_the_way():
    lossy = [
        name
        for name, profile in qos.PROFILES.items()
        if profile.reliability != ReliabilityPolicy.RELIABLE
    ]
    assert lossy == ['heartbeat']


def test_who_only_looks_on_keeps_the_depth_and_lets_no_writer_wait():
    for name, profile in qos.PROFILES.items():
        lossy = qos.best_effort(profile)
        assert lossy.reliability == ReliabilityPolicy.BEST_EFFORT, name
        assert (lossy.depth, lossy.history) == (profile.depth, profile.history), name
        assert lossy.durability == DurabilityPolicy.VOLATILE, name
    assert qos.BARS.reliability == ReliabilityPolicy.RELIABLE  # its own profile stays as it is
