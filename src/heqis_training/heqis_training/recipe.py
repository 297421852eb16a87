# SPDX-License-Identifier: Apache-2.0
"""The recipe: from a table of bars to a bundle, in the order in which nothing can leak.

Everything after the cut sees only the bars before it, because it gets a copy that ends there. The
features that the generator learns from come out of the pipeline and the exported encoder that the
boards run.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from heqis_core.bars import VOLUME, BarStatus, BarTable
from heqis_core.bundle import Bundle, write_bundle
from heqis_core.errors import DataError
from heqis_core.features.spec import FeatureSpec, default_spec
from heqis_core.features.state import FeatureState
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.manifest import (
    CLASSES,
    SCHEMA_VERSION,
    DataPart,
    EncoderPart,
    FeaturesPart,
    GeneratorPart,
    Manifest,
    MetricRow,
    Provenance,
    WindowPart,
    factor_names,
)
from heqis_core.pipeline import FeaturePipeline
from heqis_core.scaler import Scaler
from heqis_core.strategy import StrategyConfig
from heqis_training import dataset, metrics
from heqis_training.dataset import Samples, Split
from heqis_training.export import checked_outputs, export_onnx, golden_file
from heqis_training.models.encoder import FactorAutoencoder, standardise
from heqis_training.models.gru import OUTPUTS, GruGenerator
from heqis_training.settings import TrainingConfig
from heqis_training.tensors import WindowTensors
from heqis_training.train import (
    EVALUATION_BATCH,
    BatchLoss,
    Epoch,
    Report,
    deterministic,
    fit,
)

GENERATOR = 'gru'
GOLDEN_ROWS = 16
ENCODER_FILE, GENERATOR_FILE = 'encoder.onnx', f'{GENERATOR}.onnx'
SPEC_FILE, SCALER_FILE, GOLDEN_FILE = 'features.json', 'scaler.json', 'golden.npz'
PACKAGES = ('torch', 'numpy', 'numba', 'onnx', 'onnxruntime', 'msgspec')


@dataclass(frozen=True)
class Outcome:
    """What a training run gives.

    Attributes:
        path: the bundle's folder; its manifest says everything that outlives the run.
        manifest: as written.
        training_windows: of the generator.
        validation_windows: of the generator.
        history: every epoch of the encoder, then of the generator.
    """

    path: Path
    manifest: Manifest
    training_windows: int
    validation_windows: int
    history: tuple[Epoch, ...]


def train_bundle(
    table: BarTable,
    out: Path | str,
    config: TrainingConfig | None = None,
    spec: FeatureSpec | None = None,
    report: Report = lambda epoch: None,
) -> Path:
    """Train on the first part of `table` and return the bundle's folder; see `run_training`."""
    return run_training(table, out, config, spec, report).path


def run_training(
    table: BarTable,
    out: Path | str,
    config: TrainingConfig | None = None,
    spec: FeatureSpec | None = None,
    report: Report = lambda epoch: None,
) -> Outcome:
    """Train encoder and generator on the first part of `table` and write `<out>/<bundle id>`.

    Args:
        table: bars; those after the first `train_fraction` of the event times are not read.
        out: folder that gets the bundle as a folder of its own.
        config: see `TrainingConfig`; None takes the defaults.
        spec: indicators; None takes the default spec.
        report: called after each epoch.

    The same bars, settings and packages give the same bundle id. Raises DataError if there are too
    few bars, ConfigError for settings that cannot be, BundleError if the bundle cannot be written.
    """
    started_s = time.monotonic()
    config = config or TrainingConfig()
    split = dataset.split_rows(len(table), config.train_fraction, config.validation_fraction)
    known = dataset.head(table, split.stop)
    spec = spec or default_spec(_has_volume(known))
    with deterministic(config.seed), TemporaryDirectory() as folder:
        bars = (table.status == BarStatus.VALID).sum(axis=0)
        run = _Run(known, bars, split, config, spec, report)
        scaler, encoder_data, encoder_golden = run.train_encoder()
        path = Path(folder) / ENCODER_FILE
        path.write_bytes(encoder_data)
        features, status = run.frames(scaler, path)
        generator = run.train_generator(features, status)
    files = {
        SPEC_FILE: spec.to_json().encode(),
        SCALER_FILE: scaler.to_json().encode(),
        ENCODER_FILE: encoder_data,
        GENERATOR_FILE: generator.data,
        GOLDEN_FILE: golden_file(encoder_golden | generator.golden),
    }
    manifest = _manifest(run, generator, time.monotonic() - started_s)
    bundle = Bundle.load(write_bundle(out, manifest, files))
    bundle.verify_golden(OrtEngine)
    return Outcome(
        bundle.path,
        bundle.manifest,
        generator.training_windows,
        generator.validation_windows,
        tuple(run.history),
    )


@dataclass(frozen=True)
class _Generator:
    data: bytes
    golden: dict[str, npt.NDArray[np.generic]]
    band: float
    strategy: StrategyConfig
    metrics: tuple[MetricRow, ...]
    training_windows: int
    validation_windows: int


class _Run:
    """One training run on bars that end where training must end."""

    def __init__(
        self,
        table: BarTable,
        bars: npt.NDArray[np.int64],
        split: Split,
        config: TrainingConfig,
        spec: FeatureSpec,
        report: Report,
    ) -> None:
        self.table, self.split, self.config, self.spec = table, split, config, spec
        self.labels = dataset.next_bar_labels(table)
        self._bars = bars  # of the whole data set, for the message that there are too few
        self.history: list[Epoch] = []
        self._report = report

    def train_encoder(self) -> tuple[Scaler, bytes, dict[str, npt.NDArray[np.generic]]]:
        config = self.config
        n_features = len(self.spec.names)
        table = self.table
        raw = FeatureState(self.spec, len(table.symbols), table.channels).batch(
            table.values, table.status, table.event_time_ns, table.extra
        )
        self._refuse_empty(raw)
        whole = (self.table.status == BarStatus.VALID) & np.isfinite(raw).all(axis=2)
        training_rows = raw[: self.split.validation_from][whole[: self.split.validation_from]]
        status = np.where(whole, np.uint8(BarStatus.VALID), np.uint8(BarStatus.WARMING))
        samples = dataset.make_samples(
            status, self.labels, config.encoder_window, 2 * config.encoder_window
        )
        training, validation = dataset.split_windows(samples, self.split)
        self._require(training, validation)
        scaler = Scaler.fit(self.spec.names, training_rows)
        source = (
            WindowTensors(scaler.apply(raw), training),
            WindowTensors(scaler.apply(raw), validation),
        )
        model = FactorAutoencoder(
            n_features, config.encoder_window, config.factors, config.encoder_width
        )

        def loss_of(windows: WindowTensors) -> BatchLoss:
            def loss(index: Tensor) -> Tensor:
                x = windows.images(index)
                return nn.functional.mse_loss(model(x), x)

            return loss

        self.history += fit(
            'encoder',
            model,
            (loss_of(source[0]), len(training)),
            (loss_of(source[1]), len(validation)),
            config.encoder_fit,
            self._report,
        )
        encoder = model.encoder
        with torch.no_grad():
            parts = torch.split(torch.arange(len(training)), EVALUATION_BATCH)
            factors = torch.cat([encoder(source[0].images(index)) for index in parts])
        standardise(encoder, factors)
        shape = (config.tile, n_features, 1, config.encoder_window)
        data = export_onnx(encoder, shape, 'window', ('factors',))
        rows = source[0].images(_spread(len(training))).numpy()
        answers = checked_outputs(data, encoder, rows, config.tile, ('factors',))
        golden = {'encoder/input': rows, 'encoder/factors': answers['factors']}
        return scaler, data, golden

    def frames(
        self, scaler: Scaler, encoder: Path
    ) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8]]:
        config = self.config
        engine = OrtEngine()
        engine.load(encoder)
        try:
            return FeaturePipeline(
                self.table.symbols,
                self.spec,
                scaler,
                engine,
                config.encoder_window,
                config.tile,
                2 * config.encoder_window,
                self.table.channels,
            ).run(self.table)
        finally:
            engine.close()

    def train_generator(
        self, features: npt.NDArray[np.float32], status: npt.NDArray[np.uint8]
    ) -> _Generator:
        config = self.config
        samples = dataset.make_samples(status, self.labels, config.window, 2 * config.window)
        training, validation = dataset.split_samples(samples, self.split)
        self._require(training, validation)
        band = config.flat_band or dataset.flat_band(training.log_return)
        spread = max(float(training.log_return.std()), 1e-6)
        model = GruGenerator(features.shape[2], config.hidden, spread)

        def loss_of(part: Samples) -> BatchLoss:
            windows = WindowTensors(features, part)
            returns = torch.from_numpy((part.log_return / spread).astype(np.float32))
            classes = torch.from_numpy(dataset.classify(part.log_return, band))

            def loss(index: Tensor) -> Tensor:
                log_return, logits, _ = model(windows.rows(index))
                regression = nn.functional.mse_loss(log_return / spread, returns[index])
                return regression + nn.functional.cross_entropy(logits, classes[index])

            return loss

        self.history += fit(
            GENERATOR,
            model,
            (loss_of(training), len(training)),
            (loss_of(validation), len(validation)),
            config.generator_fit,
            self._report,
        )
        shape = (config.tile, config.window, features.shape[2])
        data = export_onnx(model, shape, 'window', OUTPUTS)
        rows = WindowTensors(features, training).rows(_spread(len(training))).numpy()
        answers = checked_outputs(data, model, rows, config.tile, OUTPUTS)
        golden = {f'{GENERATOR}/input': rows}
        golden |= {f'{GENERATOR}/{name}': values for name, values in answers.items()}
        judged = self._answers(data, model, WindowTensors(features, validation), len(validation))
        strategy = metrics.thresholds(judged, config.valid_for_s, config.signal_quantiles)
        majority = int(np.bincount(dataset.classify(training.log_return, band)).argmax())
        rows_of_table = metrics.table(
            GENERATOR, judged, validation, band, majority, strategy, config.seed
        )
        return _Generator(
            data, golden, band, strategy, rows_of_table, len(training), len(validation)
        )

    def _answers(
        self, data: bytes, model: nn.Module, windows: WindowTensors, count: int
    ) -> metrics.Answers:
        """Ask the exported file, not the network: thresholds must fit what the boards answer."""
        parts = [
            checked_outputs(data, model, windows.rows(index).numpy(), self.config.tile, OUTPUTS)
            for index in torch.split(torch.arange(count), EVALUATION_BATCH)
        ]
        return metrics.Answers(
            np.concatenate([part['log_return'] for part in parts]),
            np.concatenate([part['probabilities'] for part in parts]),
        )

    def _refuse_empty(self, raw: npt.NDArray[np.float64]) -> None:
        """Raise DataError for features that no bar has although there are bars enough for them."""
        valid = self.table.status == BarStatus.VALID
        longest = int(valid.sum(axis=0).max(initial=0))
        never = [
            column.name
            for k, column in enumerate(self.spec.outputs)
            if column.warm_up < longest and not np.isfinite(raw[valid][:, k]).any()
        ]
        if never:
            raise DataError(
                f'no bar has a value of {", ".join(never[:6])}{" …" if len(never) > 6 else ""}: '
                'a cross-section needs `min_symbols` symbols at once, turnover and channels '
                'need their column; leave these features out, or bring the data'
            )

    def _require(self, training: Samples, validation: Samples) -> None:
        config = self.config
        warm_up = self.spec.warmup_bars + config.encoder_window - 1 + config.window - 1
        needed = dataset.bars_needed(warm_up, config.train_fraction, config.validation_fraction)
        dataset.require_windows(
            self.table.symbols, self._bars, len(training), len(validation), needed
        )


def _spread(count: int) -> Tensor:
    """Return the indices of at most `GOLDEN_ROWS` windows, evenly spread."""
    return torch.linspace(0, count - 1, min(GOLDEN_ROWS, count)).long()


def _has_volume(table: BarTable) -> bool:
    """Return whether every symbol that trades has volumes; without them it would never warm up."""
    valid = table.status == BarStatus.VALID
    traded = valid & (table.values[:, VOLUME, :] > 0)
    return bool((traded.any(axis=0) == valid.any(axis=0)).all())


def _manifest(run: _Run, generator: _Generator, training_s: float) -> Manifest:
    config, table = run.config, run.table
    valid_rows = np.flatnonzero((table.status == BarStatus.VALID).any(axis=1))
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_id='',
        created_at=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        features=FeaturesPart(
            spec_file=SPEC_FILE,
            spec_id=run.spec.id,
            names=run.spec.names + factor_names(config.factors),
        ),
        scaler_file=SCALER_FILE,
        encoder=EncoderPart(
            file=ENCODER_FILE,
            window=config.encoder_window,
            horizon=2 * config.encoder_window,
            tile=config.tile,
            factors=config.factors,
            input='window',
            output='factors',
        ),
        window=WindowPart(length=config.window, horizon=2 * config.window),
        generators=(
            GeneratorPart(
                name=GENERATOR, file=GENERATOR_FILE, tile=config.tile, window=config.window
            ),
        ),
        served=GENERATOR,
        classes=CLASSES,
        flat_band=generator.band,
        strategy=generator.strategy,
        trained_until_ns=int(table.event_time_ns[-1]),
        provenance=Provenance(
            data=DataPart(
                fingerprint=dataset.fingerprint(table),
                symbols=table.symbols,
                bars=int((table.status == BarStatus.VALID).sum()),
                first_ns=int(table.event_time_ns[valid_rows[0]]),
                last_ns=int(table.event_time_ns[valid_rows[-1]]),
            ),
            seed=config.seed,
            settings=config.settings(),
            packages={name: metadata.version(name) for name in PACKAGES}
            | {'python': platform.python_version()},
            metrics=generator.metrics,
            metrics_note=metrics.NOTE,
            training_s=round(training_s, 3),
        ),
        golden_file=GOLDEN_FILE,
        files={},
    )
