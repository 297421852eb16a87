# SPDX-License-Identifier: Apache-2.0
"""Subscriptions that are asked when there is time, by one thread, beside the executor.

Waking an executor for each message costs more than taking many at once. What is not asked for in
time is bounded by the depth of the topic's QoS profile: the oldest go.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import rclpy
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.serialization import deserialize_message

if TYPE_CHECKING:
    from heqis_ros.node import ManagedNode

MOST = 1024
"""Messages that one call takes of one topic: whoever asks also has other things to do."""


class Tray:
    """The messages of one topic that nobody has taken yet."""

    def __init__(self, subscription: Any, msg_type: Any) -> None:
        """Wrap a subscription that no executor serves."""
        self._subscription = subscription
        self._type = msg_type

    def take(self, wanted: Callable[[bytes], bool] | None = None) -> list[Any]:
        """Return what came since the last call, oldest first, at most `MOST`.

        `wanted` is asked with the serialized message: one that is not wanted is not unpacked.
        """
        found = []
        handle = self._subscription.handle
        with handle:
            for _ in range(MOST):
                taken = handle.take_message(self._type, True)
                if taken is None:
                    break
                if wanted is None or wanted(taken[0]):
                    found.append(deserialize_message(taken[0], self._type))
        return found


class Inbox:
    """The trays of one listener, on a node of its own."""

    def __init__(self, owner: ManagedNode, name: str) -> None:
        """Listen as node `name` in the namespace of `owner`; `close` it in the owner's cleanup."""
        self._node = rclpy.create_node(
            name,
            context=owner.context,
            # Its own name even under a global `__node` remap.
            cli_args=['--ros-args', '-r', f'__node:={name}'],
            namespace=owner.get_namespace(),
            start_parameter_services=False,
            enable_rosout=False,
            parameter_overrides=[Parameter('start_type_description_service', value=False)],
        )

    def listen(self, msg_type: Any, topic: str, profile: QoSProfile) -> Tray:
        """Return a new tray for a topic."""
        subscription = self._node.create_subscription(
            msg_type, topic, lambda _: None, profile, raw=True
        )
        return Tray(subscription, msg_type)

    def close(self) -> None:
        """Stop listening."""
        self._node.destroy_node()
