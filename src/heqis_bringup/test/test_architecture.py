# SPDX-License-Identifier: Apache-2.0
"""The arrows of the design that import-linter's contracts in pyproject.toml cannot say."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).resolve().parents[2]
PACKAGES = sorted(manifest.parent.name for manifest in SRC.glob('*/setup.py'))
# What the boards with Python 3.10 run.
BOARD_PACKAGES = [name for name in PACKAGES if name not in ('heqis_training', 'heqis_bringup')]

OUTSIDE = ('io', 'commands')


def modules(package: str) -> list[Path]:
    return sorted((SRC / package / package).rglob('*.py'))


def imported_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield every imported module with its line; what only a type checker reads is left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith('TYPE_CHECKING'):
            for other in node.orelse:
                yield from imported_names(other)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module, node.lineno
        else:
            yield from imported_names(node)


def imports_of(file: Path) -> list[tuple[str, int]]:
    return list(imported_names(ast.parse(file.read_text(encoding='utf-8'))))


def top(name: str) -> str:
    return name.partition('.')[0]


def test_the_walk_sees_imports_anywhere_but_for_types() -> None:
    text = (
        'from typing import TYPE_CHECKING\n'
        'if TYPE_CHECKING:\n    import rclpy\n'
        'def f():\n    from torch import nn\n'
    )
    assert [name for name, _ in imported_names(ast.parse(text))] == ['typing', 'torch']


@pytest.mark.parametrize('package', [name for name in PACKAGES if name != 'heqis_ros'])
def test_only_node_files_import_rclpy(package: str) -> None:
    offenders = [
        f'{file.relative_to(SRC)}:{line}'
        for file in modules(package)
        if not file.stem.endswith('_node')
        for name, line in imports_of(file)
        if top(name) == 'rclpy'
    ]
    assert not offenders


@pytest.mark.parametrize('package', [name for name in PACKAGES if name != 'heqis_bringup'])
def test_only_node_files_import_node_files(package: str) -> None:
    offenders = [
        f'{file.relative_to(SRC)}:{line}: {name}'
        for file in modules(package)
        if not file.stem.endswith('_node')
        for name, line in imports_of(file)
        if top(name) in PACKAGES and name.endswith('_node')
    ]
    assert not offenders


def test_the_heart_of_core_needs_numpy_numba_and_msgspec_alone() -> None:
    allowed = {'heqis_core', 'numpy', 'numba', 'msgspec', *sys.stdlib_module_names}
    offenders = []
    for file in modules('heqis_core'):
        inside = file.relative_to(SRC / 'heqis_core' / 'heqis_core')
        # io/ is where the world is touched, commands/ what a person runs; testing*.py serve the
        # tests and speak to pytest.
        if inside.parts[0] in OUTSIDE or inside.name.startswith('testing'):
            continue
        offenders += [
            f'{inside}:{line}: {name}'
            for name, line in imports_of(file)
            if top(name) not in allowed
        ]
    assert not offenders


def test_the_heart_of_core_imports_io_only_when_it_is_used() -> None:
    offenders = []
    for file in modules('heqis_core'):
        inside = file.relative_to(SRC / 'heqis_core' / 'heqis_core')
        if inside.parts[0] in OUTSIDE or inside.name.startswith('testing'):
            continue
        for node in ast.parse(file.read_text(encoding='utf-8')).body:
            offenders += [
                f'{inside}:{line}: {name}'
                for name, line in imported_names(ast.Module([node], []))
                if name.startswith('heqis_core.io')
                and isinstance(node, (ast.Import, ast.ImportFrom))
            ]
    assert not offenders


@pytest.mark.parametrize('package', BOARD_PACKAGES)
def test_board_code_is_python_310(package: str) -> None:
    for file in modules(package):
        ast.parse(file.read_text(encoding='utf-8'), filename=str(file), feature_version=(3, 10))
