# SPDX-License-Identifier: Apache-2.0
"""The example of training settings: it has every field, and each with its default."""

from __future__ import annotations

from pathlib import Path

import msgspec
import yaml

from heqis_training.settings import TrainingSettings, load_settings

EXAMPLE = Path(__file__).resolve().parents[3] / 'config' / 'training.example.yaml'


def test_the_example_has_every_field_and_no_other_with_its_default() -> None:
    defaults = msgspec.json.decode(msgspec.json.encode(TrainingSettings()))
    assert yaml.safe_load(EXAMPLE.read_text(encoding='utf-8')) == defaults


def test_the_example_loads_as_the_default_settings_and_so_shares_their_run() -> None:
    settings = load_settings(EXAMPLE)
    assert settings == TrainingSettings()
    assert settings.id == TrainingSettings().id


def test_every_value_of_the_example_has_a_comment_of_its_own() -> None:
    lines = EXAMPLE.read_text(encoding='utf-8').splitlines()
    values = [line for line in lines if line and not line.startswith(('#', '- type:'))]
    assert [line for line in values if '  # ' not in line] == []
    assert max(len(line) for line in lines) <= 99
