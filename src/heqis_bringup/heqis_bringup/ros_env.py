# SPDX-License-Identifier: Apache-2.0
"""What a command sets before it imports rclpy, so that it finds the graph of this machine."""

from __future__ import annotations

import os

from heqis_bringup.ament import find_share


def join_local_graph() -> None:
    """Set what launch/*.yaml sets for its nodes, where the environment says nothing else."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
    profile = find_share('heqis_bringup') / 'config' / 'fastdds.xml'
    os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(profile))
