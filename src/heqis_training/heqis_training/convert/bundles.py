# SPDX-License-Identifier: Apache-2.0
"""From a bundle to a new one: the same models, and those conversions that pass their gates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import msgspec

from heqis_core.bars import BarTable
from heqis_core.bundle import Bundle, write_bundle
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.manifest import SIGNATURE_FILE, Precision, Target
from heqis_training.convert import rk3568, tensorrt
from heqis_training.convert.gates import Gate
from heqis_training.convert.outcome import Converted, Outcome, converted
from heqis_training.convert.study import Study, Verdicts, study_bundle

Told = Callable[[str, int, int], None]


class Order(NamedTuple):
    """What is asked for.

    Attributes:
        targets, precisions: every pair of them.
        python: of the environment with the RKNN toolkit.
        margin: see `gates.MARGIN`.
        windows: encoder windows that are measured, at most about.
        out: folder for the new bundle; None takes the one that holds the old one.
    """

    targets: Sequence[Target]
    precisions: Sequence[Precision]
    python: Path
    margin: float
    windows: int
    out: Path | None = None


class Report(msgspec.Struct, frozen=True):
    """What became of one bundle.

    Attributes:
        bundle: its id; empty where it could not be read.
        path: where it is.
        written: the new bundle's folder; None where nothing passed.
        outcomes: one for each model, target and precision.
        symbols: whose bars were measured.
        notes: what a reader must know.
        error: why it was not converted at all; empty otherwise.
    """

    bundle: str
    path: str
    written: str | None = None
    outcomes: tuple[Outcome, ...] = ()
    symbols: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    error: str = ''

    @property
    def passed(self) -> bool:
        """Return whether everything that was asked for is in the new bundle."""
        return not self.error and all(outcome.passed for outcome in self.outcomes)


def convert_bundle(
    bundle: Bundle, table: BarTable, order: Order, told: Told = lambda text, done, total: None
) -> Report:
    """Convert a bundle's models and write a new bundle with those that pass their gates.

    Args:
        bundle: loaded; its golden outputs are checked first.
        table: bars with the channels that its features read, those of its training among them.
        order: what is asked for.
        told: called with a text, how much is done and how much there is.

    Raises BundleError, DataError, ConfigError or EngineError where nothing can be converted.
    """
    targets = list(order.targets)
    notes: tuple[str, ...] = ()
    if bundle.manifest.encoder is None and 'rk3568' in targets and len(targets) > 1:
        targets.remove('rk3568')
        notes = ('without an encoder: nothing of it runs on an RK3568',)
    bundle.verify_golden(OrtEngine)
    study = study_bundle(
        bundle, table, order.windows, lambda done, total: told('event times', done, total)
    )
    reference = study.decide(
        study.features, told=lambda done, total: told('decisions in float32', done, total)
    )
    pairs = [(target, precision) for target in targets for precision in order.precisions]
    made: list[Converted] = []
    for index, (target, precision) in enumerate(pairs):
        told(f'{target} {precision}', index, len(pairs))
        if target == 'rk3568':
            made.append(_on_npu(study, reference, precision, order))
        else:
            made += tensorrt.convert_models(study, reference, precision, order.margin)
    told('gates', len(pairs), len(pairs))
    written = _write(bundle, made, order.out)
    if written and (bundle.path / SIGNATURE_FILE).exists():
        notes += ('the new bundle is not signed: heqis bundle sign',)
    return Report(
        bundle.bundle_id,
        str(bundle.path),
        str(written) if written else None,
        tuple(one.outcome for one in made),
        study.symbols,
        (*notes, *study.notes),
    )


def _on_npu(study: Study, reference: Verdicts, precision: Precision, order: Order) -> Converted:
    """Convert the encoder; what the toolkit cannot build is a gate that is broken."""
    try:
        return rk3568.convert_encoder(study, reference, precision, order.python, order.margin)
    except EngineError as error:
        gate = Gate('build', False, str(error), 'a model that the NPU can be given')
        return converted('encoder', 'rk3568', precision, '', b'', [gate], {})


def _write(bundle: Bundle, made: Sequence[Converted], out: Path | None) -> Path | None:
    """Write the bundle with what passed; None, and nothing written, where nothing did."""
    passed = [one for one in made if one.outcome.passed]
    if not passed:
        return None
    manifest = bundle.manifest
    again = {one.outcome.file for one in made}
    stale = {entry.file for entry in manifest.conversions if entry.file in again}
    files = {
        name: (bundle.path / name).read_bytes() for name in manifest.files if name not in stale
    }
    files |= {one.outcome.file: one.data for one in passed}
    kept = [entry for entry in manifest.conversions if entry.file not in stale]
    new = msgspec.structs.replace(
        manifest,
        created_at=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        conversions=(*kept, *(one.outcome.conversion() for one in passed)),
        converted_from=bundle.bundle_id,
    )
    return write_bundle(bundle.path.parent if out is None else out, new, files)


def reports_json(reports: Sequence[Report], order: Order) -> bytes:
    """Return the reports as one JSON object."""
    content = {
        'margin': order.margin,
        'windows': order.windows,
        'passed': all(report.passed for report in reports),
        'bundles': reports,
    }
    return msgspec.json.format(msgspec.json.encode(content), indent=1) + b'\n'
