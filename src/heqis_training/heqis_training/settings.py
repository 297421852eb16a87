# SPDX-License-Identifier: Apache-2.0
"""What a training run can be told, with its defaults and its checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from heqis_core.errors import ConfigError
from heqis_training.train import FitSettings


@dataclass(frozen=True)
class TrainingConfig:
    """What a training run can be told.

    Attributes:
        seed: of initial weights, batches and bootstrap.
        train_fraction: part of the event times, from the first, that training may touch.
        validation_fraction: part of that part, at its end, that validates.
        window: W, rows that the generator sees; the horizon is twice that.
        encoder_window: T, indicator rows that the encoder sees; a multiple of 4, horizon as above.
        factors: K.
        encoder_width, hidden: channels of the encoder, width of the GRU.
        tile: rows of one call of either model.
        flat_band: log return up to which a bar is flat; None takes the band that makes a third of
            the training part flat.
        signal_quantiles: quantiles of the validation score that become the SELL and BUY
            thresholds.
        valid_for_s: seconds from the bar time until a decision is stale.
        encoder_fit, generator_fit: how the two networks are trained.
    """

    seed: int = 7
    train_fraction: float = 0.7
    validation_fraction: float = 0.15
    window: int = 20
    encoder_window: int = 16
    factors: int = 4
    encoder_width: int = 16
    hidden: int = 32
    tile: int = 64
    flat_band: float | None = None
    signal_quantiles: tuple[float, float] = (0.2, 0.8)
    valid_for_s: float = 345600.0
    encoder_fit: FitSettings = field(default_factory=lambda: FitSettings(epochs=30))
    generator_fit: FitSettings = field(default_factory=FitSettings)

    def __post_init__(self) -> None:
        """Raise ConfigError for a value out of range."""
        for name in ('window', 'encoder_window', 'factors', 'encoder_width', 'hidden', 'tile'):
            if getattr(self, name) < 1:
                raise ConfigError(f'{name} is {getattr(self, name)}, expected at least 1')
        if self.flat_band is not None and not 0 < self.flat_band < 1:
            raise ConfigError(f'flat_band is {self.flat_band}, expected a log return in (0, 1)')
        low, high = self.signal_quantiles
        if not 0 < low < high < 1:
            raise ConfigError(f'signal_quantiles are {low}, {high}, expected 0 < low < high < 1')

    def settings(self) -> dict[str, int | float | str | None]:
        """Return every value by a flat name, for the bundle's provenance."""
        flat: dict[str, int | float | str | None] = {}
        for name, value in asdict(self).items():
            if isinstance(value, dict):
                flat |= {f'{name}.{key}': part for key, part in value.items()}
            elif name == 'signal_quantiles':
                flat |= {f'{name}.low': value[0], f'{name}.high': value[1]}
            else:
                flat[name] = value
        return flat
