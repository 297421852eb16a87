# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: for one to eight networks, odd values, and tables without a curve."""

from __future__ import annotations

import math
import struct
import sys
from pathlib import Path

import pytest

pytest.importorskip('matplotlib')

from heqis_core.errors import DataError
from heqis_training.curves import Curve, best_epoch, draw_curves
from heqis_training.monitor import EpochFigures, History, Note


def table(path: Path, n_networks: int, n_epochs: int) -> Path:
    history = History(path, {})
    for epoch in range(1, n_epochs + 1):
        history.epoch(
            [
                EpochFigures(
                    f'network_{index}', epoch, n_epochs,
                    {
                        'loss': 2 + math.exp(-epoch / 9) * (1 + index / 5),
                        'adversarial': 0.7,
                        'validation_mse': 1 + 0.01 * (epoch - 10 - index) ** 2 + index / 3,
                        'validation_accuracy': 0.5 - 0.001 * (epoch - 12 - index) ** 2,
                        'learning_rate': 2e-5 * 0.1 ** (epoch // 16),
                    },
                )
                for index in range(n_networks)
            ]
        )  # fmt: skip
    history.note(Note(n_epochs, 'the end'))
    return path


def size_of(picture: Path) -> tuple[int, int]:
    data = picture.read_bytes()
    assert data.startswith(b'\x89PNG\r\n\x1a\n')
    width, height = struct.unpack('>II', data[16:24])
    return int(width), int(height)


@pytest.mark.parametrize('n_networks', [1, 8])
def test_a_picture_is_drawn_for_few_and_many_networks(tmp_path: Path, n_networks: int) -> None:
    picture = tmp_path / 'curves.png'
    draw_curves(table(tmp_path / 'history.csv', n_networks, 30), picture)
    width, height = size_of(picture)
    assert width > 1000
    assert height > 600
    assert sorted(one.name for one in tmp_path.iterdir()) == ['curves.png', 'history.csv']


def test_no_pyplot_and_no_window_system_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'matplotlib.pyplot', None)  # makes import fail
    draw_curves(table(tmp_path / 'history.csv', 1, 1), tmp_path / 'curves.png')
    assert size_of(tmp_path / 'curves.png')[0] > 0


@pytest.mark.filterwarnings('error')
@pytest.mark.parametrize('value', [math.nan, math.inf, 0.0, -1.0])
def test_figures_without_a_finite_or_positive_value_are_drawn_without_a_warning(
    tmp_path: Path, value: float
) -> None:
    history = History(tmp_path / 'history.csv', {})
    for epoch in (1, 2):
        figures = {'loss': value, 'validation_mse': value, 'learning_rate': value}
        history.epoch([EpochFigures('gru', epoch, 2, figures)])
    draw_curves(tmp_path / 'history.csv', tmp_path / 'curves.png')
    assert size_of(tmp_path / 'curves.png')[0] > 0


def test_the_best_epoch_is_the_lowest_error_and_the_highest_accuracy() -> None:
    values = [3.0, math.nan, 1.0, -math.inf, 2.0]
    curve = Curve('gru', [1, 2, 3, 4, 5], values)
    assert best_epoch('validation_mse', curve) == 2
    assert best_epoch('validation_accuracy', curve) == 0
    assert best_epoch('validation_mcc', curve) == 0
    assert best_epoch('validation_loss', Curve('gru', [1], [math.nan])) is None


def test_a_table_without_a_curve_is_refused_by_name(tmp_path: Path) -> None:
    history = History(tmp_path / 'history.csv', {})
    history.epoch([EpochFigures('gru', 1, 1, {'adversarial': 1.0})])
    with pytest.raises(DataError, match=r'history\.csv: holds no loss, validation figure or rate'):
        draw_curves(tmp_path / 'history.csv', tmp_path / 'curves.png')
    assert not (tmp_path / 'curves.png').exists()
    table(tmp_path / 'history.csv', 1, 1)
    with pytest.raises(DataError, match=r'curves\.png: cannot be written'):
        draw_curves(tmp_path / 'history.csv', tmp_path / 'none' / 'curves.png')
