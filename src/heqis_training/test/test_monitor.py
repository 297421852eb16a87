# SPDX-License-Identifier: Apache-2.0
"""What a training tells: the table survives a resume, TensorBoard, terminal and curves get it."""

from __future__ import annotations

import io
import logging
import math
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from heqis_core.errors import DataError
from heqis_core.features.spec import default_spec
from heqis_training.monitor import (
    SILENT,
    Curves,
    EpochFigures,
    History,
    Monitor,
    Note,
    TensorBoard,
    Terminal,
    monitoring,
    read_history,
)
from heqis_training.run_folder import hold_run
from heqis_training.settings import TrainingSettings

EPOCHS = 8


def encoder_epoch(epoch: int) -> list[EpochFigures]:
    return [EpochFigures('encoder', epoch, 3, {'loss': 1 / epoch, 'validation_loss': 0.1 * epoch})]


def epoch_rows(epoch: int) -> list[EpochFigures]:
    generator = {'loss': 3 / epoch, 'validation_mse': 0.1 + epoch / 7, 'learning_rate': 2e-5}
    if epoch >= 5:
        generator['weight_d0'] = 1 / 3  # a figure that is not there from the first epoch on
    rows = [EpochFigures(name, epoch, EPOCHS, dict(generator)) for name in ('gru', 'lstm')]
    return [*rows, EpochFigures('d0', epoch, EPOCHS, {'loss': math.inf if epoch == 2 else 0.7})]


def tell(monitor: Monitor, first: int, last: int, note_first: bool = False) -> None:
    """Tell epochs of the generators; every third one has notes, before or after its figures."""
    for epoch in range(first, last + 1):
        notes = [Note(epoch, f'distilled gru -> lstm: kept, epoch {epoch}, "so, so"\nnext')]
        if epoch % 3:
            notes = []
        for note in notes if note_first else []:
            monitor.note(note)
        monitor.epoch(epoch_rows(epoch))
        for note in [] if note_first else notes:
            monitor.note(note)


def tell_encoder(monitor: Monitor) -> None:
    for epoch in range(1, 4):
        monitor.epoch(encoder_epoch(epoch))


KEPT = {'encoder': 3, 'gru': 0, 'lstm': 0, 'd0': 0}


def kept_at(epoch: int) -> dict[str, int]:
    return {**KEPT, 'gru': epoch, 'lstm': epoch, 'd0': epoch}


def test_the_table_reads_back_every_figure_bit_for_bit(tmp_path: Path) -> None:
    history = History(tmp_path / 'history.csv', {})
    tell_encoder(history)
    tell(history, 1, EPOCHS)
    history.close()
    rows = list(read_history(tmp_path / 'history.csv'))
    expected = [row for epoch in range(1, 4) for row in encoder_epoch(epoch)]
    expected += [row for epoch in range(1, EPOCHS + 1) for row in epoch_rows(epoch)]
    assert [row for row in rows if isinstance(row, EpochFigures)] == expected
    assert [row for row in rows if isinstance(row, Note)] == [
        Note(epoch, f'distilled gru -> lstm: kept, epoch {epoch}, "so, so" next')
        for epoch in (3, 6)
    ]
    lines = (tmp_path / 'history.csv').read_text().splitlines()
    assert lines[0].startswith('network,epoch,epochs,note,loss,validation_loss,validation_mse')
    assert len(lines) == 1 + len(rows)


@settings(max_examples=25)  # each is forced to the disk
@given(values=st.lists(st.floats(allow_nan=False), min_size=1, max_size=4))
def test_any_float_keeps_its_bits_in_the_table(
    values: list[float], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / 'floats.csv'
    row = EpochFigures('gru', 1, 1, {f'f{i}': value for i, value in enumerate(values)})
    History(path, {}).epoch([row])
    (found,) = read_history(path)
    assert isinstance(found, EpochFigures)
    assert [one.hex() for one in found.figures.values()] == [one.hex() for one in values]


@pytest.mark.parametrize('note_first', [False, True])
@pytest.mark.parametrize('crash', [0, 1, 3, 4, 5, 6, EPOCHS])
@pytest.mark.parametrize('behind', [0, 1])
def test_after_a_resume_the_table_equals_that_of_an_uninterrupted_run(
    tmp_path: Path, crash: int, behind: int, note_first: bool
) -> None:
    whole, path = tmp_path / 'whole.csv', tmp_path / 'history.csv'
    history = History(whole, {})
    tell_encoder(history)
    tell(history, 1, EPOCHS, note_first)

    history = History(path, {})
    tell_encoder(history)
    tell(history, 1, crash, note_first)
    if note_first:
        history.note(Note(crash + 1, 'told before the epoch that the crash cut off'))
    with path.open('ab') as file:
        file.write(b'gru,9,8,,0.1')  # and a row that it cut
    saved = max(0, crash - behind)  # the checkpoint that is left
    history = History(path, kept_at(saved))
    tell(history, saved + 1, EPOCHS, note_first)
    assert path.read_bytes() == whole.read_bytes()


def test_a_start_without_a_checkpoint_begins_an_empty_table(tmp_path: Path) -> None:
    path = tmp_path / 'history.csv'
    tell(History(path, {}), 1, 3)
    assert History(path, {}).last_epoch == 0
    assert list(read_history(path)) == []
    assert path.read_text() == 'network,epoch,epochs,note\n'


def test_rows_that_are_missing_are_named_in_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / 'history.csv'
    tell(History(path, {}), 1, 3)
    with caplog.at_level(logging.WARNING):
        History(path, kept_at(3))
        assert 'encoder' in caplog.text
        assert 'gru' not in caplog.text
        History(path, {'gru': 5, 'lstm': 3, 'd0': 3})
    assert 'epochs 4 to 5 of gru are missing' in caplog.text


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('', r':0: .*columns are \[\]'),
        ('a,b\n', r':1: .*columns are'),
        ('network,epoch,epochs,note,loss\ngru,1,2,,0.5\ngru,2,2,\n', ':3: .*4 cells, expected 5'),
        ('network,epoch,epochs,note,loss\ngru,1,2,,half\n', ":2: .*'half'"),
        ('network,epoch,epochs,note,loss\ngru,one,2,,1\n', ":2: .*'one'"),
    ],
)
def test_what_is_no_table_is_named_by_file_and_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / 'history.csv'
    path.write_text(content)
    with pytest.raises(DataError, match=r'history\.csv' + message):
        list(read_history(path))
    with pytest.raises(DataError, match='cannot be read'):
        list(read_history(tmp_path / 'none.csv'))


@pytest.mark.skipif(not Path('/dev/full').exists(), reason='needs /dev/full')
def test_a_full_disk_under_the_table_is_an_error_by_name(tmp_path: Path) -> None:
    path = tmp_path / 'history.csv'
    history = History(path, {})
    history.epoch(encoder_epoch(1))
    path.unlink()
    path.symlink_to('/dev/full')
    with pytest.raises(DataError, match=r'history\.csv: cannot be written \(No space left'):
        history.epoch(encoder_epoch(2))


def scalars(folder: Path, network: str, tag: str) -> list[tuple[int, float]]:
    reader = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    events = reader.EventAccumulator(str(folder / network))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_tensorboard_has_each_epoch_once_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip('tensorboard')
    board = TensorBoard(tmp_path, {}, 0)
    tell_encoder(board)
    tell(board, 1, 6)
    board.close()
    board = TensorBoard(tmp_path, kept_at(4), 4)
    tell(board, 5, EPOCHS)
    board.close()
    assert {one.name for one in tmp_path.iterdir()} == {'encoder', 'gru', 'lstm', 'd0', 'notes'}
    found = scalars(tmp_path, 'gru', 'validation_mse')
    assert [step for step, _ in found] == list(range(1, EPOCHS + 1))
    expected = [epoch_rows(epoch)[0].figures['validation_mse'] for epoch, _ in found]
    assert [value for _, value in found] == pytest.approx(expected)
    assert [step for step, _ in scalars(tmp_path, 'encoder', 'loss')] == [1, 2, 3]


def test_without_room_for_tensorboard_training_goes_on_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip('tensorboard')
    (tmp_path / 'tensorboard').write_text('a file where the folder should be')
    board = TensorBoard(tmp_path / 'tensorboard', {}, 0)
    with caplog.at_level(logging.WARNING):
        tell(board, 1, 3)
        board.close()
    (record,) = [one for one in caplog.records if one.name == 'heqis_training.monitor']
    assert 'no more logs for TensorBoard' in record.getMessage()


def test_without_the_tensorboard_package_training_goes_on_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)  # makes import fail
    board = TensorBoard(tmp_path, {}, 0)
    with caplog.at_level(logging.WARNING):
        tell(board, 1, 3)
        board.close()
    assert len(caplog.records) == 1
    assert 'history.csv has the same figures' in caplog.text


def console(terminal: bool, width: int = 80) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=width, _environ={}), text


def training_rows(epoch: int, epochs: int = 100) -> list[EpochFigures]:
    """Give what Multi-GAN gives: two generators and a discriminator."""
    figures = {'mse': 1.03, 'validation_loss': 2.25 - epoch / 1000, 'validation_accuracy': 0.4}
    figures |= {'best_epoch': float(epoch), 'learning_rate': 2e-5}
    rows = [EpochFigures(name, epoch, epochs, figures) for name in ('gru', 'transformer')]
    against = {'discriminator_loss': 1.3894, 'learning_rate': 2e-5}
    return [*rows, EpochFigures('discriminator_1', epoch, epochs, against)]


def test_without_a_terminal_an_epoch_is_one_line_of_losses_with_the_best_epochs() -> None:
    screen, text = console(False)
    terminal = Terminal(screen)
    terminal.epoch(training_rows(50))
    terminal.close()
    assert text.getvalue() == (
        'epoch 50/100: validation_loss gru 2.2 (best 50), transformer 2.2 (best 50); '
        'discriminator_loss discriminator_1 1.389\n'
    )


def test_without_a_terminal_there_is_one_line_for_each_epoch_and_note() -> None:
    screen, text = console(False)
    terminal = Terminal(screen)
    tell(terminal, 1, 3)
    terminal.close()
    lines = text.getvalue().splitlines()
    assert lines[0] == 'epoch 1/8: loss gru 3, lstm 3, d0 0.7'
    assert [line.split(':')[0] for line in lines[:4]] == [
        'epoch 1/8', 'epoch 2/8', 'epoch 3/8', 'epoch 3',
    ]  # fmt: skip
    assert 'distilled gru -> lstm: kept' in lines[3]


def test_on_a_terminal_there_is_one_bar_for_each_network() -> None:
    screen, text = console(True)
    terminal = Terminal(screen)
    tell_encoder(terminal)
    tell(terminal, 1, 4)
    terminal.close()
    last = text.getvalue().rsplit('encoder', 1)[1]
    assert all(name in last for name in ('gru', 'lstm', 'd0', '4/8', 'loss 0.75'))
    assert '3/3' in last
    assert 'distilled' in text.getvalue()


@pytest.mark.parametrize('width', [80, 120])
def test_bars_with_names_epochs_and_losses_fit_the_terminal(width: int) -> None:
    screen, text = console(True, width)
    terminal = Terminal(screen)
    terminal.epoch(training_rows(100))
    terminal.close()
    shown = text.getvalue()
    last = shown[shown.rindex('gru') :]
    assert '…' not in last
    for words in (
        '100/100',
        'validation 2.15 (best 100)',
        'discriminator_1',
        'discriminator 1.389',
    ):
        assert words in last


def test_the_silent_monitor_takes_everything_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    tell(SILENT, 1, 3)
    SILENT.close()
    assert capfd.readouterr() == ('', '')


def test_curves_are_drawn_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    pytest.importorskip('matplotlib')
    history = History(tmp_path / 'history.csv', {})
    picture = tmp_path / 'curves.png'
    curves = Curves(tmp_path / 'history.csv', picture, every=2)

    def both(rows: Sequence[EpochFigures]) -> None:
        history.epoch(rows)
        curves.epoch(rows)

    both(epoch_rows(1))
    assert not picture.exists()
    both(epoch_rows(2))
    assert picture.read_bytes().startswith(b'\x89PNG')
    picture.unlink()
    curves.close()
    assert not picture.exists(), 'there was nothing new to draw'
    both(epoch_rows(3))
    assert not picture.exists()
    curves.close()
    assert picture.exists()


def test_curves_that_cannot_be_drawn_are_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    curves = Curves(tmp_path / 'none.csv', tmp_path / 'curves.png', every=1)
    with caplog.at_level(logging.WARNING):
        tell(curves, 1, 3)
        curves.close()
    (record,) = caplog.records
    assert 'curves.png: is not drawn' in record.getMessage()
    monkeypatch.setitem(sys.modules, 'heqis_training.curves', None)
    curves = Curves(tmp_path / 'none.csv', tmp_path / 'curves.png', every=0)
    with caplog.at_level(logging.WARNING):
        tell(curves, 1, 3)
        assert len(caplog.records) == 1
        curves.close()
    assert len(caplog.records) == 2


def test_a_monitored_run_has_table_logs_lines_and_picture_even_after_an_error(
    tmp_path: Path,
) -> None:
    screen, text = console(False)
    with hold_run(tmp_path / 'run', TrainingSettings(), default_spec(True), 'ab') as run:
        with suppress(ZeroDivisionError), monitoring(run, screen, {}, draw_every=0) as monitor:
            tell_encoder(monitor)
            tell(monitor, 1, 5)
            raise ZeroDivisionError
        assert run.curves.exists()
        with monitoring(run, screen, kept_at(4), draw_every=0) as monitor:
            tell(monitor, 5, EPOCHS)
        assert run.curves.exists()
        figures = [row for row in read_history(run.history) if isinstance(row, EpochFigures)]
        assert [row.epoch for row in figures if row.network == 'gru'] == list(range(1, EPOCHS + 1))
        steps = [step for step, _ in scalars(run.tensorboard, 'lstm', 'loss')]
        assert steps == list(range(1, EPOCHS + 1))
    assert 'epoch 8/8: loss gru' in text.getvalue()
