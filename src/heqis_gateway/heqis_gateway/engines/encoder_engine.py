# SPDX-License-Identifier: Apache-2.0
"""What runs the factor encoder: the NPU where there is one, else ONNX Runtime, and why.

The NPU is taken when its driver answers, the bundle holds a converted encoder, and that file gives
the golden factors within what its precision allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from heqis_core.bundle import NO_ENGINE, Bundle
from heqis_core.conversion import COSINE_MIN, cosine
from heqis_core.engine import Engine, TensorSpec, infer_tiled
from heqis_core.engine_probe import Candidate, Choice, PassedOver, Ready, probe
from heqis_core.errors import EngineError
from heqis_core.io.ort_engine import OrtEngine, open_engine
from heqis_core.manifest import Conversion, EncoderPart, Precision
from heqis_gateway.engines.rknn_engine import ModelForm, RknnEngine, load_lite

ENGINES = ('auto', RknnEngine.kind, OrtEngine.kind)
"""What can be asked for; `auto` is the order of the rest."""
PRECISIONS: tuple[Precision, ...] = ('int8', 'fp16')


class Encoder(NamedTuple):
    """The encoder of a bundle as this board runs it.

    Attributes:
        engine: loaded, or None for a bundle without an encoder.
        features_id: what every frame carries.
        text: what runs, and why nothing before it does, in one line.
        passed_over: engines that do not run, with reasons.
    """

    engine: Engine | None
    features_id: str
    text: str
    passed_over: Sequence[PassedOver] = ()


def open_encoder(
    bundle: Bundle, engine: str, precision: Precision, root: Path = Path('/')
) -> Encoder:
    """Return the encoder of a verified bundle on the first engine that works.

    Args:
        bundle: `verify_golden` has passed on ONNX Runtime.
        engine: one of ENGINES; a single kind is an order of one.
        precision: of the converted file that the NPU runs.
        root: where the system's files are looked for.

    Raises EngineError with every reason if none works.
    """
    part = bundle.manifest.encoder
    if part is None:
        return Encoder(None, bundle.features_id(NO_ENGINE), 'no encoder')
    order = [
        Candidate(RknnEngine.kind, partial(_prepare_rknn, bundle, part, precision, root)),
        Candidate(OrtEngine.kind, lambda: Ready(open_engine, {})),
    ]
    choice = probe([c for c in order if engine in ('auto', c.kind)])
    return _encoder(bundle, part, choice, precision)


def _encoder(bundle: Bundle, part: EncoderPart, choice: Choice, precision: Precision) -> Encoder:
    file = part.file
    if choice.kind == RknnEngine.kind:
        file = _conversion(bundle, precision).file
    loaded = choice.make_engine(bundle.path / file)
    about = f' {precision}, {loaded.version}' if isinstance(loaded, RknnEngine) else ''
    return Encoder(
        loaded,
        bundle.features_id(choice.kind, file),
        f'encoder on {choice.kind}{about}{choice.text().removeprefix(choice.kind)}',
        choice.passed_over,
    )


def _prepare_rknn(bundle: Bundle, part: EncoderPart, precision: Precision, root: Path) -> Ready:
    """Prove the NPU on the golden rows; it holds one model at a time, so it is freed again."""
    lite = load_lite(root)
    conversion = _conversion(bundle, precision)
    form = _form(bundle, part, int(conversion.figures.get('batch', 1)))

    def make_engine(path: Path) -> RknnEngine:
        engine = RknnEngine(lite, form)
        engine.load(path)
        return engine

    engine = make_engine(bundle.path / conversion.file)
    try:
        _check_golden(bundle, part, engine, precision)
    finally:
        engine.close()
    return Ready(make_engine, {})


def _conversion(bundle: Bundle, precision: Precision) -> Conversion:
    found = bundle.manifest.conversion('encoder', 'rk3568', precision)
    if found is None:
        raise EngineError(
            f'{bundle.path}: the bundle holds no {precision} encoder for rk3568: '
            'heqis convert --target rk3568 makes one'
        )
    return found


def _form(bundle: Bundle, part: EncoderPart, batch: int) -> ModelForm:
    reference = open_engine(bundle.path / part.file)
    (taken,), (given,) = reference.specs()
    reference.close()
    return ModelForm(_of_batch(taken, batch), _of_batch(given, batch))


def _of_batch(spec: TensorSpec, batch: int) -> TensorSpec:
    return spec._replace(shape=(batch, *spec.shape[1:]))


def _check_golden(
    bundle: Bundle, part: EncoderPart, engine: RknnEngine, precision: Precision
) -> None:
    golden = bundle.golden()
    rows = cast('npt.NDArray[np.float32]', golden['encoder/input'])
    found = infer_tiled(engine, rows, engine.specs()[0][0].shape[0])[part.output]
    likeness = cosine(found, golden[f'encoder/{part.output}'])
    if likeness < COSINE_MIN[precision]:
        raise EngineError(
            f'{bundle.path}: the {precision} encoder on the NPU has a cosine of {likeness:.5f} '
            f'with its golden factors, expected at least {COSINE_MIN[precision]}; convert the '
            'bundle again, or choose another precision'
        )
