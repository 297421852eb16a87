# SPDX-License-Identifier: Apache-2.0
"""Compiled code is kept wherever a process can write, is never stale, and its absence is survived.

Each case runs a small module in processes of their own. The folder beside a module is made
unwritable by a file of the same name, which stops root too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from heqis_core import jit

MODULE = """
import logging, sys
logging.basicConfig(stream=sys.stdout, level=logging.WARNING)
from heqis_core.jit import strict_njit

@strict_njit
def f(a, b, c):
    return a * b + c {more}

if __name__ == '__main__':
    # A fused multiply-add would keep the low bits of the product.
    x = 1.0 + 2.0**-30
    print(f(x, x, -1.0 - 2.0**-29), f(1.0, 0.0, 1.0 / 3.0))
    hits = sum(getattr(f.stats, 'cache_hits', {{}}).values()) if f._cache is not None else 0
    print('hits', hits)
"""


def run(script: Path, home: Path, **env: str) -> str:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(('NUMBA_', 'XDG_'))}
    root = str(Path(jit.__file__).resolve().parents[1])
    answer = subprocess.run(
        [sys.executable, '-B', str(script)],
        env={**kept, 'HOME': str(home), 'PYTHONPATH': root, **env},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / 'home'
    folder.mkdir()
    return folder


def module(folder: Path, more: str = '', writable: bool = True) -> Path:
    folder.mkdir(exist_ok=True)
    if not writable:
        (folder / '__pycache__').touch()
    script = folder / 'm.py'
    script.write_text(MODULE.format(more=more))
    return script


def test_second_process_does_not_compile_and_nothing_is_fused(tmp_path: Path, home: Path) -> None:
    script = module(tmp_path / 'installed')
    first, second = run(script, home), run(script, home)
    assert first.splitlines() == ['0.0 0.3333333333333333', 'hits 0']
    assert second.splitlines() == ['0.0 0.3333333333333333', 'hits 1']
    assert list((tmp_path / 'installed' / '__pycache__').glob('*.nbi'))


def test_read_only_install_keeps_its_code_in_the_users_cache(tmp_path: Path, home: Path) -> None:
    script = module(tmp_path / 'installed', writable=False)
    assert 'hits 0' in run(script, home)
    assert 'hits 1' in run(script, home)
    assert list(home.rglob('*.nbi'))


def test_folder_that_is_named_comes_first(tmp_path: Path, home: Path) -> None:
    script = module(tmp_path / 'installed')
    named = tmp_path / 'named'
    for hits in (0, 1):
        assert f'hits {hits}' in run(script, home, NUMBA_CACHE_DIR=str(named))
    assert list(named.rglob('*.nbi'))
    assert not (tmp_path / 'installed' / '__pycache__').exists()


def test_changed_source_behind_a_symlink_is_compiled_anew(tmp_path: Path, home: Path) -> None:
    source = module(tmp_path / 'source')
    stamp = source.stat()
    installed = tmp_path / 'installed'
    installed.mkdir()
    link = installed / 'm.py'
    link.symlink_to(source)
    run(link, home)
    assert 'hits 1' in run(link, home)
    # Same length and same time stamp: only the content tells.
    source.write_text(source.read_text().replace('a * b + c', 'a * b - c'))
    os.utime(source, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert run(link, home).splitlines() == ['2.0000000037252903 -0.3333333333333333', 'hits 0']


def test_without_any_writable_folder_it_compiles_each_time_and_says_so(
    tmp_path: Path,
) -> None:
    script = module(tmp_path / 'installed', writable=False)
    no_home = tmp_path / 'home'
    no_home.touch()
    for _ in range(2):
        out = run(script, no_home)
        assert '0.0 0.3333333333333333' in out
        assert 'f: compiled code cannot be kept' in out
        assert 'NUMBA_CACHE_DIR' in out
