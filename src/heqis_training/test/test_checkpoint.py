# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: exact round trips, resumed training, full disks, damaged and foreign files."""

from __future__ import annotations

import logging
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from heqis_core.errors import ConfigError, DataError
from heqis_training.checkpoint import (
    check_about,
    check_weights,
    load_latest,
    load_state,
    previous_of,
    save_state,
    write_durable,
)

ABOUT = {'kind': 'training', 'settings': 'abc', 'data': '0123'}
DEADLINE_S = 60.0

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.int64, torch.bool]
)
shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(lambda dtype, shape: torch.ones(shape).cumsum(-1).to(dtype), dtypes, shapes)
words = st.text() | st.sampled_from(['$tensor', '$tuple', '1', 'a/b', '~'])
keys = words | st.integers() | st.booleans() | st.tuples(st.integers(), words)
trees = st.recursive(
    scalars | tensors,
    lambda below: (
        st.lists(below, max_size=3)
        | st.lists(below, max_size=3).map(tuple)
        | st.dictionaries(keys, below, max_size=3)
    ),
    max_leaves=12,
)


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    if isinstance(expected, Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        assert [type(key) for key in found] == [type(key) for key in expected]
        for key, value in expected.items():
            assert_same(found[key], value)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert struct.pack('>d', found) == struct.pack('>d', expected)
    else:
        assert found == expected


@given(tree=trees)
def test_any_tree_comes_back_with_the_same_types_and_bits(
    tree: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / 'tree.safetensors'
    save_state(path, tree, ABOUT)
    state = load_state(path)
    assert_same(state.tree, tree)
    assert state.about == ABOUT
    assert state.path == path


def test_floats_that_json_has_no_word_for_keep_their_bits(tmp_path: Path) -> None:
    nan = struct.unpack('>d', bytes.fromhex('7ff8000000000123'))[0]
    values = [nan, -math.nan, math.inf, -math.inf, -0.0, 5e-324, 0.1, 1e-05, np.float64(0.3)]
    save_state(tmp_path / 'a', {'values': values}, {})
    found = load_state(tmp_path / 'a').tree['values']
    assert [struct.pack('>d', one) for one in found] == [struct.pack('>d', one) for one in values]


def test_views_tied_tensors_and_parameters_come_back_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    weight = nn.Parameter(base.clone())
    tree = {'view': base.T, 'row': base[1], 'again': base[1], 'wide': base[:, :1].expand(3, 5)}
    save_state(tmp_path / 'a', tree | {'parameter': weight}, {})
    found = load_state(tmp_path / 'a').tree
    for name, tensor in tree.items():
        assert torch.equal(found[name], tensor), name
    assert torch.equal(found['parameter'], base)
    assert type(found['parameter']) is Tensor


def test_tensors_lie_in_the_file_under_their_place_in_the_tree(tmp_path: Path) -> None:
    networks = {'gru': nn.Linear(2, 1).state_dict()}
    save_state(tmp_path / 'a', {'networks': networks, 'x/y': [torch.ones(1)]}, {})
    with safe_open(tmp_path / 'a', framework='pt') as file:
        assert set(file.keys()) == {
            '/networks/gru/weight',
            '/networks/gru/bias',
            '/x~1y/0',
        }


@pytest.mark.parametrize('value', [{1, 2}, b'bytes', np.float32(1), np.int64(1), object()])
def test_a_value_of_another_type_is_refused_with_its_place(tmp_path: Path, value: Any) -> None:
    with pytest.raises(TypeError, match=rf'/a/1/b is a {type(value).__name__}'):
        save_state(tmp_path / 'a', {'a': [0, {'b': value}]}, {})
    assert list(tmp_path.iterdir()) == []


class Training:
    """A network with dropout, its optimiser and scheduler on seeded random batches."""

    def __init__(self, optimizer: Callable[[Any], torch.optim.Optimizer]) -> None:
        self.network = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = optimizer(self.network.parameters())
        # patience 0: the rate falls within the steps of the test
        self.scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(self.optimizer, patience=0)

    def step(self) -> float:
        self.optimizer.zero_grad()
        x = torch.randn(16, 4)
        loss = nn.functional.mse_loss(self.network(x), x.sum(1, keepdim=True))
        loss.backward()
        self.optimizer.step()
        self.scheduler.step(loss.item())
        return float(loss.item())

    def state(self) -> dict[str, Any]:
        return {
            'network': self.network.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'scheduler': self.scheduler.state_dict(),
            'random': torch.get_rng_state(),
        }

    def restore(self, tree: Any) -> None:
        self.network.load_state_dict(tree['network'])
        self.optimizer.load_state_dict(tree['optimizer'])
        self.scheduler.load_state_dict(tree['scheduler'])
        torch.set_rng_state(tree['random'])


@pytest.mark.parametrize(
    'optimizer',
    [
        pytest.param(lambda p: torch.optim.AdamW(p, lr=0.02, fused=True), id='fused AdamW'),
        pytest.param(lambda p: torch.optim.AdamW(p, lr=0.02, amsgrad=True), id='AdamW'),
        pytest.param(lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.5, 0.9)), id='Adam'),
        pytest.param(lambda p: torch.optim.Adam(p, lr=0.02, fused=True), id='fused Adam'),
    ],
)
def test_three_steps_saved_and_three_more_equal_six_bit_for_bit(
    tmp_path: Path, optimizer: Callable[[Any], torch.optim.Optimizer]
) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        whole = Training(optimizer)
        losses = [whole.step() for _ in range(6)]
        expected = whole.state()

        torch.manual_seed(11)
        first = Training(optimizer)
        found = [first.step() for _ in range(3)]
        save_state(tmp_path / 'a', first.state(), ABOUT)

        torch.manual_seed(99)
        second = Training(optimizer)
        second.restore(load_state(tmp_path / 'a').tree)
        assert_same(second.scheduler.state_dict(), first.scheduler.state_dict())
        found += [second.step() for _ in range(3)]
        assert_same(_plain(second.state()), _plain(expected))
    assert found == losses
    assert second.optimizer.param_groups[0]['lr'] < 0.02, 'the scheduler had something to do'


def _plain(tree: Any) -> Any:
    """Return a tree with plain dicts, as a loaded one has them."""
    return {key: _plain(one) for key, one in tree.items()} if isinstance(tree, dict) else tree


def test_the_file_before_is_kept_as_previous(tmp_path: Path) -> None:
    path = tmp_path / 'checkpoint.safetensors'
    for epoch in range(3):
        save_state(path, {'epoch': epoch}, {})
    assert load_state(path).tree == {'epoch': 2}
    assert load_state(previous_of(path)).tree == {'epoch': 1}
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name, previous_of(path).name]


def two_checkpoints(folder: Path) -> Path:
    path = folder / 'checkpoint.safetensors'
    save_state(path, {'epoch': 1, 'weight': torch.ones(3)}, ABOUT)
    save_state(path, {'epoch': 2, 'weight': torch.ones(3)}, ABOUT)
    return path


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_is_an_error_with_the_room_needed_and_both_checkpoints_stay(
    tmp_path: Path,
) -> None:
    path = two_checkpoints(tmp_path)
    Path(f'{path}.partial').symlink_to('/dev/full')  # each write to it ends with ENOSPC
    with pytest.raises(DataError, match=r'No space left .* needs 4\.\d+ MB and .* are free'):
        save_state(path, {'epoch': 3, 'weight': torch.ones(1_000_000)}, ABOUT)
    assert load_state(path).tree['epoch'] == 2
    assert load_state(previous_of(path)).tree['epoch'] == 1
    assert not Path(f'{path}.partial').is_symlink()
    save_state(path, {'epoch': 3}, ABOUT)
    assert load_state(path).tree == {'epoch': 3}


LIMITED = """
import resource, sys
from pathlib import Path
import torch
from heqis_core.errors import HeqisError
from heqis_training.checkpoint import save_state
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    save_state(Path(sys.argv[1]), {'epoch': 3, 'weight': torch.ones(1_000_000)}, {})
except HeqisError as error:
    print(error)
"""


@pytest.mark.skipif(os.name == 'nt', reason='RLIMIT_FSIZE is of POSIX')
def test_a_write_that_ends_half_way_leaves_the_last_good_checkpoint(tmp_path: Path) -> None:
    path = two_checkpoints(tmp_path)
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(sys.path), 'OMP_NUM_THREADS': '1'}
    done = subprocess.run(
        [sys.executable, '-c', LIMITED, str(path)],
        env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert 'cannot be written (File too large): it needs 4.00' in done.stdout
    assert str(path) in done.stdout
    found = load_latest(path)
    assert found is not None
    assert (found.path, found.tree['epoch']) == (path, 2)
    assert sorted(one.name for one in tmp_path.iterdir()) == [path.name, previous_of(path).name]


def test_a_folder_that_is_gone_is_an_error_and_no_crash(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'cannot be written \(.+\); make it so'):
        save_state(tmp_path / 'none' / 'a', {}, {})
    with pytest.raises(DataError, match=r'run\.json: cannot be written'):
        write_durable(tmp_path / 'none' / 'run.json', b'{}')


def test_each_cut_and_each_flipped_bit_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / 'a'
    save_state(path, {'epoch': 1, 'betas': (0.9, 0.999), 'w': torch.ones(3)}, ABOUT)
    data = path.read_bytes()
    random = np.random.default_rng(5)
    damaged = tmp_path / 'damaged'
    for place in range(len(data)):
        damaged.write_bytes(data[:place])
        with pytest.raises(DataError, match='damaged'):
            load_state(damaged)
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(random.integers(8))
        damaged.write_bytes(flipped)
        with pytest.raises(DataError, match='damaged'):
            load_state(damaged)


@pytest.mark.parametrize(
    'data', [b'', b'PK\x03\x04 a pickle in a zip', b'\x02\0\0\0\0\0\0\0{}', b'\xff' * 100,
             b'\x02\0\0\0\0\0\0\0[]', b'\x15\0\0\0\0\0\0\0{"__metadata__":null}']
)  # fmt: skip
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / 'foreign'
    path.write_bytes(data)
    with pytest.raises(DataError, match='foreign: no checkpoint of heqis train'):
        load_state(path)


def test_a_file_of_another_format_version_is_refused_and_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = two_checkpoints(tmp_path)
    monkeypatch.setattr('heqis_training.checkpoint.FORMAT', '2')
    save_state(path, {'epoch': 3}, ABOUT)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match='checkpoint of format 2, this version reads 1'):
        load_latest(path)


def test_a_damaged_newest_falls_back_to_the_previous_and_never_replaces_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two_checkpoints(tmp_path)
    damaged = path.read_bytes()[:-1]
    path.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        found = load_latest(path)
    assert found is not None
    assert (found.path, found.tree['epoch']) == (path, 1)
    (record,) = caplog.records
    message = record.getMessage()
    assert f'{path}: checkpoint is cut' in message
    assert f'going on from the one before, {previous_of(path).name}; the damaged' in message
    again = load_latest(path)
    assert again is not None
    assert again.tree['epoch'] == 1
    assert len(caplog.records) == 1, 'the second call finds all well'
    assert Path(f'{path}.damaged').read_bytes() == damaged
    save_state(path, {'epoch': 2}, ABOUT)
    assert load_state(previous_of(path)).tree['epoch'] == 1


def test_without_hard_links_a_save_still_keeps_the_previous_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: Path) -> None:
        raise PermissionError('no hard links here')

    monkeypatch.setattr(os, 'link', refuse)
    path = two_checkpoints(tmp_path)
    assert load_state(path).tree['epoch'] == 2
    assert load_state(previous_of(path)).tree['epoch'] == 1


def test_a_save_cut_between_the_two_moves_leaves_whole_files_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = two_checkpoints(tmp_path)
    replace, moves = os.replace, []

    def cut(source: Path, target: Path) -> None:
        moves.append(target)
        if len(moves) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, 'replace', cut)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {'epoch': 3}, ABOUT)
    monkeypatch.undo()
    assert load_state(path).tree['epoch'] == 2
    assert load_state(previous_of(path)).tree['epoch'] == 2
    save_state(path, {'epoch': 3}, ABOUT)
    save_state(path, {'epoch': 4}, ABOUT)
    assert load_state(path).tree['epoch'] == 4
    assert load_state(previous_of(path)).tree['epoch'] == 3


def test_a_missing_newest_where_there_are_no_hard_links_falls_back_to_the_previous(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = two_checkpoints(tmp_path)
    path.replace(previous_of(path))
    with caplog.at_level(logging.WARNING):
        found = load_latest(path)
    assert found is not None
    assert found.tree['epoch'] == 2
    assert 'going on from the one before' in caplog.text


def test_two_damaged_checkpoints_are_an_error_and_none_is_a_fresh_start(tmp_path: Path) -> None:
    assert load_latest(tmp_path / 'checkpoint.safetensors') is None
    path = two_checkpoints(tmp_path)
    path.write_bytes(b'x')
    previous_of(path).write_bytes(b'y')
    with pytest.raises(DataError, match='remove both to start anew, or train into another folder'):
        load_latest(path)
    previous_of(path).unlink()
    with pytest.raises(DataError, match=r'there is no checkpoint\.safetensors\.previous'):
        load_latest(path)
    assert path.read_bytes() == b'x'


def test_another_kind_settings_or_data_is_refused_by_each_name(tmp_path: Path) -> None:
    save_state(tmp_path / 'a', {}, ABOUT)
    state = load_state(tmp_path / 'a')
    check_about(state, ABOUT)
    with pytest.raises(ConfigError) as caught:
        check_about(state, {'kind': 'training', 'settings': 'xyz', 'data': '4', 'spec': 's'})
    text = str(caught.value)
    assert 'settings is abc, now xyz; data is 0123, now 4; spec is absent, now s' in text
    assert 'kind is' not in text
    assert '--run' in text


def test_weights_of_another_architecture_are_refused_by_name_and_shape(tmp_path: Path) -> None:
    path = tmp_path / 'a'
    weights = {'gru': nn.GRU(3, 4).state_dict(), 'head': nn.Linear(4, 2).state_dict()}
    save_state(path, weights, {})
    found = load_state(path).tree
    head = nn.Linear(4, 2)
    check_weights(path, {'head': head, 'gru': nn.GRU(3, 4)}, found)
    with pytest.raises(ConfigError) as caught:
        check_weights(path, {'head': head, 'gru': nn.GRU(3, 5)}, found)
    text = str(caught.value)
    assert f'{path}: checkpoint of another architecture: gru: weight_ih_l0' in text
    assert 'weight_ih_l0 is float32 (12, 3), now float32 (15, 3)' in text
    assert 'head:' not in text
    assert '--run' in text
    with pytest.raises(ConfigError, match='it has no network lstm; network head is not in'):
        check_weights(path, {'gru': nn.GRU(3, 4), 'lstm': nn.LSTM(3, 4)}, found)
    with pytest.raises(ConfigError, match=r'gru: it has no tensor weight_ih_l1; .*; and 2 more'):
        check_weights(path, {'gru': nn.GRU(3, 6, 2), 'head': head}, found)
    with pytest.raises(ConfigError, match=r'bias is float32 \(2,\), now bfloat16 \(2,\)'):
        check_weights(path, {'gru': nn.GRU(3, 4), 'head': nn.Linear(4, 2).bfloat16()}, found)
