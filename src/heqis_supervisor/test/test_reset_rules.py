# SPDX-License-Identifier: Apache-2.0
"""A file of resets is checked whole before anything starts, with file, line and field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heqis_core.errors import ConfigError
from heqis_core.io.modbus_map import RtuLink, TcpLink
from heqis_supervisor.reset.rules import CommandReset, DryRun, load_resets

BOARDS = ('gateway', 'compute')
GOOD = """\
version: 1
resets:
- board: compute
  driver: gpio
  chip: /dev/gpiochip1
  line: 17
  active_low: true
  drive: open_drain
"""
HEAD = GOOD[: GOOD.index('gpio')]


def load(tmp_path: Path, text: str):
    path = tmp_path / 'resets.yaml'
    path.write_text(text)
    return load_resets(path, BOARDS, 'gateway')


def test_a_good_file_and_what_its_drivers_say(tmp_path: Path) -> None:
    how = load(tmp_path, GOOD)['compute']
    assert str(how) == 'GPIO line 17 of /dev/gpiochip1 low for 500 ms'
    assert (how.reset_after_ms, how.resets_max, how.real) == (60_000, 3, True)
    assert load(tmp_path, GOOD.replace('17', 'RESET'))['compute'].line == 'RESET'
    tcp = HEAD + 'modbus\n  host: 10.0.0.7\n  coil: 3\n'
    assert load(tmp_path, tcp)['compute'].link == TcpLink('10.0.0.7', 502)
    assert str(load(tmp_path, tcp)['compute']) == (
        'coil 3 of unit 1 at tcp 10.0.0.7:502 on for 500 ms'
    )
    rtu = tcp.replace('host: 10.0.0.7', 'serial: /dev/ttyS3')
    assert load(tmp_path, rtu)['compute'].link == RtuLink('/dev/ttyS3', 19200, 'E', 1, 8)
    command = HEAD + 'command\n  argv: [ipmi, "a b"]\n'
    assert load(tmp_path, command)['compute'] == CommandReset(
        board='compute', argv=('ipmi', 'a b')
    )
    assert str(load(tmp_path, command)['compute']) == "command ipmi 'a b'"
    assert load(tmp_path, HEAD + 'dry_run\n')['compute'] == DryRun(board='compute')


def test_no_file_and_no_boards_mean_no_resets(tmp_path: Path) -> None:
    assert load_resets('', BOARDS, 'gateway') == {}
    assert load(tmp_path, 'version: 1\nresets: []\n') == {}


@pytest.mark.parametrize(
    ('old', 'new', 'line', 'text'),
    [
        ('version: 1', 'version: 2', 1, 'version'),
        ('driver: gpio', 'driver: gpoi', 4, 'gpoi'),
        ('chip: /dev/gpiochip1', 'chop: x', 3, 'chop'),
        ('line: 17', 'line: -1', 6, 'line'),
        ('line: 17', 'line: [17]', 6, 'line'),
        ('  line: 17\n', '', 3, 'line'),
        ('drive: open_drain', 'drive: sideways', 8, 'push_pull'),
        ('line: 17', 'line: 17\n  hold_ms: 0', 7, 'hold_ms'),
        ('line: 17', 'line: 17\n  soft_reboot: 3', 7, 'soft_reboot'),
        ('line: 17', 'line: 17\n  resets_max: 0', 7, 'resets_max'),
        ('line: 17', 'line: 17\n  reset_after_ms: 500', 3, 'an agent counts as silent after'),
        (
            'line: 17',
            'line: 17\n  window_ms: 5000',
            3,
            'cooldown_ms: 60000 is longer than window_ms',
        ),
        (
            'board: compute',
            'board: moon',
            3,
            'moon is not in the rules of the graph; known are: gateway',
        ),
        ('board: compute', 'board: gateway', 3, 'is the board of the supervisor itself'),
        ('driver: gpio', 'driver: {', 5, 'not YAML'),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path, old, new, line, text) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    said = str(caught.value)
    assert re.search(rf'resets\.yaml:({line}|{line + 1}): ', said), said
    assert text in said


def test_a_board_has_one_driver(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'resets.yaml:9: resets: compute is named twice'):
        load(tmp_path, GOOD + GOOD[GOOD.index('- board') :])


def test_a_relay_has_one_way_to_be_reached(tmp_path: Path) -> None:
    both = HEAD + 'modbus\n  host: a\n  serial: /dev/b\n  coil: 1\n'
    with pytest.raises(ConfigError, match='exactly one of host and serial'):
        load(tmp_path, both)


def test_the_shipped_file_resets_nothing_and_its_examples_are_good(tmp_path: Path) -> None:
    paths = [f / 'config' / 'resets.yaml' for f in Path(__file__).resolve().parents]
    shipped = next((path for path in paths if path.is_file()), None)
    if shipped is None:
        pytest.skip('config/resets.yaml is not here: run from the source tree')
    assert load_resets(shipped, BOARDS, 'gateway') == {}
    lines = shipped.read_text().splitlines()
    example = '\n'.join(line[2:] for line in lines if re.match(r'# (- |  )', line))
    found = [f'- board: {text}' for text in example.split('- board: ')[1:]]
    assert len(found) == 3
    for text in found:
        assert list(load(tmp_path, f'version: 1\nresets:\n{text}')) == ['compute']
