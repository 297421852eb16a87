# SPDX-License-Identifier: Apache-2.0
"""The folder of one training run: what it was started with, the names of its files, its lock.

A run goes on only with the settings, features and data that it was started with, and only in one
process at a time.
"""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import msgspec
from filelock import FileLock, Timeout

from heqis_core.errors import ConfigError
from heqis_core.features.spec import FeatureSpec
from heqis_training.checkpoint import load_latest, write_durable
from heqis_training.settings import TrainingSettings, load_settings

DEFAULT_RUNS = 'output/runs'
SCHEMA = 1
PACKAGES = ('torch', 'numpy', 'numba', 'onnx', 'onnxruntime', 'msgspec')
"""What a bit of the result may depend on, besides Python."""

ENCODER_ONNX = 'encoder.onnx'
_INFO, _SETTINGS, _SPEC, _LOCK, _OWNER = (
    'run.json', 'settings.yaml', 'spec.json', 'run.lock', 'run.owner',
)  # fmt: skip
_LENGTH = ('fit.epochs', 'fit.patience')
"""Settings that say how long a run goes on, and may change while it does."""
_SHOWN = 8
"""Differences that a message names one by one."""
_ANOTHER = 'train into another folder (--run)'
_log = logging.getLogger(__name__)


class RunInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The content of `run.json`.

    Attributes:
        schema: version of this layout.
        settings: id of the settings.
        data: fingerprint of the bars.
        spec: id of the feature spec.
        features: names of its columns, in order.
        packages: versions that the run was started with.
        started: ISO 8601, UTC.
        finished: the same, once there is nothing left to train.
    """

    schema: int
    settings: str
    data: str
    spec: str
    features: tuple[str, ...]
    packages: dict[str, str]
    started: str
    finished: str | None = None


@dataclass(frozen=True)
class Run:
    """A run and where its files are.

    Attributes:
        path: the folder.
        info: what it was started with.
        settings: as resolved at its start.
        resumed: whether it was there before.
    """

    path: Path
    info: RunInfo
    settings: TrainingSettings
    resumed: bool

    @property
    def spec(self) -> Path:
        """Return the file of the feature spec."""
        return self.path / _SPEC

    @property
    def scaler(self) -> Path:
        """Return the file of the fitted scaler."""
        return self.path / 'scaler.json'

    @property
    def facts(self) -> Path:
        """Return the file of what is remembered of the bars."""
        return self.path / 'data.json'

    @property
    def indicators(self) -> Path:
        """Return the folder of the frames that the encoder learns from."""
        return self.path / 'indicators'

    @property
    def frames(self) -> Path:
        """Return the folder of the frames that the generators learn from."""
        return self.path / 'frames'

    @property
    def encoder(self) -> Path:
        """Return the file that the encoder's training goes on from."""
        return self.path / 'encoder.safetensors'

    @property
    def encoder_onnx(self) -> Path:
        """Return the file of the trained encoder."""
        return self.path / ENCODER_ONNX

    @property
    def encoder_golden(self) -> Path:
        """Return the file of its golden inputs and outputs."""
        return self.path / 'encoder.golden.npz'

    @property
    def checkpoint(self) -> Path:
        """Return the file that training goes on from."""
        return self.path / 'checkpoint.safetensors'

    @property
    def best(self) -> Path:
        """Return the file of each network's best state by validation."""
        return self.path / 'best.safetensors'

    @property
    def history(self) -> Path:
        """Return the table of figures, one row per epoch and network."""
        return self.path / 'history.csv'

    @property
    def curves(self) -> Path:
        """Return the picture of the history."""
        return self.path / 'curves.png'

    @property
    def tensorboard(self) -> Path:
        """Return the folder of TensorBoard's logs."""
        return self.path / 'tensorboard'

    @property
    def finished(self) -> bool:
        """Return whether there is nothing left to train."""
        return self.info.finished is not None

    @property
    def status(self) -> str:
        """Return one line for people: whether the run is new, goes on or is over."""
        if self.info.finished is not None:
            return (
                f'{self.path}: this run finished at {self.info.finished}; nothing is left to '
                f'train: evaluate or export it, or {_ANOTHER}'
            )
        if self.resumed:
            return f'{self.path}: going on with the run that started at {self.info.started}'
        return f'{self.path}: new run'

    def about(self, kind: str) -> dict[str, str]:
        """Return what a checkpoint of this run and kind is marked with; see `check_about`."""
        info = self.info
        return {'kind': kind, 'settings': info.settings, 'data': info.data, 'spec': info.spec}


@contextmanager
def hold_run(
    path: Path, settings: TrainingSettings, spec: FeatureSpec, data: str
) -> Iterator[Run]:
    """Create a run, or open it to go on with it, and keep every other process out.

    Args:
        path: folder; new, empty, or of a run that was started with the same three.
        settings: resolved settings.
        spec: features.
        data: fingerprint of the bars.

    The operating system lets go of the lock when the process ends, however it ends. Raises
    ConfigError if another process trains there, if the folder holds something else, or if the run
    was started with others: each setting that differs is named with its old and new value.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'{path}: run folder cannot be made ({error.strerror}); {_ANOTHER}'
        ) from error
    _refuse_other_content(path)
    lock = _lock(path)
    try:
        if (path / _INFO).exists():
            run = replace(read_run(path), resumed=True)
            _refuse_other_start(run, settings, spec, data)
            run = _lengthen(run, settings)
        else:
            run = _create(path, settings, spec, data)
        yield run
    finally:
        (path / _OWNER).unlink(missing_ok=True)
        lock.release()


def read_run(path: Path) -> Run:
    """Return a run to read from, whether or not a process trains in it.

    Raises ConfigError if the folder is no run, or its settings are not those it was started with.
    """
    file = path / _INFO
    try:
        info = msgspec.json.decode(file.read_bytes(), type=RunInfo)
    except OSError as error:
        raise ConfigError(
            f'{file}: cannot be read ({error.strerror}); name the folder of a run of heqis train'
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f'{file}: not of a run ({error}); {_ANOTHER}') from error
    if info.schema != SCHEMA:
        raise ConfigError(
            f'{file}: schema is {info.schema}, this version reads {SCHEMA}; use the version that '
            f'wrote it, or {_ANOTHER}'
        )
    settings = load_settings(path / _SETTINGS)
    if settings.id != info.settings:
        raise ConfigError(
            f'{path / _SETTINGS}: was changed after the run was started (settings id '
            f'{settings.id}, {_INFO} says {info.settings}); undo that, or {_ANOTHER}'
        )
    return Run(path, info, settings, resumed=False)


def finish_run(run: Run) -> Run:
    """Write down that nothing is left to train; return the run as it is now."""
    info = msgspec.structs.replace(run.info, finished=_now())
    _write_info(run.path, info)
    return replace(run, info=info)


def setting_differences(old: TrainingSettings, new: TrainingSettings) -> list[str]:
    """Return each setting that differs, with its dotted name, its old and its new value.

    How long the generators are trained may differ.
    """
    before, after = old.flat(), new.flat()
    return [
        f'{name} was {before.get(name, "absent")}, now {after.get(name, "absent")}'
        for name in {**before, **after}
        if before.get(name, 'absent') != after.get(name, 'absent') and name not in _LENGTH
    ]


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result may depend on."""
    found = {'python': platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = 'absent'
    return found


def _create(path: Path, settings: TrainingSettings, spec: FeatureSpec, data: str) -> Run:
    info = RunInfo(
        schema=SCHEMA,
        settings=settings.id,
        data=data,
        spec=spec.id,
        features=tuple(spec.names),
        packages=package_versions(),
        started=_now(),
    )
    write_durable(path / _SETTINGS, settings.to_yaml().encode())
    write_durable(path / _SPEC, spec.to_json().encode())
    _write_info(path, info)  # last: what has no run.json was never started
    return Run(path, info, settings, resumed=False)


def _lengthen(run: Run, settings: TrainingSettings) -> Run:
    """Let a run go on for as long as it is told now.

    Raises ConfigError for less than what is done: it would not equal a run that was told so.
    """
    if settings == run.settings:
        return run
    old, new, state = run.settings.fit, settings.fit, load_latest(run.checkpoint)
    done = int(state.tree['progress']['done']) if state else 0
    if done > new.epochs or (done and new.patience < old.patience):
        raise ConfigError(
            f'{run.path}: {done} epochs are done with fit.patience {old.patience}; now fit.epochs '
            f'is {new.epochs} and fit.patience {new.patience}; ask for no less, or {_ANOTHER}'
        )
    write_durable(run.path / _SETTINGS, settings.to_yaml().encode())
    info = msgspec.structs.replace(run.info, finished=None)
    _write_info(run.path, info)
    return replace(run, info=info, settings=settings)


def _write_info(path: Path, info: RunInfo) -> None:
    text = msgspec.json.format(msgspec.json.encode(info), indent=2)
    write_durable(path / _INFO, text + b'\n')


def _refuse_other_content(path: Path) -> None:
    begun = {_SETTINGS, _SPEC, _LOCK, _OWNER}
    names = {one.name.removesuffix('.partial') for one in path.iterdir()}
    if _INFO not in names and (others := sorted(names - begun)):
        raise ConfigError(
            f'{path}: holds {others[0]} and no run; name a new or an empty folder (--run)'
        )


def _refuse_other_start(
    run: Run, settings: TrainingSettings, spec: FeatureSpec, data: str
) -> None:
    info = run.info
    differing = setting_differences(run.settings, settings)
    if info.spec != spec.id:
        differing.append(f'feature spec was {info.spec}, now {spec.id}')
        differing += [
            *(f'feature {name} is gone' for name in info.features if name not in spec.names),
            *(f'feature {name} is new' for name in spec.names if name not in info.features),
        ]
    if info.data != data:
        differing.append(
            f'the bars are others (fingerprint was {info.data[:16]}, now {data[:16]}; '
            f'{run.facts} says which they were)'
        )
    if differing:
        raise ConfigError(
            f'{run.path}: this run was started with others: {_some(differing)}; {_ANOTHER}, or '
            f'bring the old ones back (--config {run.path / _SETTINGS} are its settings)'
        )
    now = package_versions()
    changed = [
        f'{name} was {old}, now {now.get(name, "absent")}'
        for name, old in info.packages.items()
        if now.get(name) != old
    ]
    if changed and not run.finished:
        _log.warning(
            '%s: goes on with other packages, so its result need not equal that of an '
            'uninterrupted run: %s', run.path, _some(changed),
        )  # fmt: skip


def _some(differing: Iterable[str]) -> str:
    items = list(differing)
    rest = len(items) - _SHOWN
    return '; '.join(items[:_SHOWN]) + (f'; and {rest} more' if rest > 0 else '')


def _lock(path: Path) -> FileLock:
    """Return the lock of the folder, held; raise ConfigError that names the process which has it.

    The owner stands in a file of its own: Windows lets nobody read a locked one.
    """
    lock = FileLock(path / _LOCK)
    owner = path / _OWNER
    try:
        lock.acquire(blocking=False)
    except Timeout:
        try:
            name = owner.read_text(encoding='utf-8').strip()
        except OSError:
            name = 'another process'  # it holds the lock and has not written its name yet
        raise ConfigError(
            f'{path}: {name} is training there; wait for its end, or {_ANOTHER}'
        ) from None
    except (OSError, NotImplementedError) as error:
        raise ConfigError(f'{path}: cannot be locked ({error}); {_ANOTHER}') from error
    try:
        owner.write_text(f'process {os.getpid()} on {platform.node()}', encoding='utf-8')
    except OSError as error:
        lock.release()
        raise ConfigError(
            f'{owner}: cannot be written ({error.strerror}); make room there, or {_ANOTHER}'
        ) from error
    return lock


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')
