# SPDX-License-Identifier: Apache-2.0
"""The models of a default bundle at full size, untrained, for measuring time alone.

The networks and the export are those of `heqis train`; the weights are random: what they answer
means nothing, how long they take does.
"""

from __future__ import annotations

from pathlib import Path

import torch

from heqis_core.features.spec import FeatureItem, FeatureSpec, default_spec
from heqis_training.export import export_onnx
from heqis_training.models.build import build_generator
from heqis_training.models.encoder import FactorEncoder
from heqis_training.models.served import ServedGenerator, output_names
from heqis_training.settings import (
    GeneratorSettings,
    GruSettings,
    LstmSettings,
    TransformerSettings,
)

WINDOW = 60
"""Rows that encoder and generators see."""
FACTORS = 4
WIDTH = 64
GENERATORS: tuple[GeneratorSettings, ...] = (
    GruSettings(window=WINDOW, hidden=WIDTH),
    LstmSettings(window=WINDOW, hidden=WIDTH),
    TransformerSettings(window=WINDOW, width=WIDTH, layers=2, feedforward=4 * WIDTH),
)
NAMES = ('gru', 'lstm', 'transformer')


def spec() -> FeatureSpec:
    """Return the default spec and five features more: 28 columns, with the factors 32."""
    more = (
        FeatureItem('return', {'n': 20}),
        FeatureItem('log_return'),
        FeatureItem('ma', {'n': 60}, relative=True),
        FeatureItem('rsi', {'n': 14}),
        FeatureItem('cci'),
    )
    return FeatureSpec((*default_spec().features, *more))


def write_models(folder: Path, tile: int) -> None:
    """Write encoder and generators for that tile, as NAME.onnx."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    n_indicators = len(spec().names)
    encoder = FactorEncoder(n_indicators, WINDOW, FACTORS, WIDTH)
    data = export_onnx(encoder, (tile, n_indicators, 1, WINDOW), 'window', ('factors',))
    folder.mkdir()
    (folder / 'encoder.onnx').write_bytes(data)
    for settings, name in zip(GENERATORS, NAMES, strict=True):
        served = ServedGenerator(build_generator(settings, n_indicators + FACTORS, 1), [1.0])
        shape = (tile, WINDOW, n_indicators + FACTORS)
        data = export_onnx(served, shape, 'window', output_names(1))
        (folder / f'{name}.onnx').write_bytes(data)
