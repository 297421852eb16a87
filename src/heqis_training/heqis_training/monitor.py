# SPDX-License-Identifier: Apache-2.0
"""What a training tells while it runs: to a table, to TensorBoard, to the terminal and a picture.

The trainer gives the figures of each epoch to a `Monitor` and knows nothing of where they go. The
table is the record: after a resume it equals that of an uninterrupted run.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from heqis_core.errors import DataError
from heqis_training.checkpoint import write_durable
from heqis_training.run_folder import Run

_FIXED = ['network', 'epoch', 'epochs', 'note']
"""First columns of the table; those of the figures follow."""
_NOTES = 'notes'
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EpochFigures:
    """What one epoch of one network gave.

    Attributes:
        network: its name.
        epoch: from 1.
        epochs: at most this many are planned.
        figures: by name. Those that end in `loss` are told on the terminal, with `best_epoch` at
            those of the validation part; they, what begins with `validation`, and `learning_rate`
            are drawn; the table and TensorBoard have all of them.
    """

    network: str
    epoch: int
    epochs: int
    figures: Mapping[str, float]


@dataclass(frozen=True)
class Note:
    """Something that happened in an epoch, given just before or after its figures.

    Epoch 0 is for what comes after the last one, which no checkpoint covers.
    """

    epoch: int
    text: str


class Monitor(Protocol):
    """Takes what a training tells. Call it before the checkpoint of the same epoch is saved."""

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        """Take the figures of the networks, at least one, that were trained in one epoch."""

    def note(self, note: Note) -> None:
        """Take an event."""

    def close(self) -> None:
        """Write and draw what is left."""


@contextmanager
def monitoring(
    run: Run, console: Console, kept: Mapping[str, int], draw_every: int
) -> Iterator[Monitor]:
    """Give a monitor that tells the table, TensorBoard, the console and the curves of a run.

    Args:
        run: held by this process.
        console: gets progress bars if it is a terminal, else one line per epoch.
        kept: last epoch of each network in the checkpoint that training goes on from; empty for a
            new run.
        draw_every: epochs between two drawings of the curves, beside the one at the end; 0: none.
    """
    history = History(run.history, kept)
    monitor = _Several(
        (
            history,
            TensorBoard(run.tensorboard, kept, history.last_epoch),
            Terminal(console),
            Curves(run.history, run.curves, draw_every),
        )
    )
    try:
        yield monitor
    finally:
        monitor.close()


class History:
    """The table: CSV, one row per epoch and network, and one for each note.

    Rows that the checkpoint does not cover are removed when it is opened, because training gives
    them again. Each call is on the disk when it returns. Raises DataError if the file cannot be
    written, or holds a row that is none.
    """

    def __init__(self, path: Path, kept: Mapping[str, int]) -> None:
        self.path = path
        rows = list(_covered(read_history(path), kept)) if path.exists() else []
        self.last_epoch = rows[-1].epoch if rows else 0
        self._warn_of_missing(rows, kept)
        self._rewrite(rows)

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        """Append one row per network."""
        if any(name not in self._names for row in rows for name in row.figures):
            self._rewrite([*read_history(self.path), *rows])
        else:
            self._append(rows)

    def note(self, note: Note) -> None:
        """Append one row that has a note and no figures."""
        self._append([note])

    def close(self) -> None:
        """Do nothing: every row is written."""

    def _append(self, rows: Sequence[EpochFigures | Note]) -> None:
        try:
            with self.path.open('ab') as file:
                file.write(_lines(rows, self._names))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f'{self.path}: cannot be written ({error.strerror}); make room there, then start '
                'the same command again: it goes on from the last checkpoint'
            ) from error

    def _rewrite(self, rows: Sequence[EpochFigures | Note]) -> None:
        figures = [row.figures for row in rows if isinstance(row, EpochFigures)]
        # in order of their first use, each once
        self._names = list(dict.fromkeys(name for one in figures for name in one))
        head = ','.join([*_FIXED, *self._names]) + '\n'
        write_durable(self.path, head.encode() + _lines(rows, self._names))

    def _warn_of_missing(
        self, rows: Sequence[EpochFigures | Note], kept: Mapping[str, int]
    ) -> None:
        found = {row.network: row.epoch for row in rows if isinstance(row, EpochFigures)}
        for network, epoch in kept.items():
            if found.get(network, 0) < epoch:
                _log.warning(
                    '%s: epochs %d to %d of %s are missing; the checkpoint has them, the curves '
                    'will not', self.path, found.get(network, 0) + 1, epoch, network,
                )  # fmt: skip


def read_history(path: Path) -> Iterator[EpochFigures | Note]:
    """Yield the rows of a table, oldest first; a last line that was cut is left out.

    Raises DataError that names file and line for what is no such table.
    """
    try:
        text = path.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f'{path}: cannot be read ({error}); give the table of a run') from error
    lines = csv.reader(text[: text.rfind('\n') + 1].splitlines())
    try:
        head = next(lines, [])
        if head[: len(_FIXED)] != _FIXED:
            raise ValueError(f'columns are {head}, expected {", ".join(_FIXED)} and figures')
        for cells in lines:
            yield _row(head, cells)
    except (ValueError, csv.Error) as error:
        raise DataError(
            f'{path}:{lines.line_num}: no row of this table ({error}); remove the line'
        ) from error


class TensorBoard:
    """Logs for TensorBoard, one run per network, so that it draws them over one another.

    Steps after those that the checkpoint covers are purged. Training goes on without the logs if
    TensorBoard is not installed or its files cannot be written: that is logged once.
    """

    def __init__(self, folder: Path, kept: Mapping[str, int], last_epoch: int) -> None:
        self._folder = folder
        self._kept = {**kept, _NOTES: last_epoch}
        self._writers: dict[str, Any] = {}
        self._off = False

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        """Add each figure at its epoch."""
        self._try(lambda: self._add(rows))

    def note(self, note: Note) -> None:
        """Add the text at its epoch."""
        self._try(lambda: self._writer(_NOTES).add_text('note', note.text, note.epoch))

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            self._try(writer.close)

    def _add(self, rows: Sequence[EpochFigures]) -> None:
        for row in rows:
            writer = self._writer(row.network)
            for name, value in row.figures.items():
                writer.add_scalar(name, value, row.epoch)
            writer.flush()

    def _try(self, action: Callable[[], None]) -> None:
        if self._off:
            return
        try:
            action()
        except (ImportError, OSError) as error:
            self._off = True
            _log.warning(
                '%s: no more logs for TensorBoard (%s); history.csv has the same figures',
                self._folder, error,
            )  # fmt: skip

    def _writer(self, network: str) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # takes a second, and may be absent

        if network not in self._writers:
            self._writers[network] = SummaryWriter(
                self._folder / network, purge_step=self._kept.get(network, 0) + 1
            )
        return self._writers[network]


class Terminal:
    """A progress bar for each network on a terminal, elsewhere one line per epoch."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tasks: dict[str, Any] = {}
        self._progress = Progress(
            TextColumn('{task.description}', markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn('{task.fields[figures]}', markup=False),
            console=console,
        )

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        """Move the bars, or print a line."""
        if not self._console.is_terminal:
            self._print(f'epoch {rows[0].epoch}/{rows[0].epochs}: {_line(rows)}')
            return
        self._progress.start()
        for row in rows:
            if row.network not in self._tasks:
                self._tasks[row.network] = self._progress.add_task(row.network, figures='')
            self._progress.update(
                self._tasks[row.network],
                completed=row.epoch,
                total=row.epochs,
                figures=_beside_bar(row),
            )

    def note(self, note: Note) -> None:
        """Print it, above the bars."""
        self._print(f'epoch {note.epoch}: {note.text}' if note.epoch else note.text)

    def close(self) -> None:
        """Leave the bars as they are."""
        if self._console.is_terminal:  # elsewhere there are none, and it would print an empty line
            self._progress.stop()

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, markup=False, highlight=False)


class Curves:
    """Draws the table at the end, and every `every` epochs; a failure is logged once."""

    def __init__(self, history: Path, picture: Path, every: int) -> None:
        self._history, self._picture, self._every = history, picture, every
        self._new = False
        self._off = False

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        """Draw if it is time to."""
        self._new = True
        if self._every and any(row.epoch % self._every == 0 for row in rows):
            self._draw()

    def note(self, note: Note) -> None:
        """Do nothing: notes are not drawn."""

    def close(self) -> None:
        """Draw what has not been drawn."""
        self._draw()

    def _draw(self) -> None:
        if self._off or not self._new:
            return
        try:
            from heqis_training.curves import draw_curves  # with matplotlib, which may be absent

            draw_curves(self._history, self._picture)
            self._new = False
        except (ImportError, DataError) as error:
            self._off = True
            _log.warning('%s: is not drawn (%s)', self._picture, error)


class _Several:
    """Gives everything to several monitors, in order."""

    def __init__(self, monitors: tuple[Monitor, ...]) -> None:
        self._monitors = monitors

    def epoch(self, rows: Sequence[EpochFigures]) -> None:
        for monitor in self._monitors:
            monitor.epoch(rows)

    def note(self, note: Note) -> None:
        for monitor in self._monitors:
            monitor.note(note)

    def close(self) -> None:
        with ExitStack() as stack:  # each is closed, whatever another one raises
            for monitor in reversed(self._monitors):
                stack.callback(monitor.close)


SILENT: Monitor = _Several(())
"""Tells nobody: for the processes that train beside the one that does."""


def is_shown(figure: str) -> bool:
    """Return whether a figure of this name is drawn."""
    return figure.endswith('loss') or figure.startswith(('training', 'validation'))


def _line(rows: Sequence[EpochFigures]) -> str:
    """Return the losses of an epoch, one after the other, each with all its networks."""
    told: dict[str, list[str]] = {}
    for row in rows:
        for name, text in _losses(row).items():
            told.setdefault(name, []).append(f'{row.network} {text}')
    return '; '.join(f'{name} {", ".join(networks)}' for name, networks in told.items())


def _beside_bar(row: EpochFigures) -> str:
    """Return the last loss of a network, that of validation if it has one, in few letters."""
    *_, (name, text) = [('', ''), *_losses(row).items()]
    return f'{name.partition("_")[0]} {text}'


def _losses(row: EpochFigures) -> dict[str, str]:
    best = row.figures.get('best_epoch')
    marked = '' if best is None else f' (best {best:.0f})'
    return {
        name: f'{value:.4g}{marked if name.startswith("validation") else ""}'
        for name, value in row.figures.items()
        if name.endswith('loss')
    }


def _covered(
    rows: Iterator[EpochFigures | Note], kept: Mapping[str, int]
) -> Iterator[EpochFigures | Note]:
    """Yield the rows up to the first one that is newer than the checkpoint."""
    last = 0
    notes: list[Note] = []
    for row in rows:
        if isinstance(row, Note):
            notes.append(row)
        elif row.epoch > kept.get(row.network, 0):
            break
        else:
            yield from notes
            yield row
            last = row.epoch
            notes = []
    yield from (note for note in notes if note.epoch == last)


def _row(head: Sequence[str], cells: Sequence[str]) -> EpochFigures | Note:
    if len(cells) != len(head):
        raise ValueError(f'{len(cells)} cells, expected {len(head)}')
    network, epoch, epochs, note, *values = cells
    if not network:
        return Note(int(epoch), note)
    names = head[len(_FIXED) :]
    figures = {name: float(value) for name, value in zip(names, values, strict=True) if value}
    return EpochFigures(network, int(epoch), int(epochs), figures)


def _lines(rows: Sequence[EpochFigures | Note], names: Sequence[str]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    for row in rows:
        if isinstance(row, Note):
            words = ' '.join(row.text.split())  # one line of the file for each row
            writer.writerow(['', row.epoch, '', words, *('' for _ in names)])
        else:
            values = [
                repr(float(row.figures[name])) if name in row.figures else '' for name in names
            ]
            writer.writerow([row.network, row.epoch, row.epochs, '', *values])
    return text.getvalue().encode()
