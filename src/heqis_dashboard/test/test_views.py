# SPDX-License-Identifier: Apache-2.0
"""What banner and tables say: each trouble once, the worst first, nothing when all is well."""

from __future__ import annotations

from collections.abc import Iterable
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.control import Event, Level, NodeState
from heqis_core.frame import Stage
from heqis_core.graph_state import GraphState
from heqis_core.testing_graph import make_beat, make_stamps
from heqis_dashboard.marks import Mark
from heqis_dashboard.views import (
    Notice,
    Row,
    Sources,
    event_rows,
    flow_rows,
    kill_switch,
    latency_rows,
    market_text,
    node_rows,
    notices,
    signal_rows,
)

SOURCES = Sources('/heqis in ROS domain 7')
NODES = (
    ('gateway', 'gateway'),
    ('gateway', 'risk_gate'),
    ('gateway', 'supervisor'),
    ('gateway', 'dashboard'),
    ('compute', 'compute'),
)


def graph(
    now_s: float = 100.0,
    nodes: Iterable[tuple[str, str]] = NODES,
    state: GraphState | None = None,
    start_id: int = 1,
    count: int = 1,
    **counters: dict[str, int],
) -> GraphState:
    """Return a state that has just heard of each node; `counters` are by node."""
    state = state or GraphState()
    for board, node in nodes:
        beat = make_beat(node, start_id, count, board, **counters.get(node, {}))
        assert state.beat(beat, now_s)
    return state


def texts(found: Iterable[Notice]) -> list[tuple[str, str]]:
    return [(notice.level.name, notice.text) for notice in found]


# --- banner ---


def test_there_is_no_notice_when_all_is_well() -> None:
    assert notices(graph(), SOURCES, 100.5) == []


@pytest.mark.parametrize('nodes', [(), [('gateway', 'dashboard')]])
def test_graph_that_was_never_heard_is_one_warning_that_says_where_and_what_to_do(
    nodes: list[tuple[str, str]],
) -> None:
    ((level, text),) = texts(notices(graph(nodes=nodes), SOURCES, 100.0))
    assert level == 'WARN'
    assert 'no node is heard in /heqis in ROS domain 7' in text
    assert 'heqis up all' in text


@pytest.mark.parametrize('dashboard_lives', [True, False])
def test_graph_that_fell_silent_is_one_error_and_not_one_of_each_node(
    dashboard_lives: bool,
) -> None:
    state = graph()
    state.diagnosed('heqis/node/compute', Level.ERROR, 'lost')
    if dashboard_lives:
        graph(160.0, [('gateway', 'dashboard')], state, count=2)
    assert texts(notices(state, SOURCES, 160.0)) == [
        ('ERROR', 'the graph is silent for 60 s: what is shown is old')
    ]


@pytest.mark.parametrize('dashboard_lives', [True, False])
def test_graph_that_has_just_fallen_silent_is_not_all_well(dashboard_lives: bool) -> None:
    state = graph()
    if dashboard_lives:
        graph(103.0, [('gateway', 'dashboard')], state, count=2)
    found = notices(state, SOURCES, 103.0)
    assert ('ERROR', 'risk_gate is lost: not heard for 3 s') in texts(found)
    assert len(found) == 5 - dashboard_lives
    assert {notice.level for notice in found} == {Level.ERROR}


def test_lost_node_is_an_error_while_others_are_heard_and_gone_when_it_is_back() -> None:
    state = graph()
    others = [node for node in NODES if node[1] != 'compute']
    graph(101.5, others, state, count=2)
    assert texts(notices(state, SOURCES, 101.5)) == [
        ('ERROR', 'compute is lost: not heard for 2 s')
    ]
    graph(101.6, [('compute', 'compute')], state, count=2)
    assert notices(state, SOURCES, 101.7) == []


def test_node_is_lost_after_ten_heartbeats_and_not_before() -> None:
    state = graph(100.0)
    graph(101.0, [('gateway', 'gateway')], state, count=2)
    assert notices(state, SOURCES, 101.0) == []
    assert {row.level for row in node_rows(state, 101.0)} == {Level.INFO}
    assert len(notices(state, SOURCES, 101.001)) == len(NODES) - 1
    lost = [row.cells[0] or row.cells[1] for row in node_rows(state, 101.001) if row.level]
    assert lost == ['dashboard', 'risk_gate', 'supervisor', 'compute', 'compute']


def test_graph_is_silent_after_five_seconds_without_any_node_and_not_before() -> None:
    assert len(notices(graph(100.0), SOURCES, 105.0)) == len(NODES)
    assert texts(notices(graph(100.0), SOURCES, 105.001)) == [
        ('ERROR', 'the graph is silent for 5 s: what is shown is old')
    ]


@pytest.mark.parametrize(
    ('code', 'level', 'name'),
    [
        (NodeState.UNCONFIGURED, 'WARN', 'unconfigured'),
        (NodeState.INACTIVE, 'WARN', 'inactive'),
        (NodeState.TRANSITIONING, 'WARN', 'transitioning'),
        (NodeState.FINALIZED, 'ERROR', 'finalized'),
        (NodeState.UNKNOWN, 'ERROR', 'unknown'),
        (77, 'ERROR', 'unknown'),
    ],
)
def test_node_that_is_not_active_is_named_with_its_state_and_its_own_word_in_banner_and_table(
    code: int, level: str, name: str
) -> None:
    state = graph()
    state.beat(make_beat('compute', 1, 2, 'compute', state=code), 100.0)
    says = '' if name == 'finalized' else ': compute 2'  # what it said then is not so now
    assert texts(notices(state, SOURCES, 100.0)) == [(level, f'compute is {name}{says}')]
    (row,) = (row for row in node_rows(state, 100.0) if row.cells[1] == 'compute')
    assert (row.cells[2], row.level.name) == (name, level)


def test_node_without_a_word_of_its_own_has_no_colon_after_its_state() -> None:
    state = graph()
    beat = make_beat('compute', 1, 2, 'compute', state=NodeState.INACTIVE)
    quiet = msgspec.structs.replace(beat.nodes[0], info='')
    state.beat(msgspec.structs.replace(beat, nodes=(quiet,)), 100.0)
    assert texts(notices(state, SOURCES, 100.0)) == [('WARN', 'compute is inactive')]


def test_a_graph_that_was_ended_is_one_line_and_no_list_of_losses() -> None:
    state = GraphState()
    for process in ('gateway', 'compute', 'supervisor'):
        state.beat(make_beat(process, 1, 1, state=NodeState.FINALIZED), 100.0)
    state.beat(make_beat('dashboard', 1, 1), 130.0)
    for now_s in (100.1, 103.0, 130.0):
        assert texts(notices(state, SOURCES, now_s)) == [
            ('WARN', 'the graph was ended: what is shown is how it was')
        ]
    assert {row.cells[7] for row in node_rows(state, 130.0) if row.cells[1] == 'gateway'} == {''}


def test_one_cause_is_one_line_whoever_else_tells_it() -> None:
    state = graph()
    state.beat(make_beat('gateway', 1, 9), 99.9)
    state.diagnosed('heqis/node/compute', Level.ERROR, 'lost: silent for 0.8 s')
    state.diagnosed('heqis/process/compute/compute', Level.ERROR, 'lost: silent for 0.8 s')
    state.diagnosed('heqis/process/gateway/other', Level.ERROR, 'latched')
    state.beat(make_beat('compute', 1, 9, 'compute', state=NodeState.UNCONFIGURED), 99.9)
    found = texts(notices(state, SOURCES, 100.0))
    assert [text for _, text in found if 'compute' in text] == [
        'compute is unconfigured: compute 9'
    ]
    assert ('ERROR', 'process gateway/other: latched') in found


def test_the_kill_switch_says_who_engaged_it_and_why() -> None:
    state = graph(risk_gate={'kill_switch': 1})
    state.happened(Event(1, Level.WARN, 'risk_gate', 'kill_switch', 'risk_gate', 'engaged: by me'))
    assert texts(notices(state, SOURCES, 100.0)) == [
        ('ERROR', 'the kill switch is engaged: every signal is refused (engaged: by me)')
    ]


def gate_says(info: str, engaged: int, heard_s: float = 100.0) -> GraphState:
    state = GraphState()
    beat = make_beat('risk_gate', 1, 1, kill_switch=engaged)
    node = msgspec.structs.replace(beat.nodes[0], info=info)
    state.beat(msgspec.structs.replace(beat, nodes=(node,)), heard_s)
    return state


@pytest.mark.parametrize(
    ('info', 'engaged', 'heard_s', 'shown'),
    [
        ('event clock', 0, 100.0, ('INFO', 'kill switch: not engaged')),
        (
            'kill switch engaged by file run/KILL since 2026: smoke',
            2,
            100.0,
            ('ERROR', 'kill switch: engaged by file run/KILL since 2026: smoke'),
        ),
        ('a failure hides it', 1, 100.0, ('ERROR', 'kill switch: engaged')),
        ('event clock', 0, 98.0, ('WARN', 'kill switch: not known, the risk gate is not heard')),
    ],
)
def test_the_switch_shows_what_the_gate_says_now_also_to_who_came_late(
    info: str, engaged: int, heard_s: float, shown: tuple[str, str]
) -> None:
    state = gate_says(info, engaged, heard_s)
    assert texts([kill_switch(state, 100.0)]) == [shown]
    assert kill_switch(GraphState(), 100.0).level == Level.WARN


def test_what_the_gate_says_now_goes_before_an_earlier_event() -> None:
    state = gate_says('kill switch engaged by service since 2026: smoke', 1)
    state.happened(Event(1, Level.WARN, 'risk_gate', 'kill_switch', 'risk_gate', 'cleared by me'))
    said = 'every signal is refused (engaged by service since 2026: smoke)'
    assert said in texts(notices(state, SOURCES, 100.0))[0][1]


@pytest.mark.parametrize(
    ('info', 'last_ns', 'text'),
    [
        ('simulator, resumed at 7', 0, 'SIMULATED market · no bar yet'),
        ('file, no checkpoint', 0, 'replay of files · no bar yet'),
        ('something else', 0, 'no bar yet'),
        ('file', -30, 'replay of files · newest bar 2022-01-08 15:00 (UTC), 30 days ago'),
        ('file', 0.1, 'replay of files · newest bar 2022-01-08 15:00 (UTC), of today'),
        (
            'simulator',
            3653,
            'SIMULATED market · newest bar 2022-01-08 15:00 (UTC), 10.0 years ahead of now',
        ),
    ],
)
def test_the_header_says_where_bars_come_from_and_how_far_they_are_from_now(
    info: str, last_ns: float, text: str
) -> None:
    state, day_ns, bar_ns = GraphState(), 86_400_000_000_000, 1_641_654_000_000_000_000
    beat = make_beat('gateway', 1, 1)
    node = msgspec.structs.replace(beat.nodes[0], info=info)
    state.beat(msgspec.structs.replace(beat, nodes=(node,)), 0.0)
    shown = 0 if 'no bar' in text else bar_ns
    assert market_text(state, shown, bar_ns - int(last_ns * day_ns), ZoneInfo('UTC')) == text


HELD = 'output is held: the supervisor says so'


@pytest.mark.parametrize(
    ('node', 'counter', 'text'),
    [
        ('risk_gate', 'kill_switch', 'the kill switch is engaged: every signal is refused'),
        ('risk_gate', 'hold', HELD),
        ('compute', 'holding', 'output is held: the compute board hears no supervisor'),
    ],
)
def test_held_output_is_an_error_that_says_why_until_it_is_released(
    node: str, counter: str, text: str
) -> None:
    state = graph(**{node: {counter: 1}})
    assert texts(notices(state, SOURCES, 100.0)) == [('ERROR', text)]
    graph(state=state, count=2, **{node: {counter: 0}})
    assert notices(state, SOURCES, 100.0) == []


def test_hold_of_the_supervisor_is_said_once_however_many_say_it() -> None:
    state = graph(risk_gate={'hold': 1}, compute={'holding': 1})
    beat = make_beat('supervisor', 1, 2)
    state.beat(msgspec.structs.replace(beat, hold=True), 100.0)
    assert texts(notices(state, SOURCES, 100.0)) == [('ERROR', HELD)]


@pytest.mark.parametrize('kind', ['board', 'process', 'node'])
def test_error_of_diagnostics_is_said_with_its_subject_and_a_warning_is_not(kind: str) -> None:
    state = graph()
    state.diagnosed(f'heqis/{kind}/compute/x', Level.ERROR, 'reset budget is used up')
    state.diagnosed(f'heqis/{kind}/gateway', Level.WARN, 'slow')
    state.diagnosed('heqis/graph', Level.ERROR, 'a part has failed')
    state.diagnosed('driver/camera', Level.ERROR, 'of somebody else')
    assert texts(notices(state, SOURCES, 100.0)) == [
        ('ERROR', f'{kind} compute/x: reset budget is used up')
    ]
    state.diagnosed(f'heqis/{kind}/compute/x', Level.INFO, 'active')
    assert notices(state, SOURCES, 100.0) == []


def test_sources_that_cannot_be_read_are_warnings_in_their_own_words() -> None:
    sources = Sources('here', journal='no journal at /x', bars='the gateway does not answer')
    expected = [('WARN', 'no journal at /x'), ('WARN', 'the gateway does not answer')]
    assert sorted(texts(notices(graph(), sources, 100.0))) == sorted(expected)
    # While nothing is heard, nobody can answer.
    assert texts(notices(GraphState(), sources, 100.0))[1:] == expected[:1]


def test_ended_source_is_a_plain_word_and_no_trouble() -> None:
    state = graph(gateway={'source_done': 1, 'frames_open': 2})
    assert notices(state, SOURCES, 100.0) == []
    graph(state=state, count=2, gateway={'source_done': 1, 'frames_open': 0})
    assert texts(notices(state, SOURCES, 100.0)) == [
        ('INFO', 'the source has ended, and every frame is durable')
    ]


NAMES = [name for _, name in NODES]


@given(
    silent=st.sets(st.sampled_from(NAMES)),
    inactive=st.sets(st.sampled_from(NAMES)),
    counters=st.dictionaries(
        st.sampled_from(('kill_switch', 'hold', 'holding', 'source_done')), st.just(1)
    ),
    errors=st.sets(st.sampled_from(NAMES)),
    journal=st.sampled_from(('', 'no journal')),
    gone_s=st.sampled_from((0.0, 3.0, 60.0)),
)
def test_notices_are_worst_first_each_once_and_none_only_when_nothing_is_wrong(
    silent: set[str],
    inactive: set[str],
    counters: dict[str, int],
    errors: set[str],
    journal: str,
    gone_s: float,
) -> None:
    state = GraphState()
    for board, node in NODES:
        beat = make_beat(node, 1, 1, board, state=2 if node in inactive else 3, **counters)
        state.beat(beat, 100.0 if node in silent else 110.0)
    for node in errors:
        state.diagnosed(f'heqis/node/{node}', Level.ERROR, 'failed')
    found = notices(state, Sources('here', journal), 110.0 + gone_s)
    assert [n.level for n in found] == sorted((n.level for n in found), reverse=True)
    assert len(set(found)) == len(found)
    wrong = silent or inactive or counters.keys() - {'source_done'} or errors or journal or gone_s
    assert bool([n for n in found if n.level > Level.INFO]) is bool(wrong)


# --- tables ---


def test_nodes_stand_under_their_boards_the_gateway_first_with_all_that_is_known_of_them() -> None:
    state = graph(
        99.5,
        [('compute', 'compute'), ('gateway', 'risk_gate'), ('archive', 'journal')],
        compute={'link_dropped': 2, 'frames_received': 9},
        journal={'predictions_dropped': 3, 'overflow': 1},
    )
    state.diagnosed('heqis/board/compute', Level.WARN, 'temperature 91 °C')
    beat = make_beat('compute', 1, 2, 'compute', link_dropped=2)
    waiting = msgspec.structs.replace(beat.nodes[0], pending=4)
    state.beat(msgspec.structs.replace(beat, nodes=(waiting,)), 99.9)
    assert node_rows(state, 100.0) == [
        Row(('gateway', '', 'ok', '0.5 s', '0', '0', '', '')),
        Row(('', 'risk_gate', 'active', '0.5 s', '0', '0', '0', 'risk_gate 1')),
        Row(('archive', '', 'ok', '0.5 s', '0', '4', '', '')),
        Row(('', 'journal', 'active', '0.5 s', '0', '4', '0', 'journal 1')),
        Row(('compute', '', 'warn', '0.1 s', '0', '2', '', 'temperature 91 °C'), Level.WARN),
        Row(('', 'compute', 'active', '0.1 s', '0', '2', '4', 'compute 2')),
    ]


def test_there_are_no_rows_before_a_node_is_heard() -> None:
    assert node_rows(GraphState(), 100.0) == []


def test_board_counts_the_restarts_of_a_process_once_however_many_nodes_it_has() -> None:
    state = GraphState()
    for start_id in (1, 2, 3):
        one = make_beat('gateway', start_id, 1, node='gateway', drops=1)
        other = make_beat('gateway', start_id, 1, node='bridge', drops=10)
        state.beat(msgspec.structs.replace(one, nodes=one.nodes + other.nodes), 100.0)
        state.beat(make_beat('journal', min(start_id, 2), start_id), 100.0)
    board, *nodes = (row.cells for row in node_rows(state, 100.0))
    assert board[4:6] == ('3', '31')
    assert [(cells[1], cells[4], cells[5]) for cells in nodes] == [
        ('gateway', '2', '1'),
        ('bridge', '2', '30'),
        ('journal', '1', '0'),
    ]


def test_board_shows_the_supervisors_count_of_restarts_from_before_the_page_was_open() -> None:
    state = graph(supervisor={'restarts.compute/compute': 4})
    rows = {row.cells[0] or row.cells[1]: row.cells[4] for row in node_rows(state, 100.0)}
    assert (rows['compute'], rows['gateway']) == ('4', '0')


def test_board_is_as_old_as_its_newest_heartbeat_and_lost_when_no_node_of_it_is_heard() -> None:
    state = graph(100.0)
    state.diagnosed('heqis/board/compute', Level.INFO, 'fine')
    graph(104.5, [('gateway', 'gateway')], state, count=2)
    rows = {row.cells[:2]: row for row in node_rows(state, 104.7)}
    assert rows['gateway', ''].cells[2:4] == ('ok', '0.2 s')
    assert rows['', 'risk_gate'].cells[2:4] == ('lost', '4.7 s')
    assert rows['', 'risk_gate'].level == Level.ERROR
    lost = rows['compute', '']
    assert (lost.level, lost.cells[2], lost.cells[7]) == (
        Level.ERROR,
        'lost',
        'no heartbeat of any node',
    )


def test_long_silence_is_told_in_minutes_and_a_clock_that_runs_late_is_no_negative_age() -> None:
    state = graph(100.0, [('gateway', 'gateway')])
    times = (99.0, 199.0, 200.0, 100.0 + 3600)
    ages = [node_rows(state, now_s)[0].cells[3] for now_s in times]
    assert ages == ['0.0 s', '99.0 s', '2 min', '60 min']


def test_latency_rows_are_the_stages_that_were_reached_in_milliseconds() -> None:
    state = GraphState()
    assert latency_rows(state) == []
    start = 10**18
    state.decided(
        make_stamps(
            (Stage.INGEST, start),
            (Stage.FEATURES, start + 1_500_000),
            (Stage.SENT, start + 101_400_000),
            (Stage.COMMITTED, start + 1_351_400_000),
        )
    )
    assert latency_rows(state) == [
        Row(('features', '1.50', '1.50')),
        Row(('sent', '99.90', '99.90')),
        Row(('committed', '1,250', '1,250')),
        Row(('bar to signal', '1,351', '1,351')),
    ]


def test_flow_rows_take_each_count_from_the_node_that_owns_it() -> None:
    state = graph(
        gateway={
            'bars_in': 12_345,
            'bars_rejected': 1,
            'frames_sent': 2,
            'frames_resent': 3,
            'frames_open': 4,
            'frames': 99,
        },
        compute={'frames_received': 5, 'gaps': 6, 'frames_sent': 99, 'signals': 99},
        risk_gate={'frames': 7, 'signals': 8, 'gaps': 99},
    )
    assert flow_rows(state) == [
        Row(('bars in', '12,345')),
        Row(('bars rejected', '1')),
        Row(('frames sent', '2')),
        Row(('sent again', '3')),
        Row(('frames open', '4')),
        Row(('frames received', '5')),
        Row(('gaps', '6')),
        Row(('frames durable', '7')),
        Row(('signals released', '8')),
    ]
    assert {row.cells[1] for row in flow_rows(GraphState())} == {'0'}


def test_event_rows_are_the_last_events_newest_first_each_as_bad_as_it_is() -> None:
    state = GraphState()
    start = 1_641_625_200_000_000_000
    for index, level in enumerate((Level.ERROR, Level.INFO, Level.WARN)):
        at_ns = start + index * 61_000_000_000
        state.happened(Event(at_ns, level, 'supervisor', 'killed', 'compute', f'no {index}'))
    zone = ZoneInfo('Asia/Shanghai')
    assert event_rows(state, zone, 2) == [
        Row(('2022-01-08 15:02:02', 'supervisor', 'killed', 'compute', 'no 2'), Level.WARN),
        Row(('2022-01-08 15:01:01', 'supervisor', 'killed', 'compute', 'no 1'), Level.INFO),
    ]
    assert len(event_rows(state, zone, 99)) == 3
    assert event_rows(GraphState(), zone, 9) == []


def test_signal_rows_keep_their_order_and_say_when_what_and_why() -> None:
    mark = Mark(
        stream='ashare',
        symbol='600519.SH',
        time_ns=1_641_625_200_000_000_000,
        kind='BUY',
        score=0.5,
        probabilities=(0.1, 0.3, 0.6),
        predicted_return=-0.00125,
        reasons=('gap', 'up'),
        bundle_id='fedcba9876543210',
        generator='gru',
        valid_until_ns=0,
        released_ns=0,
    )
    row = Row(('2022-01-08 15:00', '600519.SH', 'BUY', '+0.500', '-0.12%', 'gap, up', 'fedcba98'))
    assert signal_rows([mark], ZoneInfo('Asia/Shanghai')) == [row]
    assert signal_rows([], ZoneInfo('UTC')) == []
