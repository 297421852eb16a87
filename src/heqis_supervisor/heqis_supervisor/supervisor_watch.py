# SPDX-License-Identifier: Apache-2.0
"""Whether the supervisor is still heard: the one process that cannot report itself. Pure."""

from __future__ import annotations

LEASE_S = 0.8
"""Silence of the supervisor until it is missed: as of a process by default."""
AWAY_S = 0.3
"""Whoever looks more seldom than this was away itself: then nobody else was silent."""


class SupervisorWatch:
    """Hears the supervisor's heartbeats, and knows when they are missed.

    Attributes:
        lost: whether it is missed now; never before it was heard for the first time.
        silent_s: for how long it has been silent, as of the last look.
    """

    def __init__(self) -> None:
        """Begin without having heard anything."""
        self.lost = False
        self.silent_s = 0.0
        self._heard = False
        self._looked_s: float | None = None

    def heard(self) -> None:
        """Take a heartbeat of it."""
        self._heard = True
        self.silent_s = 0.0

    def look(self, now_s: float) -> bool:
        """Count the time since the last look, monotonic; return whether `lost` has changed."""
        passed_s = 0.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        if passed_s <= AWAY_S:
            self.silent_s += passed_s
        lost = self._heard and self.silent_s > LEASE_S
        changed, self.lost = lost != self.lost, lost
        return changed
