# SPDX-License-Identifier: Apache-2.0
"""The kill switch without ROS: who engages it, what lifts it, and what a file can be."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from heqis_supervisor.kill_switch import (
    MAX_REASON,
    KillSwitch,
    Origin,
    Word,
    decode_word,
    encode_word,
    one_reason,
    reason_in_file,
)

REASONS = st.sampled_from(['smoke', 'fire', 'no reason given'])


class SwitchMachine(RuleBasedStateMachine):
    """A person with a file and one with the service, restarts in between."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.file = Path(self.folder.name) / 'KILL'
        self.now_ns = 1_600_000_000_000_000_000
        self.wanted: dict[Origin, str | None] = dict.fromkeys(Origin)
        self.since: dict[Origin, int] = {}
        self.told = 0
        self.switch = self.start({})

    def start(self, kept: dict[Origin, Word]) -> KillSwitch:
        return KillSwitch(self.file, kept, lambda: self.now_ns)

    def want(self, origin: Origin, reason: str | None) -> None:
        if origin == Origin.FILE:
            self.told += reason != self.wanted[origin]
        if self.wanted[origin] is None:
            self.since[origin] = self.now_ns
        self.wanted[origin] = reason

    @rule(reason=REASONS)
    def make_the_file(self, reason: str) -> None:
        self.now_ns += 1_000_000_000
        self.file.write_text('' if reason == 'no reason given' else f'{reason}\nmore')
        self.want(Origin.FILE, reason)

    @precondition(lambda self: self.file.exists())
    @rule()
    def remove_the_file(self) -> None:
        self.file.unlink()
        self.want(Origin.FILE, None)

    @rule(reason=st.none() | REASONS)
    def call_the_service(self, reason: str | None) -> None:
        self.now_ns += 1_000_000_000
        self.want(Origin.SERVICE, reason)
        self.switch.say(Origin.SERVICE, reason)

    @rule()
    def start_again(self) -> None:
        kept = {o: decode_word(encode_word(self.switch.word(o)), 0) for o in Origin}
        self.told -= len(self.switch.changes)
        self.switch = self.start(kept)

    @invariant()
    def it_is_engaged_while_one_of_them_says_so(self) -> None:
        engaged = {origin for origin, reason in self.wanted.items() if reason is not None}
        assert self.switch.look() == bool(engaged)
        assert set(self.switch.origins()) == engaged
        for origin in engaged:
            word = self.switch.word(origin)
            assert (word.reason, word.stamp_ns) == (self.wanted[origin], self.since[origin])
            assert str(word.reason) in self.switch.text()
        if not engaged:
            assert self.switch.text() == 'not engaged'
        assert len(self.switch.changes) == self.told, 'each change of the file is told once'

    def teardown(self) -> None:
        self.folder.cleanup()


TestSwitch = SwitchMachine.TestCase
TestSwitch.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_the_text_names_every_origin_with_its_time_and_reason(tmp_path: Path) -> None:
    (tmp_path / 'KILL').write_text('by hand')
    switch = KillSwitch(tmp_path / 'KILL', {}, lambda: 1_600_000_000_000_000_000)
    switch.say(Origin.SERVICE, 'smoke')
    assert switch.look()
    assert switch.text() == (
        'engaged by service since 2020-09-13 12:26:40 UTC: smoke; '
        f'by file {tmp_path}/KILL since 2020-09-13 12:26:40 UTC: by hand'
    )


def test_a_file_that_is_named_no_more_is_lifted_and_told() -> None:
    kept = {Origin.FILE: Word(True, 'by hand', 5)}
    switch = KillSwitch(None, kept, lambda: 7)
    assert not switch.look()
    assert list(switch.changes) == [Word(False, '', 7)]


def test_no_file_and_no_folder_are_no_reason(tmp_path: Path) -> None:
    assert reason_in_file(tmp_path / 'KILL') is None
    assert reason_in_file(tmp_path / 'nowhere' / 'KILL') is None


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'dead link', 'garbage', 'endless line'])
def test_whatever_has_the_name_counts_and_is_read_in_bounded_time(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / 'KILL'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'dead link':
        path.symlink_to(tmp_path / 'nowhere')
    elif kind == 'garbage':
        path.write_bytes(b'\xff\x00\x1b[2J')
    else:
        path.write_bytes(b'x' * 10_000_000)
    reason = reason_in_file(path)
    assert reason is not None
    assert 0 < len(reason) <= MAX_REASON
    assert reason.isprintable()


@pytest.mark.parametrize('kind', ['loop', 'file as a folder', 'long name', 'zero byte'])
def test_what_cannot_be_known_counts_as_engaged_and_says_why(tmp_path: Path, kind: str) -> None:
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    (tmp_path / 'file').touch()
    names = {
        'loop': 'loop/KILL',
        'file as a folder': 'file/KILL',
        'long name': 'x' * 300,
        'zero byte': 'KILL\0',
    }
    assert 'cannot be looked at (' in str(reason_in_file(tmp_path / names[kind]))


def test_a_folder_that_may_not_be_looked_into_counts_as_engaged(tmp_path: Path) -> None:
    folder = tmp_path / 'closed'
    folder.mkdir()
    folder.chmod(0)
    me = os.geteuid()
    if me == 0:  # root may look everywhere
        os.seteuid(65534)
    try:
        reason = reason_in_file(folder / 'KILL')
    finally:
        os.seteuid(me)
        folder.chmod(0o700)
    assert 'cannot be looked at (Permission denied)' in str(reason)


@pytest.mark.parametrize('text', ['', '{', '[]', '{"engaged": 1}', 'true'])
def test_a_kept_word_that_cannot_be_read_counts_as_engaged(text: str) -> None:
    word = decode_word(text, 5)
    assert word.engaged
    assert word.stamp_ns == 5
    assert 'cannot be read' in word.reason


def test_a_word_that_earlier_versions_kept_is_read_and_none_is_lifted() -> None:
    kept = '{"engaged": true, "reason": "smoke", "stamp_ns": 5}'
    assert decode_word(kept, 9) == Word(True, 'smoke', 5)
    assert decode_word(None, 9) == Word()


@given(st.text())
def test_a_reason_is_one_printable_line_and_never_empty(text: str) -> None:
    reason = one_reason(text)
    assert 0 < len(reason) <= MAX_REASON
    assert reason.isprintable()
    assert one_reason(reason) == reason
