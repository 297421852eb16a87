# SPDX-License-Identifier: Apache-2.0
"""Training settings: what a file may say, what is refused by name, what makes two runs one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heqis_core.errors import ConfigError
from heqis_training.settings import (
    DiscriminatorSettings,
    EncoderSettings,
    FitSettings,
    GruSettings,
    LstmSettings,
    TrainingSettings,
    TransformerSettings,
    kind_of,
    load_settings,
)

replace = msgspec.structs.replace
DEFAULT = TrainingSettings()

shares = st.floats(0.01, 0.99)
rates = st.floats(1e-6, 1.0)
counts = st.integers(1, 64)
fits = st.builds(FitSettings, epochs=counts, batch=counts, learning_rate=rates)
generators = st.one_of(
    st.builds(GruSettings, window=st.integers(2, 64), hidden=counts, dropout=st.just(0.25)),
    st.builds(LstmSettings, window=st.integers(2, 64), bidirectional=st.booleans()),
    st.builds(
        TransformerSettings,
        heads=st.sampled_from([1, 2, 4]),
        position=st.sampled_from(['rope', 'none']),
        attention=st.sampled_from(['full', 'causal']),
    ),
)
settings_trees = st.builds(
    TrainingSettings,
    seed=st.integers(-5, 1 << 40),
    encoder=st.builds(
        EncoderSettings, kind=st.sampled_from(['cae', 't3vae', 'none']), nu=st.floats(2.5, 100)
    ),
    generators=st.lists(generators, min_size=1, max_size=4).map(
        lambda parts: tuple(replace(part, name=f'g{k}') for k, part in enumerate(parts))
    ),
    discriminators=st.lists(st.builds(DiscriminatorSettings, window=counts), max_size=3).map(
        tuple
    ),
    fit=fits,
    horizons=st.sampled_from([(1,), (1, 2), (1, 5, 20)]),
    flat_band=st.none() | shares,
    compile=st.booleans(),
)


def write(folder: Path, text: str) -> Path:
    path = folder / 'settings.yaml'
    path.write_text(text, encoding='utf-8')
    return path


def leaves(tree: Any, place: str = '') -> Iterator[str]:
    """Yield the dotted name of every plain value of the settings, by another way than `flat`."""
    if isinstance(tree, msgspec.Struct):
        if tag := tree.__struct_config__.tag:
            assert isinstance(tag, str)
            yield f'{place}type'
        for name in tree.__struct_fields__:
            value = getattr(tree, name)
            below = isinstance(value, msgspec.Struct | tuple)
            yield from leaves(value, f'{place}{name}.') if below else [f'{place}{name}']
    else:
        for number, value in enumerate(tree):
            below = isinstance(value, msgspec.Struct | tuple)
            yield from leaves(value, f'{place}{number}.') if below else [f'{place}{number}']


@given(settings=settings_trees)
def test_any_settings_come_back_from_their_yaml(
    settings: TrainingSettings, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = write(tmp_path_factory.getbasetemp(), settings.to_yaml())
    found = load_settings(path)
    assert found == settings
    assert found.id == settings.id


@given(settings=settings_trees)
def test_every_setting_reaches_the_provenance_as_a_plain_value(settings: TrainingSettings) -> None:
    flat = settings.flat()
    assert sorted(flat) == sorted(leaves(settings))
    assert all(value is None or isinstance(value, int | float | str) for value in flat.values())


def test_no_file_and_an_empty_mapping_give_the_defaults(tmp_path: Path) -> None:
    assert load_settings(None) == DEFAULT
    assert load_settings(write(tmp_path, '{}\n')) == DEFAULT
    assert load_settings(write(tmp_path, 'fit: {epochs: 3}\n')).fit == FitSettings(epochs=3)


def test_the_length_of_a_run_is_no_part_of_its_id_and_everything_else_is() -> None:
    longer = replace(DEFAULT, fit=replace(DEFAULT.fit, epochs=99, patience=98))
    assert longer.id == DEFAULT.id
    others = [
        replace(DEFAULT, seed=8),
        replace(DEFAULT, shrink=False),
        replace(DEFAULT, fit=replace(DEFAULT.fit, batch=64)),
        replace(DEFAULT, encoder=replace(DEFAULT.encoder, fit=FitSettings(epochs=31))),
        replace(DEFAULT, generators=DEFAULT.generators[:2]),
        replace(DEFAULT, generators=DEFAULT.generators[::-1]),
        replace(DEFAULT, discriminators=()),
        replace(DEFAULT, adversarial=replace(DEFAULT.adversarial, weights='uniform')),
        replace(DEFAULT, split=replace(DEFAULT.split, embargo=1)),
    ]
    assert len({DEFAULT.id, *(one.id for one in others)}) == len(others) + 1


def test_generators_without_a_name_are_named_after_their_kind() -> None:
    parts = (GruSettings(name='fast', window=5), GruSettings(window=30), LstmSettings())
    settings = replace(DEFAULT, generators=parts)
    assert settings.generator_names == ('fast', 'gru', 'lstm')
    assert settings.network_names[3:] == tuple(f'discriminator_{k}' for k in (1, 2, 3))
    assert settings.window == 30
    assert settings.past == 15
    assert replace(settings, discriminators=()).past == 0
    assert [kind_of(part) for part in parts] == ['gru', 'gru', 'lstm']


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('sed: 7', ':1: Object contains unknown field `sed`; expected one of seed, split'),
        ('\nfit:\n  batch: 0', r':3: fit\.batch: Expected `int` >= 1'),
        ('fit:\n  learning_rate: fast', r':2: fit\.learning_rate: Expected `float`, got `str`'),
        ('split: {train_fraction: 0}', r':1: split\.train_fraction: Expected `float` > 0'),
        ('split: {validation_fraction: 1}', r':1: split\.validation_fraction: Expected'),
        ('encoder: {window: 10}', r':1: encoder\.window: .*multiple of 4'),
        ('encoder: {kind: vae}', r":1: encoder\.kind: Invalid enum value 'vae'"),
        ('encoder: {nu: 2}', r':1: encoder\.nu: Expected `float` > 2'),
        ('generators: []', r':1: generators: Expected `array` of length >= 1'),
        ('generators:\n- {type: gru, window: 1}', r':2: generators\[0\]\.window: .* >= 2'),
        ('generators:\n- {type: gru, heads: 2}', r':2: generators\[0\]: .*unknown field `heads`'),
        ('generators:\n- {window: 5}', r':2: generators\[0\]: .*missing required field `type`'),
        ('generators:\n- {type: gru, name: My Net}', r':2: generators\[0\]\.name: .*regex'),
        ('generators:\n- {type: gru}\n- {type: gru}', 'different names, none of them `encoder`'),
        ('generators:\n- {type: gru, name: encoder}', 'different names, none of them `encoder`'),
        ('generators:\n- {type: gru, name: ensemble}', 'different names, none of them'),
        ('generators:\n- {type: transformer, heads: 5}', 'width 32 over 5 heads gives 6.4'),
        (
            'generators:\n- {type: transformer, width: 12}',
            'gives 3 numbers a head, expected an ev',
        ),
        ('horizons: [5]', r'horizons are \[5\], expected 1, then ascending'),
        ('horizons: [1, 5, 5]', r'horizons are \[1, 5, 5\], expected 1, then ascending'),
        ('horizons: []', r':1: horizons: Expected `array` of length >= 1'),
        ('flat_band: 0', r':1: flat_band: Expected `float` > 0'),
        ('signal_quantiles: [0.5, 0.5]', r'signal_quantiles are 0\.5, 0\.5, expected low < high'),
        ('adversarial: {weights: mine}', r":1: adversarial\.weights: Invalid enum value 'mine'"),
        ('precision: float16', r":1: precision: Invalid enum value 'float16'"),
        ('7', ':1: Expected `object`, got `int`'),
        ('', ':1: Expected `object`, got `null`'),
    ],
)
def test_what_cannot_be_is_refused_by_file_line_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=message) as caught:
        load_settings(path)
    assert str(caught.value).startswith(f'{path}:')


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r'nowhere\.yaml: cannot be read'):
        load_settings(tmp_path / 'nowhere.yaml')
    (tmp_path / 'bytes.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match=r'bytes\.yaml: cannot be read'):
        load_settings(tmp_path / 'bytes.yaml')


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('encoder: {kind: vae}\n', 'expected one of cae, none, t3vae'),
        ('fit:\n  learning_rate: 2e-3\n', 'write 2.0e-3'),
        ('adversarial: {weights: fair}\n', 'expected one of dynamic, uniform'),
    ],
)
def test_what_may_stand_there_is_told(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / 'config.yaml'
    file.write_text(text, encoding='utf-8')
    with pytest.raises(ConfigError, match=told):
        load_settings(file)


@pytest.mark.parametrize(
    ('symbols', 'tile'), [(1, 1), (2, 2), (3, 4), (8, 8), (9, 16), (64, 64), (5400, 64)]
)
def test_a_tile_that_is_not_given_holds_the_symbols_of_the_training(
    symbols: int, tile: int
) -> None:
    assert DEFAULT.tile_of(symbols) == tile
    assert replace(DEFAULT, tile=48).tile_of(symbols) == 48
