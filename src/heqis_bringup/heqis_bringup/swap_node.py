# SPDX-License-Identifier: Apache-2.0
"""A caller of the compute node's `swap_bundle`: a plain rclpy node that lives for one call."""

from __future__ import annotations

from heqis_bringup.caller_node import caller, domain
from heqis_core.errors import ConfigError
from heqis_msgs.srv import SwapBundle


def call_swap(node: str, path: str, roll_back: bool, timeout_s: float) -> SwapBundle.Response:
    """Ask the compute node for a swap; return its answer.

    Args:
        node: its full name, such as `/heqis/compute`.
        path: folder of the bundle on its board; empty with `roll_back`.
        roll_back: go back to the bundle before.
        timeout_s: for finding the node (`FIND_S` at most) and for the answer.

    Raises ConfigError if there is no such node, or no answer in time.
    """
    request = SwapBundle.Request(path=path, roll_back=roll_back)
    with caller('swap_caller', timeout_s) as calling:
        found, answer = calling.find_and_call(SwapBundle, f'{node}/swap_bundle', request)
    if not found:
        raise ConfigError(
            f'there is no compute node {node} on this machine in ROS domain {domain()}; is it '
            'running, under another name (--node) or in another ROS_DOMAIN_ID? `heqis demo` '
            'prints the domain that it has taken'
        )
    if answer is None:
        raise ConfigError(
            f'{node} has not answered within {timeout_s:g} s: it may still swap; look at its '
            'info in `heqis demo`, at /diagnostics or on the page'
        )
    return answer
