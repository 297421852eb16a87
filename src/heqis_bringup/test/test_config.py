# SPDX-License-Identifier: Apache-2.0
"""The shipped parameter files and launch values against the tables of the nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from heqis_bringup.launch_file import LaunchPlan, ProcessSpec, load_launch
from heqis_compute.params import TABLES as COMPUTE
from heqis_dashboard.params import DASHBOARD
from heqis_gateway.params import BRIDGE, GATEWAY, MODBUS
from heqis_ros.param_files import check_file
from heqis_ros.params import ParamTable
from heqis_supervisor.params import AGENT, JOURNAL, RISK_GATE, SUPERVISOR

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ROOT / 'config'
NODES_OF: dict[str, tuple[ParamTable, ...]] = {
    'gateway': (GATEWAY, BRIDGE),
    'compute': tuple(COMPUTE),
    'journal': (RISK_GATE, JOURNAL),
    'supervisor': (SUPERVISOR,),
    'agent': (AGENT,),
    'dashboard': (DASHBOARD,),
    'modbus': (MODBUS,),
}


def plan(target: str, **values: str) -> LaunchPlan:
    return load_launch(
        ROOT / 'launch' / f'{target}.launch.yaml',
        values,
        find_share=lambda name: pytest.fail(f'asked for {name}'),
    )


def processes() -> list[ProcessSpec]:
    """Return every process that can be launched: both boards, and the page alone."""
    return [*plan('all', modbus='true').processes, *plan('dashboard').processes]


def given(process: ProcessSpec) -> dict[str, object]:
    return dict(param for param in process.params if isinstance(param, tuple))


def written(process: str) -> dict[str, dict[str, object]]:
    """Return the values of a parameter file by node."""
    document = yaml.safe_load((CONFIG / f'{process}.yaml').read_text(encoding='utf-8'))
    return {
        key.rpartition('/')[2]: section['ros__parameters'] for key, section in document.items()
    }


def test_every_parameter_file_belongs_to_a_process() -> None:
    names = {path.stem for path in CONFIG.glob('*.yaml') if '.' not in path.stem}
    assert names == {*NODES_OF, 'graph', 'resets', 'risk'}


@pytest.mark.parametrize('process', NODES_OF)
def test_a_parameter_file_holds_what_its_nodes_know(process: str) -> None:
    problems = check_file(CONFIG / f'{process}.yaml', NODES_OF[process])
    assert not problems, '\n'.join(map(str, problems))


def test_launch_values_are_known_and_allowed() -> None:
    for process in processes():
        for name, value in given(process).items():
            params = [p for table in NODES_OF[process.executable] if (p := table.get(name))]
            assert params, f'{process.where}: {name} is no parameter of {process.executable}'
            for param in params:
                assert param.problem(value) is None, f'{process.where}: {name}'


def test_every_parameter_is_set_in_exactly_one_place() -> None:
    # In both, the argument's default would silently undo what a person wrote into the file.
    for process in processes():
        tables = NODES_OF[process.executable]
        file = written(process.executable)
        for table in tables:
            section = file.get(table.node, file.get('**', {}))
            known = {param.name for param in table}
            assert known == set(section) | (set(given(process)) & known), table.node
            assert not set(section) & set(given(process)), table.node


@pytest.mark.parametrize('process', NODES_OF)
def test_a_parameter_file_holds_the_defaults(process: str) -> None:
    # It documents them; another value would be news to whoever reads the docs.
    for node, section in written(process).items():
        table = next((t for t in NODES_OF[process] if t.node == node), NODES_OF[process][0])
        for name, value in section.items():
            param = table.get(name)
            assert param is not None
            assert param.coerce(value) == param.coerce(param.default), f'{node}.{name}'


def test_sections_name_their_node_where_launch_gives_no_name() -> None:
    # ROS merges equal keys at their first place: a `/**` section in a file would stand before the
    # file's node sections, and take the values of the launch file (also `/**`) there with it.
    # A process that launch names gets its values under the full name, after everything else.
    named = {process.executable for process in processes() if process.name}
    for process in NODES_OF:
        for node in written(process):
            assert (node == '**') == (process in named), process


def test_the_page_of_the_board_waits_for_its_supervisor_and_the_one_alone_does_not() -> None:
    board, alone = (
        next(process for process in plan(target).processes if process.executable == 'dashboard')
        for target in ('gateway', 'dashboard')
    )
    assert (given(board)['autostart'], given(alone)['autostart']) == (False, True)
    # The agent of the board must not take the second for the first.
    assert board.name == DASHBOARD.node
    assert alone.name != board.name
    assert alone.env['HEQIS_BOARD'] != board.env['HEQIS_BOARD'] == 'gateway'


def test_the_page_can_be_left_out() -> None:
    path = ROOT / 'launch' / 'all.launch.yaml'
    without = load_launch(path, {'dashboard': 'false'}, find_share=lambda name: Path(name))
    left = {process.executable for process in without.processes}
    assert left == {process.executable for process in plan('all').processes} - {'dashboard'}
