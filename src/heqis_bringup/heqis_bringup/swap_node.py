# SPDX-License-Identifier: Apache-2.0
"""A caller of the compute node's `swap_bundle`: a plain rclpy node that lives for one call."""

from __future__ import annotations

import os
import time

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from heqis_core.errors import ConfigError
from heqis_msgs.srv import SwapBundle

SPIN_S = 0.1
FIND_S = 20.0
"""Within it a node that runs is found, also one whose process has just been killed."""


def call_swap(node: str, path: str, roll_back: bool, timeout_s: float) -> SwapBundle.Response:
    """Ask the compute node for a swap; return its answer.

    Args:
        node: its full name, such as `/heqis/compute`.
        path: folder of the bundle on its board; empty with `roll_back`.
        roll_back: go back to the bundle before.
        timeout_s: for finding the node (`FIND_S` at most) and for the answer.

    Raises ConfigError if there is no such node, or no answer in time.
    """
    context = rclpy.Context()
    # The words of `heqis` are none of rcl's, and Ctrl-C must end the waiting.
    rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
    caller = rclpy.create_node(
        'swap_caller', context=context, start_parameter_services=False, enable_rosout=False
    )
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(caller)
    deadline_s = time.monotonic() + timeout_s
    try:
        client = caller.create_client(SwapBundle, f'{node}/swap_bundle')
        find_s = min(deadline_s, time.monotonic() + FIND_S)
        while not client.service_is_ready():
            if time.monotonic() > find_s:
                domain = os.environ.get('ROS_DOMAIN_ID', '0')
                raise ConfigError(
                    f'there is no compute node {node} on this machine in ROS domain {domain}; is '
                    'it running, under another name (--node) or in another ROS_DOMAIN_ID? '
                    '`heqis demo` prints the domain that it has taken'
                )
            executor.spin_once(timeout_sec=SPIN_S)
        future = client.call_async(SwapBundle.Request(path=path, roll_back=roll_back))
        while not future.done():
            if time.monotonic() > deadline_s:
                raise ConfigError(
                    f'{node} has not answered within {timeout_s:g} s: it may still swap; look at '
                    'its info in `heqis demo`, at /diagnostics or on the page'
                )
            executor.spin_once(timeout_sec=SPIN_S)
        return future.result()
    finally:
        executor.shutdown()
        caller.destroy_node()
        context.try_shutdown()
