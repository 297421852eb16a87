# SPDX-License-Identifier: Apache-2.0
"""What all tests share: how Hypothesis searches, and that DDS stays on this machine."""

from __future__ import annotations

import os

from hypothesis import settings

# Machines that run tests are loaded: a limit belongs to the whole test (pytest-timeout).
settings.register_profile('workstation', deadline=None, print_blob=True)
# The same examples in each run: no change fails for an example that it has nothing to do with.
settings.register_profile('ci', deadline=None, print_blob=True, derandomize=True)
settings.load_profile('ci' if os.environ.get('CI') else 'workstation')

os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('FASTDDS_BUILTIN_TRANSPORTS', 'UDPv4')
