# SPDX-License-Identifier: Apache-2.0
"""A process that the tests start: `python fake_process.py PROCESS NODE[,NODE…] [ROS arguments]`.

Its nodes are managed nodes that do nothing, until an event on `in` whose subject is their name
tells them what: block (the executor), fault, work (input waits and nothing is done).
"""

from __future__ import annotations

import functools
import os
import sys
import time

from heqis_core.errors import LinkError
from heqis_msgs.msg import Event
from heqis_ros import qos
from heqis_ros.node import ManagedNode
from heqis_ros.params import ParamTable
from heqis_ros.process import run_process


class Fake(ManagedNode):
    """A node that does what it is told."""

    PARAMS = ParamTable('fake', [])

    def configure(self, params):
        """Refuse if the environment says so."""
        refusals = os.environ.get('FAKE_REFUSALS', '')
        if refusals and self.get_name() in refusals.split(','):
            raise LinkError('port 5555 is taken')
        self.subscription(Event, 'in', qos.EVENTS, self.obey)

    def obey(self, message):
        """Do what the message says."""
        if message.subject != self.get_name():
            return
        if message.text == 'block':
            time.sleep(120.0)
        elif message.text == 'fault':
            raise LinkError('told to fail')
        elif message.text == 'work':
            self.set_pending(3)


if __name__ == '__main__':
    nodes = [functools.partial(Fake, name) for name in sys.argv[2].split(',')]
    sys.exit(run_process(sys.argv[1], nodes, sys.argv[3:]))
