# SPDX-License-Identifier: Apache-2.0
"""What a training run can be told: one tree of settings, its defaults, and the file it comes from.

Only values and their checks live here; each module takes the part that it needs.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from heqis_core.errors import ConfigError
from heqis_core.io.yaml_struct import load_struct

Count = Annotated[int, msgspec.Meta(ge=1)]
CountOrNone = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(gt=0, lt=1)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Name = Annotated[str, msgspec.Meta(pattern='^[a-z][a-z0-9_]*$')]

LARGEST_TILE = 64
"""Rows beyond which a larger tile gains nothing on a processor (benchmarks/tick_to_signal)."""


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the settings: immutable, and without fields that this version does not know."""


class SplitSettings(_Part, frozen=True):
    """Which event times train, validate and test.

    Attributes:
        train_fraction: part of the event times, from the first, that training may touch at all;
            what follows is the test part.
        validation_fraction: part of that part, at its end, that validates.
        embargo: event times that are left out before validation and test, beyond the purge of
            windows whose label reaches into them.
    """

    train_fraction: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.7
    validation_fraction: Share = 0.15
    embargo: CountOrNone = 0


class FitSettings(_Part, frozen=True):
    """How networks are stepped.

    Attributes:
        epochs: at most this many.
        patience: stop after this many epochs in which no network improved on validation.
        batch: windows of one step.
        learning_rate, weight_decay: of AdamW.
        max_windows: windows of one epoch; from more, each epoch draws this many.
        gradient_clip: largest norm of a network's gradient in one step.
        plateau_patience, plateau_factor: the learning rate of a network is multiplied by the
            factor after so many epochs in which its validation loss did not improve.
    """

    epochs: Count = 20
    patience: Count = 5
    batch: Count = 128
    learning_rate: Positive = 2e-3
    weight_decay: NotNegative = 1e-3
    max_windows: Count = 8192
    gradient_clip: Positive = 1.0
    plateau_patience: CountOrNone = 16
    plateau_factor: Share = 0.1


class EncoderSettings(_Part, frozen=True):
    """The factor encoder, trained without labels before the generators.

    Attributes:
        kind: `cae` (convolutional autoencoder), `t3vae` (heavy-tailed variational autoencoder) or
            `none` (indicators alone).
        window: T, indicator rows that it sees; a multiple of 4. The horizon is twice that.
        factors: K, numbers that it gives.
        width: channels in between.
        nu, sigma: t3-VAE's degrees of freedom (above 2) and scale of the decoder.
    """

    kind: Literal['cae', 't3vae', 'none'] = 'cae'
    window: Annotated[int, msgspec.Meta(ge=4, multiple_of=4)] = 16
    factors: Count = 4
    width: Count = 16
    nu: Annotated[float, msgspec.Meta(gt=2)] = 10.0
    sigma: Positive = 1.0
    fit: FitSettings = FitSettings(epochs=30)


class _Generator(_Part, frozen=True):
    """What every generator has.

    Attributes:
        name: unique; the kind where it is empty.
        window: W, rows that it sees.
        dropout: share of the last state that is dropped while training.
    """

    name: Name | None = None
    window: Annotated[int, msgspec.Meta(ge=2)] = 20
    dropout: Annotated[float, msgspec.Meta(ge=0, lt=1)] = 0.1


class GruSettings(_Generator, frozen=True, tag='gru'):
    """A GRU generator: `hidden` wide, `layers` deep."""

    hidden: Count = 32
    layers: Count = 1


class LstmSettings(_Generator, frozen=True, tag='lstm'):
    """An LSTM generator, in both directions if so told."""

    hidden: Count = 32
    layers: Count = 1
    bidirectional: bool = False


class TransformerSettings(_Generator, frozen=True, tag='transformer'):
    """A Transformer generator.

    Attributes:
        width: d of the model; `width / heads` must be even.
        heads, layers, feedforward: as in Vaswani et al., 2017.
        position: `rope` rotates queries and keys (Su et al., 2021), `none` tells no order.
        rope_base: of the angles.
        attention: `full`, or `causal`: no row sees a later one.
    """

    width: Count = 32
    heads: Count = 4
    layers: Count = 2
    feedforward: Count = 64
    position: Literal['rope', 'none'] = 'rope'
    rope_base: Annotated[float, msgspec.Meta(gt=1)] = 10000.0
    attention: Literal['full', 'causal'] = 'full'


GeneratorSettings = GruSettings | LstmSettings | TransformerSettings


class DiscriminatorSettings(_Part, frozen=True):
    """A discriminator: a GRU over `window` past returns and the next one, with their classes.

    Attributes:
        window: W, past returns that it sees before the one that may be a fake.
        hidden: width of the GRU.
        embedding: numbers of a class's embedding.
    """

    window: Count = 20
    hidden: Count = 16
    embedding: Count = 4


class AdversarialSettings(_Part, frozen=True):
    """The loss of Multi-GAN and its schedule; the default values are those of the reference.

    Attributes:
        adversarial, regression, classification: weights of the three terms of a generator's loss.
        class_gradient: how the class that a generator gives reaches a discriminator:
            `straight_through` (one-hot forward, softmax backward) or `gumbel` (a seeded draw).
        identity_epochs: first epochs in which generator i plays against discriminator i alone.
        weights: of the pairs after that: `uniform` (1/N) or `dynamic`, softmax over generators of
            the negative validation MSE, plus 1 for the own pair.
        distil_every: epochs between distillations from the best to the worst generator; 0: never.
        distil_alpha, distil_temperature, distil_lambda: of the distillation loss.
        cross_every, cross_epochs: every so often the best generator plays this many epochs against
            the best discriminator; 0: never.
    """

    adversarial: NotNegative = 1.0
    regression: NotNegative = 1.0
    classification: NotNegative = 1.0
    class_gradient: Literal['straight_through', 'gumbel'] = 'straight_through'
    identity_epochs: CountOrNone = 10
    weights: Literal['uniform', 'dynamic'] = 'dynamic'
    distil_every: CountOrNone = 30
    distil_alpha: Annotated[float, msgspec.Meta(ge=0, le=1)] = 0.3
    distil_temperature: Positive = 2.0
    distil_lambda: NotNegative = 0.8
    cross_every: CountOrNone = 10
    cross_epochs: Count = 5


class TrainingSettings(_Part, frozen=True):
    """Everything that a training run can be told.

    Attributes:
        seed: of initial weights, batches and bootstrap.
        split, encoder, generators, discriminators, adversarial: see there. Without discriminators
            the generators learn from labels alone (empirical risk).
        fit: how generators and discriminators are stepped.
        discriminator_learning_rate: of Adam; None takes that of the generators.
        horizons: bars ahead whose log return is learned; the first one is 1 and is what is served.
        flat_band: log return up to which a bar is flat; None takes the band that makes a third of
            the training part flat.
        tile: rows of one call of an exported model; None takes the power of two up to 64 that
            holds the symbols of the training. One symbol costs a whole tile; a GPU likes large
            ones.
        signal_quantiles: quantiles of the validation score that become the SELL and BUY
            thresholds.
        valid_for_s: seconds from the bar time until a decision is stale.
        shrink: whether forecast returns are scaled down to what validation supports, see
            `shrinkage`; without, a network's returns are as large as it learned them.
        ensemble: whether the mean of the generators stands for selection beside each of them.
        precision: `float32`, or `bfloat16` where the device can (mixed: weights stay float32).
        compile: whether networks go through torch.compile.
    """

    seed: int = 7
    split: SplitSettings = SplitSettings()
    encoder: EncoderSettings = EncoderSettings()
    generators: Annotated[tuple[GeneratorSettings, ...], msgspec.Meta(min_length=1)] = (
        GruSettings(),
        LstmSettings(),
        TransformerSettings(),
    )
    discriminators: tuple[DiscriminatorSettings, ...] = (
        DiscriminatorSettings(window=5),
        DiscriminatorSettings(window=10),
        DiscriminatorSettings(window=15),
    )
    adversarial: AdversarialSettings = AdversarialSettings()
    fit: FitSettings = FitSettings()
    discriminator_learning_rate: Positive | None = None
    horizons: Annotated[tuple[Count, ...], msgspec.Meta(min_length=1)] = (1,)
    flat_band: Share | None = None
    tile: Count | None = None
    signal_quantiles: tuple[Share, Share] = (0.2, 0.8)
    valid_for_s: Positive = 345600.0
    shrink: bool = True
    ensemble: bool = True
    precision: Literal['float32', 'bfloat16'] = 'float32'
    compile: bool = False

    def __post_init__(self) -> None:
        """Raise ConfigError for values that do not fit one another."""
        low, high = self.signal_quantiles
        if low >= high:
            raise ConfigError(f'signal_quantiles are {low}, {high}, expected low < high')
        ahead = self.horizons
        if ahead[0] != 1 or any(b <= a for a, b in itertools.pairwise(ahead)):
            raise ConfigError(f'horizons are {list(ahead)}, expected 1, then ascending numbers')
        names = self.generator_names
        if len({*names, 'encoder', 'ensemble'}) != len(names) + 2:
            raise ConfigError(
                f'generators are named {list(names)}, expected different names, none of them '
                '`encoder` or `ensemble`; give each a `name`'
            )
        for part in self.generators:
            if isinstance(part, TransformerSettings):
                _check_heads(part)

    @property
    def generator_names(self) -> tuple[str, ...]:
        """Return the name of each generator, its kind where it has none."""
        return tuple(part.name or kind_of(part) for part in self.generators)

    @property
    def network_names(self) -> tuple[str, ...]:
        """Return the name of each generator, then of each discriminator."""
        against = (f'discriminator_{k}' for k in range(1, len(self.discriminators) + 1))
        return (*self.generator_names, *against)

    @property
    def window(self) -> int:
        """Return the longest window of the generators; a window's horizon is twice that."""
        return max(part.window for part in self.generators)

    def tile_of(self, n_symbols: int) -> int:
        """Return the rows of one call for a training on so many symbols."""
        return self.tile or min(LARGEST_TILE, 1 << (n_symbols - 1).bit_length())

    @property
    def past(self) -> int:
        """Return the longest window of the discriminators, 0 without any."""
        return max((part.window for part in self.discriminators), default=0)

    @property
    def id(self) -> str:
        """Return 16 hex digits of the settings that decide what each epoch does.

        How many epochs there are is none of them: a run may go on for longer than was planned.
        """
        fit = msgspec.structs.replace(self.fit, epochs=1, patience=1)
        text = msgspec.json.encode(msgspec.structs.replace(self, fit=fit), order='sorted')
        return hashlib.sha256(text).hexdigest()[:16]

    def flat(self) -> dict[str, bool | int | float | str | None]:
        """Return every value by a dotted name, for a bundle's provenance."""
        found: dict[str, bool | int | float | str | None] = {}
        _flatten('', msgspec.to_builtins(self), found)
        return found

    def to_yaml(self) -> str:
        """Return the settings as YAML that `load_settings` reads back to equal ones."""
        return msgspec.yaml.encode(self).decode()


def kind_of(part: GeneratorSettings) -> str:
    """Return `gru`, `lstm` or `transformer`."""
    return str(part.__struct_config__.tag)


def load_settings(path: Path | str | None) -> TrainingSettings:
    """Read settings from a YAML file, the defaults without one.

    Raises ConfigError as `file:line: field: what is wrong`.
    """
    if path is None:
        return TrainingSettings()
    try:
        return load_struct(path, TrainingSettings)
    except ConfigError as error:
        told = str(error)
        raise ConfigError(told if told.startswith(str(path)) else f'{path}: {told}') from error


def _check_heads(part: TransformerSettings) -> None:
    head = part.width // part.heads
    if part.width % part.heads or head % 2:
        raise ConfigError(
            f'transformer: width {part.width} over {part.heads} heads gives '
            f'{part.width / part.heads:g} numbers a head, expected an even number'
        )


def _flatten(prefix: str, value: Any, found: dict[str, bool | int | float | str | None]) -> None:
    items: Callable[[], Any] | None = getattr(value, 'items', None)
    if items is not None:
        pairs = [(str(key), part) for key, part in items()]
    elif isinstance(value, list | tuple):
        pairs = [(str(index), part) for index, part in enumerate(value)]
    else:
        found[prefix] = value
        return
    for key, part in pairs:
        _flatten(f'{prefix}.{key}' if prefix else key, part, found)
