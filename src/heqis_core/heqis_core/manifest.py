# SPDX-License-Identifier: Apache-2.0
"""The manifest of a bundle: its fields, its id, and what must be true of them.

How its files are read lives in `heqis_core.bundle_files`, what a bundle does (load, verify, write)
in `heqis_core.bundle`.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from heqis_core.errors import BundleError
from heqis_core.strategy import StrategyConfig

SCHEMA_VERSION = 3
MANIFEST_FILE = 'manifest.json'
SIGNATURE_FILE = 'signature.json'
"""The one file that the manifest does not list: it signs the bytes of the manifest."""

CLASSES = ('down', 'flat', 'up')
ENSEMBLE = 'ensemble'
"""Name under which the mean of several generators is served."""

MAX_MANIFEST_BYTES = 1 << 20
MAX_SIGNATURE_BYTES = 4096
MAX_FILE_BYTES = 512 << 20
MAX_TOTAL_BYTES = 2 << 30

Count = Annotated[int, msgspec.Meta(ge=1)]
Digest = Annotated[str, msgspec.Meta(pattern='^[0-9a-f]{64}$')]
ShortId = Annotated[str, msgspec.Meta(pattern='^[0-9a-f]{16}$')]
Name = Annotated[str, msgspec.Meta(pattern='^[a-z][a-z0-9_]*$')]
Target = Literal['rk3568', 'tensorrt']
"""What a model is converted for: the NPU of the gateway board, TensorRT on the compute board."""
Precision = Literal['fp16', 'int8']

RELATIVE_PATH = re.compile(r'[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*')
EXPORT_AGAIN = 'copy the bundle again from where it was made, or train it again'


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the manifest: immutable, and without fields that this version does not know."""


class FileEntry(_Part, frozen=True):
    """Hash and size of one file."""

    sha256: Digest
    bytes: Annotated[int, msgspec.Meta(ge=0, le=MAX_FILE_BYTES)]


class FeaturesPart(_Part, frozen=True):
    """The feature spec, and the names of a frame's F + K columns: indicators, then factors."""

    spec_file: str
    spec_id: ShortId
    names: tuple[str, ...]


class EncoderPart(_Part, frozen=True):
    """The factor encoder: the last `window` scaled indicator rows to `factors` numbers.

    `horizon` is the number of frames within which those rows must lie.
    """

    file: str
    window: Count
    horizon: Count
    tile: Count
    factors: Count
    input: str
    output: str


class WindowPart(_Part, frozen=True):
    """Rows W of the longest window, and the frames H within which they must lie."""

    length: Count
    horizon: Count


class GeneratorPart(_Part, frozen=True):
    """One generator: a float32 (tile, window, F+K) in; `log_return` and `probabilities` out.

    Those two are float32 (tile,) and (tile, 3); further outputs are left alone.
    """

    name: Name
    file: str
    tile: Count
    window: Count


class EnsemblePart(_Part, frozen=True):
    """The mean of the answers of these generators, each weighing the same."""

    members: Annotated[tuple[Name, ...], msgspec.Meta(min_length=2)]


class SelectionPart(_Part, frozen=True):
    """Why the served generator is served: the figure of each candidate, the lowest wins.

    `rule` says what the figure is and on which part of the data it was measured.
    """

    rule: str
    scores: dict[str, float]


class Conversion(_Part, frozen=True):
    """One model in the form that another engine runs, and what was measured of it.

    `tool` names what made it, with its version; `figures` are those of its gates by name, beside
    the float32 model on ONNX Runtime (docs/conversion.md).
    """

    model: Name
    target: Target
    precision: Precision
    file: str
    tool: str
    figures: dict[str, float]


class DataPart(_Part, frozen=True):
    """The bars that training touched: nothing after `last_ns`."""

    fingerprint: Digest
    symbols: tuple[str, ...]
    bars: Count
    first_ns: int
    last_ns: int


class MetricRow(_Part, frozen=True):
    """One line of the metrics table: a model or a floor, on one part of the data.

    `figures` by name (`mape_pct`, `accuracy_pct`, …), each left out where it does not apply;
    `intervals` holds the 95 % bootstrap interval [low, high] of those that have one.
    """

    model: str
    part: str
    samples: Annotated[int, msgspec.Meta(ge=0)]
    figures: dict[str, float]
    intervals: dict[str, tuple[float, float]] = {}


class Provenance(_Part, frozen=True):
    """Where the bundle comes from; `training_s` is wall-clock time and no part of the id."""

    data: DataPart
    seed: int
    settings: dict[str, bool | int | float | str | None]
    packages: dict[str, str]
    selection: SelectionPart
    metrics: tuple[MetricRow, ...]
    metrics_note: str
    training_s: float


class Manifest(_Part, frozen=True):
    """Everything that a board must know of a bundle, as stored in `manifest.json`."""

    schema_version: int
    bundle_id: str
    created_at: str
    features: FeaturesPart
    scaler_file: str
    encoder: EncoderPart | None
    window: WindowPart
    generators: tuple[GeneratorPart, ...]
    ensemble: EnsemblePart | None
    served: str
    classes: tuple[str, ...]
    flat_band: float
    strategy: StrategyConfig
    trained_until_ns: int
    provenance: Provenance
    golden_file: str
    files: dict[str, FileEntry]
    conversions: tuple[Conversion, ...]
    converted_from: ShortId | None

    def content_id(self) -> str:
        """Return what `bundle_id` must be: 16 hex digits, a hash of all but the timestamps."""
        content = msgspec.to_builtins(self)
        for name in ('bundle_id', 'created_at'):
            del content[name]
        del content['provenance']['training_s']
        return hashlib.sha256(msgspec.json.encode(content, order='sorted')).hexdigest()[:16]

    def model_files(self) -> dict[str, str]:
        """Return the file of each model by name: `encoder`, if there is one, then generators."""
        encoder = {'encoder': self.encoder.file} if self.encoder else {}
        return encoder | {part.name: part.file for part in self.generators}

    def conversion(self, model: str, target: Target, precision: Precision) -> Conversion | None:
        """Return a model's form for that target and precision, None if the bundle has none."""
        for entry in self.conversions:
            if (entry.model, entry.target, entry.precision) == (model, target, precision):
                return entry
        return None

    def candidates(self) -> tuple[str, ...]:
        """Return the names that may be served: the generators, then the ensemble if any."""
        names = tuple(part.name for part in self.generators)
        return (*names, ENSEMBLE) if self.ensemble else names


def factor_names(count: int) -> tuple[str, ...]:
    """Return the names of `count` factor columns."""
    return tuple(f'factor_{index}' for index in range(count))


def converted_file(model: str, target: Target, precision: Precision) -> str:
    """Return the name of a converted model's file beside the canonical `<model>.onnx`."""
    if target == 'rk3568':
        return f'{model}.{target}.{precision}.rknn'
    return f'{model}.{precision}.onnx'


def check_fields(path: Path, manifest: Manifest) -> None:
    """Raise BundleError that names `path` and the field unless all fields fit one another."""

    def expect(good: bool, field: str, found: object, expected: str) -> None:
        if not good:
            raise BundleError(f'{path}: {field} is {found!r}, expected {expected}; {EXPORT_AGAIN}')

    for name in manifest.files:
        expect(RELATIVE_PATH.fullmatch(name) is not None, 'files', name, 'plain relative paths')
        own = name in (MANIFEST_FILE, SIGNATURE_FILE)
        expect(not own, 'files', name, 'files other than the manifest and its signature')
    for at, one in enumerate(manifest.conversions):
        models = list(manifest.model_files())
        expect(one.model in models, f'conversions[{at}].model', one.model, f'one of {models}')
        name = converted_file(one.model, one.target, one.precision)
        expect(one.file == name, f'conversions[{at}].file', one.file, repr(name))
    converted = [one.file for one in manifest.conversions]
    expect(len({*converted}) == len(converted), 'conversions', converted, 'each once')
    named = {
        'features.spec_file': manifest.features.spec_file,
        'scaler_file': manifest.scaler_file,
        'golden_file': manifest.golden_file,
        **{f'file of model {name!r}': file for name, file in manifest.model_files().items()},
        **{f'conversions[{at}].file': one.file for at, one in enumerate(manifest.conversions)},
    }
    for field, file in named.items():
        expect(
            file in manifest.files, field, file, f'one of the listed files {list(manifest.files)}'
        )
    generators = [part.name for part in manifest.generators]
    reserved = {'encoder', ENSEMBLE}
    unique = len({*generators, *reserved}) == len(generators) + len(reserved)
    expect(unique, 'generators', generators, f'different names, none of {sorted(reserved)}')
    members = manifest.ensemble.members if manifest.ensemble else ()
    known = len({*members}) == len(members) and {*members} <= {*generators}
    expect(known, 'ensemble.members', members, f'different names out of {generators}')
    candidates = list(manifest.candidates())
    expect(manifest.served in candidates, 'served', manifest.served, f'one of {candidates}')
    scores = manifest.provenance.selection.scores
    expect(
        manifest.served in scores and {*scores} <= {*candidates},
        'provenance.selection.scores',
        sorted(scores),
        f'names out of {candidates}, the served one among them',
    )
    expect(manifest.classes == CLASSES, 'classes', manifest.classes, f'{CLASSES}')
    band = manifest.flat_band
    expect(math.isfinite(band) and band > 0, 'flat_band', band, 'a positive log return')
    buy, sell = manifest.strategy.buy_threshold, manifest.strategy.sell_threshold
    expect(
        -1 <= sell < buy <= 1, 'strategy', (sell, buy), '-1 <= sell_threshold < buy_threshold <= 1'
    )
    valid_for_s = manifest.strategy.valid_for_s
    expect(
        math.isfinite(valid_for_s) and valid_for_s > 0,
        'strategy.valid_for_s',
        valid_for_s,
        'seconds > 0',
    )
    for field, part in (('window', manifest.window), ('encoder', manifest.encoder)):
        if part is not None:
            rows = part.length if isinstance(part, WindowPart) else part.window
            expect(
                part.horizon >= rows, f'{field}.horizon', part.horizon, f'at least {rows} frames'
            )
    longest = max((part.window for part in manifest.generators), default=0)
    rows = manifest.window.length
    expect(longest == rows, 'window.length', rows, f'the longest of the generators, {longest}')
    last = manifest.provenance.data.last_ns
    expect(
        manifest.trained_until_ns >= last,
        'trained_until_ns',
        manifest.trained_until_ns,
        f'at least {last}',
    )
    content_id = manifest.content_id()
    expect(
        manifest.bundle_id == content_id,
        'bundle_id',
        manifest.bundle_id,
        f'{content_id!r} for this content',
    )
