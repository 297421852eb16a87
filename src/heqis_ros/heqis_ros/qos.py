# SPDX-License-Identifier: Apache-2.0
"""The named QoS profiles of the HEQIS topics: what each topic promises, said once.

Nothing here is ever TRANSIENT_LOCAL: a late reader of signals would act on them a second time, and
history belongs to the journal. RELIABLE with KEEP_LAST does not block the publisher: whoever must
not lose anything counts `seq` and asks again.
"""

from __future__ import annotations

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

__all__ = [
    'BARS',
    'COMMITTED',
    'DECISIONS',
    'DIAGNOSTICS',
    'EVENTS',
    'FRAMES',
    'HEARTBEAT',
    'PREDICTIONS',
    'PROFILES',
    'SIGNALS',
    'best_effort',
]


def _profile(
    depth: int, reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE
) -> QoSProfile:
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
        reliability=reliability,
        durability=DurabilityPolicy.VOLATILE,
    )


def best_effort(profile: QoSProfile) -> QoSProfile:
    """Return the profile of a reader that only looks on: no writer ever waits for it."""
    return _profile(profile.depth, ReliabilityPolicy.BEST_EFFORT)


# One frame of 5400 symbols is about 1 MB and writer and reader each keep `depth` of them: the
# depth must cover the frames in flight, not more.
FRAMES = _profile(64)
"""`features`: at least as deep as the gateway's `max_in_flight`."""
BARS = _profile(64)
"""`bars`."""
PREDICTIONS = _profile(64)
"""`predictions`: one message for each frame."""
DECISIONS = _profile(256)
"""`decisions/proposed` and `decisions`: all open frames may be proposed again at once."""
SIGNALS = _profile(256)
"""`signals`."""
COMMITTED = _profile(256)
"""`committed`: a lost one only delays the flow control until the frame is sent again."""
EVENTS = _profile(256)
"""`events`."""
# A heartbeat that had to be sent again would be late news; several processes share the depth.
HEARTBEAT = _profile(32, ReliabilityPolicy.BEST_EFFORT)
"""`heartbeat`."""
DIAGNOSTICS = _profile(10)
"""`/diagnostics`."""

PROFILES = {
    'bars': BARS,
    'committed': COMMITTED,
    'decisions': DECISIONS,
    'diagnostics': DIAGNOSTICS,
    'events': EVENTS,
    'frames': FRAMES,
    'heartbeat': HEARTBEAT,
    'predictions': PREDICTIONS,
    'signals': SIGNALS,
}
"""Every profile by its lower-case name."""
