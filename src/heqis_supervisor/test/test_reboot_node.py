# SPDX-License-Identifier: Apache-2.0
"""A real supervisor has a real agent reboot its board by a command, and sees the new boot."""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.graph
UP_S = 40.0
HERE = Path(__file__).parent
RESETS = """\
version: 1
resets:
- board: compute
  driver: command
  argv: ["false"]
  soft_reboot: true
"""


def test_a_process_that_no_kill_brings_back_has_its_board_rebooted(real_graph) -> None:
    folder = real_graph.folder
    identity, resets = folder / 'boot_id', folder / 'resets.yaml'
    identity.write_text('first')
    resets.write_text(RESETS)
    # One start after the first is allowed.
    rules = real_graph.rules.read_text()
    real_graph.rules.write_text(rules.replace('brain:', 'brain:\n      restarts_max: 1'))
    real_graph.params['supervisor'] = {'resets': resets, 'state_dir': folder / 'state'}
    command = [sys.executable, str(HERE / 'reboot_board.py'), str(identity), 'compute']
    real_graph.params['compute_agent'] = {'reboot_command': shlex.join(command)}
    for name in ('brain', 'compute_agent'):
        board, words = real_graph.commands[name]
        real_graph.commands[name] = (board, [str(HERE / 'fake_board.py'), str(identity), *words])

    def kinds() -> list[str]:
        return [f'{event.kind} {event.subject}' for event in real_graph.events]

    def value(key: str) -> str | None:
        return real_graph.values('board/compute').get(key)

    def restarts() -> str | None:
        return real_graph.values('process/compute/brain').get('restarts')

    real_graph.start('supervisor', 'gateway_agent', 'compute_agent', 'store', 'brain')
    real_graph.until(lambda: real_graph.well() and len(real_graph.beats) == 5, UP_S, 'all is well')
    real_graph.until(lambda: value('boot_id') == 'first', UP_S, 'its boot identity')
    store = real_graph.beats['gateway/store'].start_id
    real_graph.signal('brain', signal.SIGKILL)
    real_graph.until(lambda: restarts() == '1' and real_graph.well(), UP_S, 'the second start')
    real_graph.signal('brain', signal.SIGKILL)
    real_graph.until(lambda: 'board_reboot_begun compute' in kinds(), UP_S, 'the order')
    real_graph.until(lambda: 'board_reset compute' in kinds(), UP_S, 'a new boot')
    assert identity.read_text() == 'first+', 'booted once'
    real_graph.until(real_graph.well, UP_S, 'all is well again')
    assert (value('boot_id'), value('resets')) == ('first+', '1 of 3')
    assert real_graph.beats['gateway/store'].start_id == store, 'the other board was not touched'
    assert not [kind for kind in kinds() if kind.startswith(('latched', 'kill_failed'))]
