# SPDX-License-Identifier: Apache-2.0
"""From a finished run to what a board runs: the bundle, or its parts as loose files."""

from __future__ import annotations

import io
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from heqis_core.bundle import Bundle, write_bundle
from heqis_core.decider import mean_of
from heqis_core.errors import DataError
from heqis_core.features.spec import FeatureSpec
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.manifest import (
    CLASSES,
    ENSEMBLE,
    SCHEMA_VERSION,
    DataPart,
    EncoderPart,
    EnsemblePart,
    FeaturesPart,
    GeneratorPart,
    Manifest,
    Provenance,
    SelectionPart,
    WindowPart,
)
from heqis_training import metrics
from heqis_training.batches import Scale, spread
from heqis_training.checkpoint import check_weights, write_durable
from heqis_training.dataset import Samples, classify
from heqis_training.export import checked_outputs, export_onnx, golden_file
from heqis_training.loop import Tree
from heqis_training.metrics import Answers
from heqis_training.models.build import build_generator
from heqis_training.models.served import ServedGenerator, output_names
from heqis_training.recipe import scale_of
from heqis_training.run_folder import Run
from heqis_training.store import FrameStore
from heqis_training.tensors import WindowTensors
from heqis_training.workshop import (
    DataFacts,
    Workshop,
    golden_places,
    labelled_parts,
    open_frames,
    read_best,
    read_file,
)

Target = Literal['all', 'encoder', 'generators']
SPEC_FILE, SCALER_FILE, GOLDEN_FILE = 'features.json', 'scaler.json', 'golden.npz'
ENCODER_FILE = 'encoder.onnx'
RULE = (
    'validation loss of the best epoch{shrunk}: {regression:g} × MSE of the log return in units '
    'of the training spread + {classification:g} × cross entropy of the class; the lowest is '
    'served'
)


class _Exported(NamedTuple):
    """One generator as ONNX, with what its file answers to golden and to validation windows."""

    name: str
    data: bytes
    golden: dict[str, npt.NDArray[np.generic]]
    answers: Answers


def write_run_bundle(run: Run, out: Path | str) -> Bundle:
    """Write the bundle of a finished run into `<out>/<bundle id>` and verify it.

    Nothing is read but the run folder. Raises ConfigError for a run that is not over, EngineError
    if an exported file differs from its network, BundleError if the bundle cannot be written.
    """
    work, best = _open(run)
    store = open_frames(work)
    training, validation = labelled_parts(work, store)
    scale = scale_of(run.settings, training)
    exported = _export_generators(work, best, store, (training, validation), scale)
    files = _shared_files(run) | {f'{one.name}.onnx': one.data for one in exported}
    golden: dict[str, npt.NDArray[np.generic]] = {}
    if run.settings.encoder.kind != 'none':
        golden |= read_file(run.encoder_golden, _arrays)
    for one in exported:
        golden |= one.golden
    files[GOLDEN_FILE] = golden_file(golden)
    manifest = _manifest(work, best, exported, store, (training, validation), scale)
    bundle = Bundle.load(write_bundle(out, manifest, files))
    bundle.verify_golden(OrtEngine)
    return bundle


def write_loose_files(run: Run, target: Target, out: Path | str) -> list[Path]:
    """Write the encoder, or the generators, of a finished run as ONNX beside scaler and spec."""
    work, best = _open(run)
    files = _shared_files(run)
    if target == 'encoder' and ENCODER_FILE not in files:
        raise DataError(f'{run.path}: was trained without an encoder; nothing to export')
    if target == 'generators':
        files.pop(ENCODER_FILE, None)
        store = open_frames(work)
        parts = labelled_parts(work, store)
        scale = scale_of(run.settings, parts[0])
        for one in _export_generators(work, best, store, parts, scale):
            files[f'{one.name}.onnx'] = one.data
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f'{out}: cannot be written ({error}); choose another folder') from error
    for name, data in files.items():
        write_durable(folder / name, data)
    return [folder / name for name in files]


def _open(run: Run) -> tuple[Workshop, Tree]:
    best = read_best(run)
    spec = read_file(run.spec, FeatureSpec.from_json)
    facts = read_file(run.facts, msgspec.json.Decoder(DataFacts).decode)
    return Workshop(run, spec, facts), best


def _arrays(data: bytes) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _shared_files(run: Run) -> dict[str, bytes]:
    files = {SPEC_FILE: read_file(run.spec, bytes), SCALER_FILE: read_file(run.scaler, bytes)}
    if run.settings.encoder.kind != 'none':
        files[ENCODER_FILE] = read_file(run.encoder_onnx, bytes)
    return files


def _export_generators(
    work: Workshop,
    best: Tree,
    store: FrameStore,
    parts: tuple[Samples, Samples],
    scale: Scale,
) -> list[_Exported]:
    """Export every generator; its answers are those of the file, which thresholds must fit."""
    settings, run = work.settings, work.run
    names = output_names(len(settings.horizons))
    training, validation = (WindowTensors(store, part) for part in parts)
    exported = []
    for name, part in zip(settings.generator_names, settings.generators, strict=True):
        network = build_generator(part, store.features.shape[1], len(settings.horizons))
        check_weights(run.best, {name: network}, {name: best['networks'][name]})
        network.load_state_dict(best['networks'][name])
        served = ServedGenerator(network, scale.spread).eval()
        tile = settings.tile_of(len(work.facts.symbols))
        shape = (tile, part.window, store.features.shape[1])
        data = export_onnx(served, shape, 'window', names)

        def answer(windows: WindowTensors, index: torch.Tensor) -> dict[str, Any]:
            rows = windows.rows(index, part.window).numpy()  # noqa: B023 - called in this turn
            found = checked_outputs(data, served, rows, tile, names)  # noqa: B023
            return {'input': rows, **found}

        golden = answer(training, golden_places(len(parts[0])))
        judged = [answer(validation, index) for index in spread(len(parts[1]), len(parts[1]))]
        answers = Answers(
            np.concatenate([one['log_return'] for one in judged]),
            np.concatenate([one['probabilities'] for one in judged]),
        )
        exported.append(
            _Exported(name, data, {f'{name}/{k}': v for k, v in golden.items()}, answers)
        )
    return exported


def _manifest(
    work: Workshop,
    best: Tree,
    exported: list[_Exported],
    store: FrameStore,
    parts: tuple[Samples, Samples],
    scale: Scale,
) -> Manifest:
    settings, facts, run = work.settings, work.facts, work.run
    training, validation = parts
    scores = {name: score[0] for name, score in best['scores'].items()}
    served = min(scores, key=lambda name: scores[name])
    answers = {one.name: one.answers for one in exported}
    if ENSEMBLE in scores:
        answers[ENSEMBLE] = Answers(
            mean_of(np.stack([one.answers.log_return for one in exported])),
            mean_of(np.stack([one.answers.probabilities for one in exported])),
        )
    strategy = metrics.thresholds(answers[served], settings.valid_for_s, settings.signal_quantiles)
    shares = np.bincount(classify(training.log_return[:, 0], scale.band), minlength=3)
    truth = metrics.make_truth(
        validation.t,
        validation.s,
        store.close[validation.end],
        validation.log_return[:, 0],
        scale.band,
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        bundle_id='',
        created_at=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        features=FeaturesPart(spec_file=SPEC_FILE, spec_id=work.spec.id, names=store.key.names),
        scaler_file=SCALER_FILE,
        encoder=_encoder_part(work),
        window=WindowPart(length=settings.window, horizon=2 * settings.window),
        generators=tuple(
            GeneratorPart(
                name=one.name,
                file=f'{one.name}.onnx',
                tile=settings.tile_of(len(facts.symbols)),
                window=part.window,
            )
            for one, part in zip(exported, settings.generators, strict=True)
        ),
        ensemble=EnsemblePart(members=tuple(answers)[:-1]) if ENSEMBLE in answers else None,
        served=served,
        classes=CLASSES,
        flat_band=scale.band,
        strategy=strategy,
        trained_until_ns=facts.trained_until_ns,
        provenance=Provenance(
            data=DataPart(
                fingerprint=facts.fingerprint,
                symbols=facts.symbols,
                bars=facts.bars,
                first_ns=facts.first_ns,
                last_ns=facts.last_ns,
            ),
            seed=settings.seed,
            settings=settings.flat(),
            packages=dict(run.info.packages),
            selection=SelectionPart(
                rule=RULE.format(
                    shrunk=', with shrunken returns' if settings.shrink else '',
                    regression=settings.adversarial.regression,
                    classification=settings.adversarial.classification,
                ),
                scores={name: round(score, 6) for name, score in scores.items()},
            ),
            metrics=metrics.validation_table(
                answers, served, truth, shares / shares.sum(), strategy, settings.seed
            ),
            metrics_note=metrics.NOTE,
            training_s=round(best['spent_s'], 3),
        ),
        golden_file=GOLDEN_FILE,
        files={},
        conversions=(),
        converted_from=None,
    )


def _encoder_part(work: Workshop) -> EncoderPart | None:
    settings = work.settings.encoder
    if settings.kind == 'none':
        return None
    return EncoderPart(
        file=ENCODER_FILE,
        window=settings.window,
        horizon=2 * settings.window,
        tile=work.settings.tile_of(len(work.facts.symbols)),
        factors=settings.factors,
        input='window',
        output='factors',
    )
