# SPDX-License-Identifier: Apache-2.0
"""Pre-training: the factor encoder learns windows of scaled indicators, without labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from heqis_training.batches import spread
from heqis_training.device import Device
from heqis_training.models.encoder import build_autoencoder, standardise
from heqis_training.player import Best, make_player
from heqis_training.settings import EncoderSettings
from heqis_training.tensors import WindowTensors

ENCODER = 'encoder'
STANDARDISED_ON = 65536
"""Training windows at most, evenly spread, whose factors get mean 0 and deviation 1."""


class Pretraining:
    """Train the autoencoder of `settings`; see `loop.Trainee`.

    Args:
        settings: kind, sizes and how it is stepped.
        n_features: F indicators.
        training: windows that train, and their number.
        validation: windows that choose the epoch, and their number.
        device: where the network lives. One process pre-trains, and the others wait for it.
    """

    def __init__(
        self,
        settings: EncoderSettings,
        n_features: int,
        training: tuple[WindowTensors, int],
        validation: tuple[WindowTensors, int],
        device: Device,
    ) -> None:
        self._settings, self._device = settings, device.alone()
        self._training, self._validation = training, validation
        self.network = build_autoencoder(settings, n_features)
        self._player = make_player(ENCODER, self.network, settings.fit, self._device)
        self.best = Best()

    def run_epoch(self, number: int) -> tuple[dict[str, dict[str, float]], bool]:
        """Train one epoch and validate."""
        fit, total, count = self._settings.fit, 0.0, 0
        self.network.train()
        order = torch.randperm(self._training[1])[: fit.max_windows]
        for index in torch.split(order, fit.batch):
            with self._device.autocast():
                loss = self.network.loss(self._images(self._training[0], index))
            loss.backward()
            self._player.step(self._device)
            total += loss.item() * len(index)
            count += len(index)
        validation_loss = self._validate()
        self._player.scheduler.step(validation_loss)
        improved = self.best.offer(number, validation_loss, self.network)
        figures = {
            'reconstruction_loss': total / count,
            'validation_reconstruction_loss': validation_loss,
            'best_epoch': float(self.best.epoch),
            'learning_rate': self._player.learning_rate,
        }
        return {ENCODER: figures}, improved

    def notes(self) -> list[str]:
        """Return nothing: every epoch is told by its figures."""
        return []

    def state(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on."""
        return {'player': self._player.state(), 'best': vars(self.best).copy()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._player.load_state(state['player'])
        self.best = Best(**state['best'])

    def finish(self) -> torch.nn.Module:
        """Return the encoder of the best epoch, on the CPU, with standardised factors."""
        self.best.restore(self.network)
        encoder = self.network.encoder
        with torch.no_grad():
            factors = torch.cat(
                [
                    encoder(self._training[0].images(index, self._settings.window)).cpu()
                    for index in spread(self._training[1], STANDARDISED_ON)
                ]
            )
        encoder.cpu()
        standardise(encoder, factors)
        return encoder

    def _validate(self) -> float:
        self.network.eval()
        total, count = 0.0, 0
        # what is drawn while validating must not depend on how many epochs came before
        devices = range(torch.cuda.device_count())
        with torch.no_grad(), torch.random.fork_rng(devices), self._device.autocast():
            torch.manual_seed(0)
            for index in spread(self._validation[1], self._settings.fit.max_windows):
                loss = self.network.loss(self._images(self._validation[0], index))
                total += loss.item() * len(index)
                count += len(index)
        return total / count

    def _images(self, windows: WindowTensors, index: Tensor) -> Tensor:
        return windows.images(index, self._settings.window)
