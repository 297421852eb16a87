# SPDX-License-Identifier: Apache-2.0
"""The register image: layout, what is shown when, and that age and hold cannot be missed."""

from __future__ import annotations

import math
import re
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.decision import Action, Decisions, Reason
from heqis_core.errors import ConfigError
from heqis_gateway.modbus_registers import (
    HEADER_WORDS,
    MOST_SYMBOLS,
    NO_AGE,
    NO_NUMBER,
    RECORD_WORDS,
    RECORDS_AT,
    SYMBOL_WORDS,
    SYMBOLS_AT,
    Flag,
    Health,
    RegisterImage,
    Status,
)

GOOD = Health(required=2, active=2)
WALL_NS = 1_700_000_000_000_000_000
DAY_NS = 86_400_000_000_000
DOCS = Path(__file__).resolve().parents[3] / 'docs' / 'modbus.md'


def decisions(
    seq: int = 1,
    actions: tuple[Action, ...] = (Action.BUY, Action.HOLD),
    epoch: int = 1,
    stream: str = 'daily',
    symbols: tuple[str, ...] = ('000001.SZ', '600519.SH'),
    valid_ns: int = WALL_NS + DAY_NS,
) -> Decisions:
    n = len(symbols)
    target = {Action.BUY: 1.0, Action.SELL: 0.0}
    return Decisions(
        stream=stream,
        epoch=epoch,
        seq=seq,
        event_time_ns=WALL_NS + seq,
        revision=3,
        bundle_id='b',
        generator='g',
        symbols=symbols,
        action=np.array(actions, np.uint8),
        reasons=np.full(n, Reason.UP | Reason.INSIDE_BAND, np.uint32),
        score=np.full(n, -0.25, np.float32),
        target_position=np.array([target.get(a, math.nan) for a in actions], np.float32),
        probabilities=np.full((n, 3), 0.25, np.float32),
        predicted_return=np.full(n, 0.0125, np.float32),
        valid_until_ns=np.full(n, valid_ns, np.int64),
    )


def record(image: RegisterImage, row: int, now_s: float = 0.0, now_ns: int = WALL_NS) -> list[int]:
    words = image.read(RECORDS_AT + RECORD_WORDS * row, RECORD_WORDS, now_s, now_ns)
    assert words is not None
    return words


def header(image: RegisterImage, now_s: float = 0.0, now_ns: int = WALL_NS) -> list[int]:
    words = image.read(0, HEADER_WORDS, now_s, now_ns)
    assert words is not None
    return words


def number(words: list[int], code: str) -> int | float:
    """Return the number in registers as a PLC puts it together."""
    value: int | float = struct.unpack(f'>{code}', struct.pack(f'>{len(words)}H', *words))[0]
    return value


def shown(**settings: object) -> RegisterImage:
    image = RegisterImage(4, **settings)
    image.set_health(GOOD, 0.0)
    assert image.take(decisions(), 0.0)
    return image


def test_a_record_holds_the_decision_word_by_word():
    words = record(shown(), 0, now_s=0.5)
    assert words[:6] == [Action.BUY, Flag.CURRENT, Action.BUY, 10_000, 65_536 - 2_500, 3]
    assert number(words[6:8], 'I') == Reason.UP | Reason.INSIDE_BAND
    assert number(words[8:10], 'f') == 1.0
    assert number(words[10:12], 'f') == -0.25
    assert number(words[12:14], 'f') == np.float32(0.0125)
    assert number(words[14:18], 'q') == WALL_NS + 1
    assert number(words[18:22], 'q') == WALL_NS + DAY_NS
    assert number(words[22:26], 'q') == WALL_NS + 1
    assert number(words[26:28], 'I') == 500
    assert number(words[28:30], 'I') == 1
    assert words[30:] == [Action.BUY, 1]


def test_the_header_says_what_is_where_and_how_old():
    image = shown()
    image.take(decisions(seq=4), 1.0)
    image.set_health(GOOD, 1.5)
    words = header(image, now_s=2.0, now_ns=WALL_NS + 7)
    assert bytes(struct.pack('>2H', *words[:2])) == b'HEQI'
    assert words[2:8] == [1, Status.ALIVE, 2, 2, 4, 2]
    assert words[8:12] == [RECORDS_AT, RECORD_WORDS, SYMBOLS_AT, SYMBOL_WORDS]
    assert words[12:14] == [2, 2]
    assert number(words[14:16], 'I') == 1000
    assert number(words[16:18], 'I') == 500
    assert number(words[18:22], 'q') == WALL_NS + 4
    assert number(words[22:26], 'q') == WALL_NS + 7
    assert number(words[26:28], 'I') == 4
    assert number(words[28:30], 'I') == 2
    assert number(words[30:32], 'I') == 2


def test_the_symbol_table_holds_codes_in_ascii_and_given_symbols_come_first():
    image = RegisterImage(4, ['600519.SH', '贵州茅台', 'AVERYLONGSYMBOLNAME'])
    image.take(decisions(), 0.0)
    words = image.read(SYMBOLS_AT, 4 * SYMBOL_WORDS, 0.0, WALL_NS)
    names = [struct.pack('>8H', *words[at : at + 8]).decode() for at in range(0, 32, 8)]
    assert names == [
        '600519.SH       ',
        '????            ',
        'AVERYLONGSYMBOLN',
        '000001.SZ       ',
    ]
    assert record(image, 0)[30] == Action.HOLD
    assert record(image, 3)[30] == Action.BUY


def test_nothing_has_come_yet_shows_in_header_and_record():
    image = RegisterImage(4)
    assert header(image)[3] == Status.NO_DECISION
    words = record(image, 0)
    assert words[:3] == [Action.NONE, Flag.NO_DECISION | Flag.GRAPH_DEAD, Action.NONE]
    assert words[3:5] == [NO_NUMBER, NO_NUMBER]
    assert math.isnan(number(words[8:10], 'f'))
    assert number(words[26:28], 'I') == NO_AGE


def test_hold_and_none_leave_the_target_of_the_last_signal():
    image = shown()
    image.take(decisions(2, (Action.HOLD, Action.SELL)), 0.0)
    first, second = record(image, 0), record(image, 1)
    assert (first[0], first[2], first[3]) == (Action.HOLD, Action.BUY, 10_000)
    assert number(first[14:18], 'q') == WALL_NS + 2
    assert number(first[22:26], 'q') == WALL_NS + 1
    assert (second[0], second[2], second[3]) == (Action.SELL, Action.SELL, 0)
    image.take(decisions(3, (Action.NONE, Action.NONE)), 0.0)
    assert record(image, 0)[:4] == [Action.NONE, Flag.CURRENT, Action.BUY, 10_000]


@pytest.mark.parametrize(
    ('health', 'now_s', 'now_ns', 'expected'),
    [
        (GOOD, 0.9, WALL_NS, Flag.CURRENT),
        (GOOD, 1.1, WALL_NS, Flag.GRAPH_DEAD),  # nobody looks after the graph any more
        (Health(2, 1), 0.0, WALL_NS, Flag.GRAPH_DEAD),
        (Health(2, 2, held=True), 0.0, WALL_NS, Flag.HELD),
        (Health(2, 2, kill_switch=True), 0.0, WALL_NS, Flag.KILL_SWITCH),
        (GOOD, 0.0, WALL_NS + DAY_NS + 1, Flag.STALE),  # not valid any longer
        (GOOD, 11.0, WALL_NS, Flag.STALE | Flag.GRAPH_DEAD),
        (Health(2, 0, True, True), 11.0, WALL_NS, ~Flag.CURRENT & ~Flag.NO_DECISION),
    ],
)
def test_a_decision_that_may_not_be_acted_on_says_why_and_its_action_reads_none(
    health, now_s, now_ns, expected
):
    image = shown(stale_after_s=10.0)
    image.set_health(health, 0.0)
    words = record(image, 0, now_s, now_ns)
    assert words[1] == int(expected) & 0x3F
    assert words[0] == (Action.BUY if expected == Flag.CURRENT else Action.NONE)
    assert words[30] == Action.BUY


def test_the_event_clock_ends_validity_by_the_newest_frame_not_by_the_wall():
    image = shown(event_clock=True)
    far_ns = WALL_NS + 1000 * DAY_NS
    assert record(image, 0, 0.0, far_ns)[1] == Flag.CURRENT
    image.take(decisions(2, valid_ns=WALL_NS), 0.0)
    assert record(image, 0, 0.0, WALL_NS)[1] == Flag.STALE


def test_the_heartbeat_counter_advances_only_while_everything_runs_and_wraps():
    image = RegisterImage(1)
    seen = []
    for health in (GOOD, GOOD, Health(2, 1), Health(2, 0), GOOD):
        image.set_health(health, 0.0)
        seen.append(header(image)[4])
    assert seen == [1, 2, 2, 2, 3]
    for _ in range(65_536):
        image.set_health(GOOD, 0.0)
    assert header(image)[4] == 3


def test_what_is_not_newer_or_of_another_stream_changes_nothing():
    image = shown()
    before = record(image, 0)
    assert not image.take(decisions(1, (Action.SELL, Action.SELL)), 5.0)
    assert not image.take(decisions(0, (Action.SELL, Action.SELL)), 5.0)
    assert not image.take(decisions(9, (Action.SELL, Action.SELL), stream='other'), 5.0)
    assert record(image, 0) == before
    assert image.counters == {
        'frames': 1,
        'frames_missed': 0,
        'frames_repeated': 2,
        'other_streams': 1,
        'left_out': 0,
    }


def test_a_gateway_that_starts_again_goes_on_and_its_old_start_is_over():
    image = shown()
    assert image.take(decisions(2, epoch=2), 0.0)
    assert image.take(decisions(1, (Action.SELL, Action.SELL), epoch=3), 0.0)
    assert record(image, 0)[0] == Action.SELL
    for epoch in (1, 2):
        assert not image.take(decisions(9, epoch=epoch), 0.0)
    assert image.counters['frames_missed'] == 0


def test_more_symbols_than_records_are_left_out_and_the_header_says_so():
    image = RegisterImage(1)
    image.set_health(GOOD, 0.0)
    image.take(decisions(), 0.0)
    assert header(image)[3] == Status.ALIVE | Status.SYMBOLS_LEFT_OUT
    assert header(image)[5] == 1
    assert image.counters['left_out'] == 1
    assert record(image, 0)[0] == Action.BUY


def test_only_registers_that_exist_are_read():
    image = RegisterImage(2)
    for address, count in ((0, 33), (31, 2), (32, 1), (255, 2), (320, 1), (319, 2), (50_016, 1)):
        assert image.read(address, count, 0.0, WALL_NS) is None, address
    assert image.read(0, 0, 0.0, WALL_NS) is None
    for address, count in ((0, 32), (31, 1), (256, 64), (319, 1), (50_000, 16)):
        assert len(image.read(address, count, 0.0, WALL_NS) or []) == count


@pytest.mark.parametrize('n', [0, MOST_SYMBOLS + 1])
def test_a_number_of_records_that_does_not_fit_is_refused(n):
    with pytest.raises(ConfigError, match=f'max_symbols: {n}, expected 1 to {MOST_SYMBOLS}'):
        RegisterImage(n)


@pytest.mark.parametrize('symbols', [['a', 'b'], ['a', 'a']])
def test_symbols_that_do_not_fit_or_come_twice_are_refused(symbols):
    with pytest.raises(ConfigError, match='symbols: 2 names, expected at most 1'):
        RegisterImage(1, symbols)


def test_the_largest_image_fits_the_address_space_and_its_last_record_is_read():
    image = RegisterImage(MOST_SYMBOLS)
    symbols = tuple(f'{n:06d}.SZ' for n in range(MOST_SYMBOLS))
    image.set_health(GOOD, 0.0)
    image.take(decisions(1, (Action.SELL,) * MOST_SYMBOLS, symbols=symbols), 0.0)
    assert record(image, MOST_SYMBOLS - 1)[0] == Action.SELL
    assert RECORDS_AT + RECORD_WORDS * MOST_SYMBOLS <= SYMBOLS_AT
    assert SYMBOLS_AT + SYMBOL_WORDS * MOST_SYMBOLS <= 65_535


@given(
    st.lists(st.floats(width=32) | st.sampled_from([1.0, 0.0, -1.0]), min_size=1, max_size=4),
    st.lists(st.sampled_from(Action), min_size=4, max_size=4),
    st.floats(0, 1e6),
    st.integers(-(2**62), 2**62),
)
def test_any_decision_gives_registers_of_16_bits_and_acts_only_while_current(
    values, actions, now_s, now_ns
):
    n = len(values)
    item = decisions(1, tuple(actions[:n]), symbols=tuple('abcd'[:n]))
    item.score[:] = item.target_position[:] = item.predicted_return[:] = values
    image = RegisterImage(4)
    image.set_health(GOOD, 0.0)
    image.take(item, 0.0)
    for row in range(n):
        words = record(image, row, now_s, now_ns)
        assert all(0 <= word <= 0xFFFF for word in words)
        current = words[1] == Flag.CURRENT
        assert current == (now_s <= 1.0 and now_ns <= WALL_NS + DAY_NS)
        assert words[0] == (actions[row] if current else Action.NONE)
        score = number(words[10:12], 'f')
        assert score == values[row] or math.isnan(values[row])


def test_a_record_read_while_it_is_written_is_of_one_decision():
    image = RegisterImage(1)
    image.set_health(GOOD, 0.0)
    stop = threading.Event()

    def write() -> None:
        seq = 1
        while not stop.is_set():
            action = Action.BUY if seq % 2 else Action.SELL
            image.take(decisions(seq, (action,), symbols=('a',)), 0.0)
            seq += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        seen = set()
        while len(seen) < 150:
            words = record(image, 0)
            if words[1] & Flag.NO_DECISION:
                continue
            seq = number(words[28:30], 'I')
            assert words[31] == seq & 0xFFFF
            assert number(words[14:18], 'q') == WALL_NS + seq
            assert words[0] == words[30] == (Action.BUY if seq % 2 else Action.SELL)
            seen.add(seq)
    finally:
        stop.set()
        thread.join()


def test_the_docs_name_every_flag_with_its_bit():
    text = DOCS.read_text(encoding='utf-8')
    for kind in (Status, Flag):
        for flag in kind:
            bit = int(flag).bit_length() - 1
            assert re.search(rf'\| {bit} \| `{flag.name}` \|', text), flag
