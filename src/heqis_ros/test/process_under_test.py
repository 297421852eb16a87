# SPDX-License-Identifier: Apache-2.0
"""Processes that the tests start: `python process_under_test.py KIND [ROS arguments]`."""

from __future__ import annotations

import sys
import time

from heqis_core.errors import LinkError
from heqis_msgs.msg import Event
from heqis_ros import qos
from heqis_ros.node import ManagedNode
from heqis_ros.params import Param, ParamTable
from heqis_ros.process import run_process


class Probe(ManagedNode):
    """Brings itself up; the text of an event on `in` tells it what to do."""

    PARAMS = ParamTable('probe', [Param('level', int, 1, 'A level.', minimum=0, maximum=9)])
    AUTOSTART = True

    def configure(self, params):
        """Make one of everything."""
        self.set_info(f'level {params.level}')
        self.pub = self.publisher(Event, 'out', qos.EVENTS)
        self.subscription(Event, 'in', qos.EVENTS, self.obey)
        self.timer(0.02, self.progress)
        self.worker('loop', self.work)

    def obey(self, msg):
        """Do what the message says."""
        if msg.text == 'block':
            time.sleep(60.0)
        elif msg.text == 'deafen':
            self.deaf = True
            self.set_info('deaf')
        elif msg.text == 'hold':
            self.hold = True
        elif msg.text == 'fault':
            raise LinkError('port 5555 is gone')

    deaf = False

    def work(self, stop):
        """Loop until told to stop, or for ever when deaf."""
        while not stop.wait(0.01) or self.deaf:
            self.count('loops')
            if self.deaf:
                time.sleep(0.01)


class Second(ManagedNode):
    """A node that waits for a supervisor."""

    PARAMS = ParamTable('second', [])


class Broken(ManagedNode):
    """A node that cannot even be made."""

    PARAMS = ParamTable('broken', [])

    def __init__(self):
        """Fail."""
        super().__init__()
        raise RuntimeError('no such device')


class Buggy(ManagedNode):
    """A node whose bug no gate catches."""

    PARAMS = ParamTable('buggy', [])

    def __init__(self):
        """Start a timer behind the back of the base class."""
        super().__init__()
        self.create_timer(0.05, lambda: {}['lost'])


KINDS = {'probe': [Probe], 'pair': [Probe, Second], 'broken': [Broken], 'buggy': [Buggy]}

if __name__ == '__main__':
    sys.exit(run_process(sys.argv[1], KINDS[sys.argv[1]], sys.argv[2:]))
