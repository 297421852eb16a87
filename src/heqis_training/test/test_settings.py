# SPDX-License-Identifier: Apache-2.0
"""Training settings: what is refused, and that every one of them reaches the provenance."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from heqis_core.errors import ConfigError
from heqis_training.settings import TrainingConfig
from heqis_training.train import FitSettings


@pytest.mark.parametrize(
    'wrong',
    [
        {'window': 0},
        {'encoder_window': -4},
        {'factors': 0},
        {'encoder_width': 0},
        {'hidden': 0},
        {'tile': 0},
        {'flat_band': 0.0},
        {'flat_band': 1.5},
        {'signal_quantiles': (0.8, 0.2)},
        {'signal_quantiles': (0.0, 0.8)},
    ],
)
def test_a_value_out_of_range_is_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        TrainingConfig(**wrong)


def test_every_setting_reaches_the_provenance_as_a_plain_value() -> None:
    config = TrainingConfig()
    flat = config.settings()
    assert {name.split('.')[0] for name in flat} == {field.name for field in fields(config)}
    assert {f'generator_fit.{field.name}' for field in fields(FitSettings)} <= set(flat)
    assert flat['signal_quantiles.low'] == 0.2
    assert all(value is None or isinstance(value, int | float | str) for value in flat.values())


def test_two_configurations_that_differ_have_different_settings() -> None:
    config = TrainingConfig()
    assert replace(config, hidden=33).settings() != config.settings()
    deeper = replace(config, generator_fit=replace(config.generator_fit, epochs=3))
    assert deeper.settings() != config.settings()
