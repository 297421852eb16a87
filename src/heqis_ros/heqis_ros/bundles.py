# SPDX-License-Identifier: Apache-2.0
"""The one way by which a node takes a bundle: verified whole, and a refusal is an event as well.

The supervisor tells of a node that is refused to be configured; this event also comes without it.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rclpy.exceptions import InvalidHandle

from heqis_core.bundle import Bundle, manifest_check
from heqis_core.control import Event, Level
from heqis_core.errors import HeqisError
from heqis_core.io.ort_engine import OrtEngine
from heqis_msgs.msg import Event as EventMsg
from heqis_ros import qos
from heqis_ros.convert_health import event_to_msg
from heqis_ros.ports import RCLError, one_line

if TYPE_CHECKING:
    from heqis_ros.node import ManagedNode


class BundleDoor:
    """Opens bundles for a node that is not ACTIVE yet, so its publisher has no gate."""

    def __init__(self, node: ManagedNode) -> None:
        """Make the publisher as early as the node: those who listen must have found it."""
        self._node = node
        self._events = node.create_publisher(EventMsg, 'events', qos.EVENTS)

    def open(self, path: str, trusted_keys: str) -> Bundle:
        """Return the bundle with hashes, signature and golden outputs checked.

        `trusted_keys` is the folder of public keys, read anew each time, so that a key that was
        revoked is refused from then on; where it is empty, no signature is asked for. Raises
        BundleError or ConfigError after the event `bundle_refused`.
        """
        try:
            bundle = Bundle.load(path, manifest_check(trusted_keys))
            bundle.verify_golden(OrtEngine)
        except HeqisError as error:
            self._refuse(path, one_line(error))
            raise
        return bundle

    def _refuse(self, path: str, text: str) -> None:
        source = self._node.get_fully_qualified_name()
        event = Event(time.time_ns(), Level.ERROR, source, 'bundle_refused', path, text)
        # The refusal itself must reach the caller, whatever DDS says.
        with contextlib.suppress(RCLError, InvalidHandle):
            self._events.publish(event_to_msg(event))
