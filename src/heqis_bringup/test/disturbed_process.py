# SPDX-License-Identifier: Apache-2.0
"""A process with one node, started as the bench starts it. Started by `test_chaos.py`.

It prints, ten times a second and from a thread of its own, its spin count and its clock.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from heqis_bringup.chaos import saboteur_node
from heqis_core.testing import free_domain_id
from heqis_ros.node import ManagedNode
from heqis_ros.params import ParamTable
from heqis_ros.process import run_process as real


class Plain(ManagedNode):
    """A node that does nothing."""

    PARAMS = ParamTable('plain', ())

    def __init__(self) -> None:
        super().__init__()
        threading.Thread(target=self._speak, daemon=True).start()

    def _speak(self) -> None:
        while True:
            line = {'spin': self.vitals.spin_count, 'clock_ns': time.time_ns()}
            print(json.dumps(line), flush=True)
            time.sleep(0.1)


def run_process(name: str, classes: Sequence[Callable[[], ManagedNode]], argv: Any) -> int:
    return real(name, classes, argv)


def main() -> int:
    """Run the process."""
    return run_process('plain', [Plain], [])


if __name__ == '__main__':
    os.environ['ROS_DOMAIN_ID'] = str(free_domain_id())
    sys.modules['disturbed_process'] = sys.modules['__main__']
    sys.exit(saboteur_node.main(['disturbed_process']))
