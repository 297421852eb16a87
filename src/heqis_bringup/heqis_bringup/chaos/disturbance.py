# SPDX-License-Identifier: Apache-2.0
"""The signals by which the bench disturbs a process of `saboteur_node` from within."""

from __future__ import annotations

import signal

SLOW_S = 1.5
"""How long the slow callback takes: half of what makes a process count as hung."""
HOUR_NS = 3_600_000_000_000
SLOW, DEADLOCK, FORWARD, BACK = (int(signal.SIGRTMIN) + n for n in range(1, 5))
"""A slow callback, one without end; the wall clock an hour on, an hour back."""
