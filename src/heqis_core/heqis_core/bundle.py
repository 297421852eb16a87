# SPDX-License-Identifier: Apache-2.0
"""The bundle: the one folder that a board runs, and every check before a model may speak.

A bundle holds `manifest.json`, the ONNX files, scaler, feature spec, golden inputs with their
outputs, and `signature.json` where it is signed (`heqis_core.io.signing`). The manifest's fields
live in `heqis_core.manifest`, how a bundle comes about in heqis_training, how a model file is run
behind `heqis_core.engine`.
"""

from __future__ import annotations

import hashlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.bundle_files import ManifestCheck, check_files, read_checked, read_manifest
from heqis_core.durable import force_folder, write_forced
from heqis_core.engine import Engine, beyond, infer_tiled
from heqis_core.errors import BundleError, ConfigError, HeqisError
from heqis_core.features.spec import FeatureSpec
from heqis_core.manifest import (
    CLASSES,
    EXPORT_AGAIN,
    MANIFEST_FILE,
    RELATIVE_PATH,
    FileEntry,
    GeneratorPart,
    Manifest,
    factor_names,
)
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler

_Parsed = TypeVar('_Parsed')
Floats = npt.NDArray[np.float32]

GOLDEN_TOLERANCE = 1e-4
"""Largest absolute plus relative difference of a golden output."""

NO_ENGINE = 'none'
"""Class of engine of a bundle without an encoder."""

MAX_GOLDEN_BYTES = 64 << 20
"""Golden arrays after decompression."""


def features_id(
    spec: FeatureSpec, scaler: Scaler, encoder_sha256: str | None, engine_kind: str
) -> str:
    """Return 16 hex digits that name what a frame's features were computed with."""
    text = '\n'.join((spec.id, scaler.id, encoder_sha256 or '', engine_kind))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files, hashes and names have been checked. Make one with `Bundle.load`.

    Attributes:
        path: the folder.
        manifest: its content.
        spec: feature spec of the F indicators.
        scaler: fitted on the same F columns.
    """

    path: Path
    manifest: Manifest
    spec: FeatureSpec
    scaler: Scaler

    @classmethod
    def load(cls, path: Path | str, check: ManifestCheck | None = None) -> Bundle:
        """Read and check a bundle folder; nothing is run, see `verify_golden` for that.

        `check` judges the manifest's bytes before anything is interpreted, such as
        `TrustedKeys.check` of `heqis_core.io.signing`: hashes alone tell of accidents, not who
        made the bundle.

        Raises BundleError that names the file or field, what was found, what was expected and what
        to do: no manifest, an unknown schema or field, a path that leads out of the folder, a file
        that is missing, unlisted, too large or altered, an id, spec or names that do not match.
        """
        root = Path(path)
        manifest = read_manifest(root, check)
        check_files(root, manifest)
        spec = _parse(root, manifest, manifest.features.spec_file, FeatureSpec.from_json)
        scaler = _parse(root, manifest, manifest.scaler_file, Scaler.from_json)
        _check_features(root, manifest, spec, scaler)
        return cls(root, manifest, spec, scaler)

    @property
    def bundle_id(self) -> str:
        """Return the id, 16 hex digits."""
        return self.manifest.bundle_id

    @property
    def encoder_path(self) -> Path | None:
        """Return the encoder's model file, None if the bundle has no encoder."""
        return self.path / self.manifest.encoder.file if self.manifest.encoder else None

    def generator(self, name: str) -> GeneratorPart:
        """Return the generator of that name, or raise BundleError."""
        for part in self.manifest.generators:
            if part.name == name:
                return part
        known = [part.name for part in self.manifest.generators]
        raise BundleError(f'{self.path}: no generator {name!r}, the bundle has {known}')

    def generator_path(self, name: str) -> Path:
        """Return the model file of that generator."""
        return self.path / self.generator(name).file

    def features_id(self, engine_kind: str, file: str | None = None) -> str:
        """Return the id of this bundle's features with its encoder on that class of engine.

        `file` is the encoder's file that runs, None for the canonical one.
        """
        encoder = self.manifest.encoder
        if encoder is None:
            return features_id(self.spec, self.scaler, None, NO_ENGINE)
        sha256 = self.manifest.files[file or encoder.file].sha256
        return features_id(self.spec, self.scaler, sha256, engine_kind)

    def features_ids(self) -> frozenset[str]:
        """Return every features id that a gateway with this bundle may send."""
        return frozenset(
            {self.features_id('onnxruntime')}
            | {
                self.features_id('rknn', one.file)
                for one in self.manifest.conversions
                if one.model == 'encoder' and one.target == 'rk3568'
            }
        )

    def pipeline(
        self,
        symbols: Sequence[str],
        encoder: Engine | None,
        channels: Sequence[str] = (),
        amendable: int = 0,
    ) -> FeaturePipeline:
        """Return the feature pipeline of this bundle for these symbols and channels.

        `encoder` has `encoder_path` loaded, or is None where the bundle has no encoder; anything
        else raises BundleError. ConfigError names a channel that the spec reads and that is not
        there. `amendable` is the number of newest blocks that may be corrected.
        """
        part = self.manifest.encoder
        if (part is None) != (encoder is None):
            raise BundleError(
                f'{self.path}: the bundle has {"no" if part is None else "an"} encoder, but the '
                f'pipeline was given {"none" if encoder is None else "one"}; load `encoder_path` '
                'where it is not None'
            )
        window, horizon = (part.window, part.horizon) if part else (1, 1)
        # A converted file may have another batch than the canonical one.
        tile = encoder.specs()[0][0].shape[0] if encoder else 1
        return FeaturePipeline(
            symbols,
            self.spec,
            self.scaler,
            encoder,
            window,
            tile,
            horizon,
            channels,
            amendable,
        )

    def verify_golden(
        self, engine_factory: Callable[[], Engine], tolerance: float = GOLDEN_TOLERANCE
    ) -> None:
        """Run every model on the golden inputs, with a fresh engine each, and compare.

        Raises BundleError that names the model and the output if one differs by more than
        `tolerance` (absolute plus relative), has another shape or name, or if the engine cannot
        run the file.
        """
        golden = self.golden()
        for name, file in self.manifest.model_files().items():
            try:
                engine = engine_factory()
                try:
                    engine.load(self.path / file)
                    self._check_specs(name, engine)
                    self._compare(name, engine, golden, tolerance)
                finally:
                    engine.close()
            except BundleError:
                raise
            except HeqisError as error:
                raise BundleError(f'{self.path}: model {name!r} cannot be run: {error}') from error

    def golden(self) -> dict[str, npt.NDArray[np.generic]]:
        """Return the golden arrays as `<model>/input` and `<model>/<output>`, checked as read.

        Raises BundleError for a file that was altered, is too large or is no such archive.
        """
        file = self.manifest.golden_file
        data = read_checked(self.path, file, self.manifest.files[file])
        try:
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_GOLDEN_BYTES:
                raise BundleError(
                    f'{self.path / file}: {size} bytes of arrays, at most {MAX_GOLDEN_BYTES} '
                    'are read'
                )
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise BundleError(
                f'{self.path / file}: not a file of plain golden arrays: {error}; {EXPORT_AGAIN}'
            ) from error

    def _check_specs(self, name: str, engine: Engine) -> None:
        manifest = self.manifest
        width = len(manifest.features.names)
        inputs, outputs = engine.specs()
        found = {spec.name: spec.shape for spec in (*inputs, *outputs)}
        expected: dict[str, tuple[int, ...]]
        if manifest.encoder and name == 'encoder':
            part = manifest.encoder
            expected = {part.input: (part.tile, width - part.factors, 1, part.window)}
            # rank 4 keeps the border of the graph on an NPU; both forms hold the same numbers
            flat = (part.tile, part.factors)
            expected[part.output] = flat if found.get(part.output) == flat else (*flat, 1, 1)
            fits = len(outputs) == 1
        else:
            generator = self.generator(name)
            expected = {inputs[0].name: (generator.tile, generator.window, width)}
            expected['log_return'] = (generator.tile,)
            expected['probabilities'] = (generator.tile, len(CLASSES))
            fits = True
        if len(inputs) != 1 or not fits or any(found.get(k) != v for k, v in expected.items()):
            raise BundleError(
                f'{self.path}: model {name!r} has inputs and outputs {found}, the manifest '
                f'expects {expected}; {EXPORT_AGAIN}'
            )

    def _compare(
        self,
        name: str,
        engine: Engine,
        golden: Mapping[str, npt.NDArray[np.generic]],
        tolerance: float,
    ) -> None:
        file = self.path / self.manifest.golden_file
        spec = engine.specs()[0][0]
        rows = golden.get(f'{name}/input')
        if (
            rows is None
            or len(rows) < 1
            or rows.shape[1:] != spec.shape[1:]
            or rows.dtype != spec.dtype
        ):
            raise BundleError(
                f'{file}: array {f"{name}/input"!r} is '
                f'{"missing" if rows is None else f"{rows.dtype} {rows.shape}"}, '
                f'expected {spec.dtype} (rows, {", ".join(map(str, spec.shape[1:]))}); '
                f'{EXPORT_AGAIN}'
            )
        for output, values in infer_tiled(engine, cast('Floats', rows), spec.shape[0]).items():
            expected = golden.get(f'{name}/{output}')
            if expected is None or expected.shape != values.shape:
                raise BundleError(
                    f'{file}: array {f"{name}/{output}"!r} is '
                    f'{"missing" if expected is None else expected.shape}, '
                    f'expected shape {values.shape}; {EXPORT_AGAIN}'
                )
            if (worst := beyond(values, expected, tolerance)) is not None:
                raise BundleError(
                    f'{self.path}: model {name!r}, output {output!r} differs from its golden '
                    f'output by {worst:.3g} on engine {engine.kind}, at most {tolerance:g} is '
                    f'accepted; {EXPORT_AGAIN}, or use another engine'
                )


def manifest_check(trusted_keys: Path | str) -> ManifestCheck | None:
    """Return what `Bundle.load` asks of a manifest where only the bundles of some keys are run.

    `trusted_keys` is a folder as in `heqis_core.io.signing.TrustedKeys.load`, which see for what
    is raised; None where it is empty: no signature is asked for.
    """
    if not str(trusted_keys):
        return None
    try:
        from heqis_core.io.signing import TrustedKeys  # cryptography: only where keys are used
    except ImportError as error:
        raise ConfigError(
            f'trusted keys need {error.name}, which is missing: install it as in '
            'requirements/runtime.txt'
        ) from error
    return TrustedKeys.load(trusted_keys).check


def write_bundle(parent: Path | str, manifest: Manifest, files: Mapping[str, bytes]) -> Path:
    """Write `<parent>/<bundle id>` and return it; what stands there is either whole or not there.

    `files` maps relative paths to content; `bundle_id` and `files` of the manifest are filled in
    here. A sound bundle with the same id stays as it is. Raises BundleError if the result would be
    refused by `Bundle.load` or cannot be written.
    """
    entries = {
        name: FileEntry(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
        for name, data in sorted(files.items())
    }
    manifest = msgspec.structs.replace(manifest, files=entries)
    # As it will be read: a figure given as 1 is 1.0 then, and the id must not know the difference.
    try:
        manifest = msgspec.json.decode(msgspec.json.encode(manifest), type=Manifest)
    except msgspec.ValidationError as error:
        raise BundleError(f'{parent}: the manifest cannot be written: {error}') from error
    manifest = msgspec.structs.replace(manifest, bundle_id=manifest.content_id())
    final = Path(parent) / manifest.bundle_id
    try:
        Path(parent).mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix='.partial-', dir=parent))
    except OSError as error:
        raise BundleError(
            f'{parent}: cannot be written: {error}; choose another folder'
        ) from error
    try:
        partial.chmod(0o755)
        for name, data in files.items():
            _write_durable(partial, name, data)
        text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
        _write_durable(partial, MANIFEST_FILE, text)
        Bundle.load(partial)
        _move_into_place(partial, final)
    except OSError as error:
        raise BundleError(f'{final}: cannot be written: {error}') from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(partial.with_name(f'{partial.name}.altered'), ignore_errors=True)
    return final


def _parse(root: Path, manifest: Manifest, name: str, parser: Callable[[str], _Parsed]) -> _Parsed:
    data = read_checked(root, name, manifest.files[name])
    try:
        return parser(data.decode())
    except (HeqisError, ValueError) as error:
        raise BundleError(f'{root / name}: cannot be read: {error}; {EXPORT_AGAIN}') from error


def _check_features(root: Path, manifest: Manifest, spec: FeatureSpec, scaler: Scaler) -> None:
    part = manifest.features
    if spec.id != part.spec_id:
        raise BundleError(
            f'{root / part.spec_file}: spec id is {spec.id}, {MANIFEST_FILE} says {part.spec_id}; '
            f'{EXPORT_AGAIN}'
        )
    indicators = tuple(spec.names)
    factors = factor_names(manifest.encoder.factors if manifest.encoder else 0)
    if part.names != indicators + factors:
        raise BundleError(
            f'{root / MANIFEST_FILE}: features.names is {part.names}, the spec and the encoder '
            f'give {indicators + factors}; {EXPORT_AGAIN}'
        )
    if tuple(scaler.names) != indicators:
        raise BundleError(
            f'{root / manifest.scaler_file}: names are {tuple(scaler.names)}, the spec has '
            f'{indicators}; {EXPORT_AGAIN}'
        )


def _write_durable(root: Path, name: str, data: bytes) -> None:
    if not RELATIVE_PATH.fullmatch(name):
        raise BundleError(f'{root}: {name!r} is not a plain relative path')
    target = root / name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_forced(target, data)


def _move_into_place(partial: Path, final: Path) -> None:
    if final.exists():
        try:
            Bundle.load(final)
            return
        except BundleError:
            # the same id with altered files: out of the way in one step, removed with the rest
            final.rename(partial.with_name(f'{partial.name}.altered'))
    partial.rename(final)
    force_folder(final.parent)
