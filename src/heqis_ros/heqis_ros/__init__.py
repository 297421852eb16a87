# SPDX-License-Identifier: Apache-2.0
"""The ROS shell of every node: managed node, parameter table, named QoS, heartbeat, conversion."""
