# SPDX-License-Identifier: Apache-2.0
"""The generated parameter page and the check from the command line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from heqis_core.errors import ConfigError
from heqis_ros import param_docs

PARAMS = """\
from heqis_ros.params import Param, ParamTable
ONE = ParamTable('{node}', [Param('size', int, 3, 'A size.', minimum=1)])
TABLES = (ONE,)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that makes an importable package with one table."""

    def make(name, node):
        folder = tmp_path / name
        folder.mkdir()
        (folder / '__init__.py').write_text('')
        (folder / 'params.py').write_text(PARAMS.format(node=node))

    monkeypatch.syspath_prepend(tmp_path)
    yield make
    for name in [name for name in sys.modules if name.startswith('heqis_zz')]:
        del sys.modules[name]


def test_tables_of_every_package_are_found(package):
    package('heqis_zz_one', 'zz_one')
    package('heqis_zz_two', 'zz_two')
    nodes = [table.node for table in param_docs.all_tables()]
    assert {'zz_one', 'zz_two'} <= set(nodes)
    assert nodes == sorted(nodes)
    assert '| `size` | int | `3` |  | >= 1 | A size. |' in param_docs.document()


def test_two_tables_for_one_node_are_refused(package):
    package('heqis_zz_one', 'zz')
    package('heqis_zz_two', 'zz')
    with pytest.raises(ConfigError, match='node zz has a second table'):
        param_docs.all_tables()


def test_the_page_is_written_and_compared(tmp_path, capsys):
    page = tmp_path / 'parameters.md'
    assert param_docs.main(['--write', str(page)]) == 0
    assert page.read_text().startswith('# Parameters\n')
    assert param_docs.main(['--compare', str(page)]) == 0
    page.write_text('old')
    assert param_docs.main(['--compare', str(page)]) == 1
    assert 'not up to date' in capsys.readouterr().err


def test_files_are_checked_from_the_command_line(tmp_path, package, capsys):
    package('heqis_zz_one', 'zz_one')
    file = tmp_path / 'p.yaml'
    file.write_text('/**/zz_one:\n  ros__parameters:\n    size: 0\n')
    assert param_docs.main(['--check', str(file)]) == 1
    assert f'{file}:3: zz_one.size: is 0, out of range: >= 1' in capsys.readouterr().err
    file.write_text('/**/zz_one:\n  ros__parameters:\n    size: 1\n')
    assert param_docs.main(['--check', str(file)]) == 0


def test_neither_tables_nor_checks_need_rclpy():
    code = (
        'import sys\n'
        'sys.modules["rclpy"] = None\n'
        'from heqis_ros import param_docs\n'
        'print(len(param_docs.document()))\n'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
