# SPDX-License-Identifier: Apache-2.0
"""The ROS shell that every node shares: managed node, parameter table, named QoS, heartbeat, conversion."""
