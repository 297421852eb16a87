# SPDX-License-Identifier: Apache-2.0
"""What the two nodes of the process share: a frame reaches the socket without a topic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from heqis_core.frame import FeatureFrame
from heqis_core.link import MissedReply, MissedRequest


@dataclass(slots=True)
class Hub:
    """Ports between the gateway node and the bridge node; None while the other side is not active.

    Attributes:
        send: set by the bridge: hand one frame to the link; False if no peer took it in time.
        missed: set by the gateway: answer a request for missed frames.
    """

    send: Callable[[FeatureFrame], bool] | None = None
    missed: Callable[[MissedRequest], MissedReply] | None = None
