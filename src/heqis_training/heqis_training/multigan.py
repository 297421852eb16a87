# SPDX-License-Identifier: Apache-2.0
"""Multi-GAN: N generators against M discriminators, epoch by epoch.

With one of each it is a plain conditional GAN, without discriminators N separate regressions, so
that every network of a comparison is trained by this code. Losses live in `adversarial`, the loop
over epochs in `loop`, files elsewhere.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from heqis_core.manifest import ENSEMBLE
from heqis_training import adversarial
from heqis_training.adversarial import Next
from heqis_training.batches import Batch, Part
from heqis_training.device import Device
from heqis_training.models.build import build_discriminator, build_generator
from heqis_training.models.forecast import Forecast
from heqis_training.settings import TrainingSettings


class Scores(NamedTuple):
    """What a forecaster got on the validation windows, in units of the training spread.

    `loss` is the weighted sum of `mse` and `cross_entropy`: it chooses epochs and the generator
    that is served, so that neither head is chosen by the other's merit alone.
    """

    loss: float
    mse: float
    cross_entropy: float
    accuracy: float


@dataclass
class Player:
    """A network with what steps it.

    Attributes:
        name: for reports and files.
        network: its parameters.
        optimizer: fused, of this network alone.
        scheduler: lowers the learning rate on a plateau.
        clip: largest norm of a gradient.
    """

    name: str
    network: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.ReduceLROnPlateau
    clip: float

    def step(self, device: Device) -> None:
        """Take one step along the gradients that are there, and drop them."""
        parameters = list(self.network.parameters())
        device.average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, self.clip, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on."""
        parts = (self.network, self.optimizer, self.scheduler)
        network, optimizer, scheduler = (copy.deepcopy(part.state_dict()) for part in parts)
        return {'network': network, 'optimizer': optimizer, 'scheduler': scheduler}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go back to what `state` returned."""
        self.network.load_state_dict(state['network'])
        self.optimizer.load_state_dict(copy.deepcopy(state['optimizer']))
        self.scheduler.load_state_dict(state['scheduler'])

    @property
    def learning_rate(self) -> float:
        """Return the present learning rate."""
        return float(self.optimizer.param_groups[0]['lr'])


@dataclass
class Best:
    """The state of a generator in its best validation epoch; epoch 0 is none."""

    epoch: int = 0
    loss: float = math.inf
    network: dict[str, Tensor] = field(default_factory=dict)


class MultiGan:
    """Train the generators of `settings` against its discriminators.

    Args:
        settings: networks, losses, schedule.
        n_features: columns F of a window's row.
        training: windows that train.
        validation: windows that choose.
        device: where the networks live.

    Networks draw their weights from torch's generator, in order: call it in `deterministic`.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        n_features: int,
        training: Part,
        validation: Part,
        device: Device | None = None,
    ) -> None:
        self.settings, self.device = settings, device or Device()
        self._training, self._validation = training, validation
        n_horizons = len(settings.horizons)
        self.generators = [
            self._player(name, build_generator(part, n_features, n_horizons), torch.optim.AdamW)
            for name, part in zip(settings.generator_names, settings.generators, strict=True)
        ]
        self._windows = [part.window for part in settings.generators]
        self.discriminators = [
            self._player(f'discriminator_{number}', build_discriminator(part), torch.optim.Adam)
            for number, part in enumerate(settings.discriminators, start=1)
        ]
        self.best = [Best() for _ in self.generators]
        self.scores = [Scores(1.0, 1.0, 1.0, 0.0) for _ in self.generators]
        self._notes: list[str] = []

    # --- epochs ----------------------------------------------------------------------------------

    def run_epoch(self, number: int) -> tuple[dict[str, dict[str, float]], bool]:
        """Train one epoch, validate, distil and fine-tune when due; see `loop.Trainee`."""
        weights = adversarial.pair_weights(
            self.settings.adversarial,
            number,
            len(self.discriminators),
            [score.mse for score in self.scores],
        )
        figures = self._play(self.generators, self.discriminators, weights)
        improved = False
        for place, player in enumerate(self.generators):
            self.scores[place] = self._validate([place])
            player.scheduler.step(self.scores[place].loss)
            improved |= self._remember(place, number)
        for player in self.discriminators:
            player.scheduler.step(figures[player.name]['loss'])
        rules = self.settings.adversarial
        if _due(number, rules.cross_every) and self.discriminators:
            losses = [figures[player.name]['loss'] for player in self.discriminators]
            improved |= self._cross_tune(number, losses.index(min(losses)))
        if _due(number, rules.distil_every) and len(self.generators) > 1:
            improved |= self._distil(number)
        for place, player in enumerate(self.generators):
            figures[player.name] |= {
                f'validation_{name}': value for name, value in self.scores[place]._asdict().items()
            } | {'best_epoch': float(self.best[place].epoch)}
        for player in (*self.generators, *self.discriminators):
            figures[player.name]['learning_rate'] = player.learning_rate
        return figures, improved

    def notes(self) -> list[str]:
        """Return what happened beyond the figures, and forget it."""
        notes, self._notes = self._notes, []
        return notes

    def state(self) -> dict[str, Any]:
        """Return everything that the next epoch depends on."""
        return {
            'players': {p.name: p.state() for p in (*self.generators, *self.discriminators)},
            'best': [vars(best).copy() for best in self.best],
            'scores': [list(score) for score in self.scores],
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        for player in (*self.generators, *self.discriminators):
            player.load_state(state['players'][player.name])
        self.best = [Best(**best) for best in state['best']]
        self.scores = [Scores(*score) for score in state['scores']]

    # --- what comes out --------------------------------------------------------------------------

    def best_networks(self) -> dict[str, nn.Module]:
        """Put every generator into its best state, for good, and return them by name."""
        for player, best in zip(self.generators, self.best, strict=True):
            if best.epoch:
                player.network.load_state_dict(best.network)
            player.network.eval()
        return {player.name: player.network for player in self.generators}

    def candidates(self) -> dict[str, Scores]:
        """Return the validation scores of what could be served, with the networks as they are.

        The ensemble is the mean of all generators, if the settings have one and there are two.
        """
        places = range(len(self.generators))
        found = {self.generators[place].name: self._validate([place]) for place in places}
        if self.settings.ensemble and len(places) > 1:
            found[ENSEMBLE] = self._validate(places)
        return found

    # --- one epoch of a game ---------------------------------------------------------------------

    def _play(
        self, generators: Sequence[Player], discriminators: Sequence[Player], weights: Tensor
    ) -> dict[str, dict[str, float]]:
        """Let these players play one epoch; return mean losses by player."""
        for player in (*generators, *discriminators):
            player.network.train()
        total, count = torch.zeros(0), 0
        for batch in self._training.shuffled(self.settings.fit):
            batch = self.device.share(batch)
            losses = self._step(batch, generators, discriminators, weights)
            total = losses * len(batch.classes) + (total if count else 0.0)
            count += len(batch.classes)
        means = (total / count).tolist()
        figures = {
            player.name: dict(
                zip(('mse', 'cross_entropy', 'adversarial'), means[3 * place :], strict=False)
            )
            for place, player in enumerate(generators)
        }
        for loss, player in zip(means[3 * len(generators) :], discriminators, strict=True):
            figures[player.name] = {'loss': loss}
        return figures

    def _step(
        self,
        batch: Batch,
        generators: Sequence[Player],
        discriminators: Sequence[Player],
        weights: Tensor,
    ) -> Tensor:
        """Step discriminators, then generators; return their losses (3 N + M,)."""
        rules = self.settings.adversarial
        with self.device.autocast():
            forecasts = [self._forecast(player, batch) for player in generators]
            fakes = [
                Next(f.log_returns[:, 0], adversarial.soft_class(f.logits, rules.class_gradient))
                for f in forecasts
            ]
        judged = [
            self._step_discriminator(player, batch, fakes, weights[j])
            for j, player in enumerate(discriminators)
        ]
        with self.device.autocast():
            against = adversarial.adversarial_losses(
                [player.network for player in discriminators], batch.past, fakes, weights
            )
            pairs = [self._supervised(forecast, batch) for forecast in forecasts]
            mse, entropy = (torch.stack(part) for part in zip(*pairs, strict=True))
            loss = (
                rules.adversarial * against
                + rules.regression * mse
                + rules.classification * entropy
            )
        loss.sum().backward()
        for player in generators:
            player.step(self.device)
        each = torch.stack((mse, entropy, against), dim=1).flatten()
        return torch.cat((each, *(value.reshape(1) for value in judged))).detach()

    def _step_discriminator(
        self, player: Player, batch: Batch, fakes: Sequence[Next], weights: Tensor
    ) -> Tensor:
        with self.device.autocast():
            loss = adversarial.discriminator_loss(
                player.network, batch.past, batch.real, fakes, weights
            )
        loss.backward()
        player.step(self.device)
        return loss.detach()

    def _forecast(self, player: Player, batch: Batch) -> Forecast:
        window = self._windows[self.generators.index(player)]
        forecast: Forecast = player.network(batch.rows[:, -window:])
        return forecast

    @staticmethod
    def _supervised(forecast: Forecast, batch: Batch) -> tuple[Tensor, Tensor]:
        return (
            functional.mse_loss(forecast.log_returns.float(), batch.targets),
            functional.cross_entropy(forecast.logits.float(), batch.classes),
        )

    # --- validation ------------------------------------------------------------------------------

    def _validate(self, places: Sequence[int]) -> Scores:
        """Score one generator, or the mean of several, on the validation part."""
        players = [self.generators[place] for place in places]
        for player in players:
            player.network.eval()
        total, count = torch.zeros(3, dtype=torch.float64), 0
        with torch.no_grad(), self.device.autocast():
            for batch in self._validation.in_order(self.settings.fit.max_windows):
                forecasts = [self._forecast(player, batch) for player in players]
                returns = torch.stack([f.log_returns.float() for f in forecasts]).mean(0)
                log_p = torch.stack([f.logits.float().softmax(1) for f in forecasts]).mean(0).log()
                size = len(batch.classes)
                part = (
                    functional.mse_loss(returns, batch.targets),
                    functional.nll_loss(log_p, batch.classes),
                    (log_p.argmax(1) == batch.classes).float().mean(),
                )
                total += size * torch.stack(part).double().cpu()
                count += size
        mse, entropy, accuracy = (total / count).tolist()
        rules = self.settings.adversarial
        loss = rules.regression * mse + rules.classification * entropy
        return Scores(loss, mse, entropy, accuracy)

    def _remember(self, place: int, number: int) -> bool:
        if self.scores[place].loss < self.best[place].loss:
            network = self.generators[place].network
            kept = {name: value.detach().clone() for name, value in network.state_dict().items()}
            self.best[place] = Best(number, self.scores[place].loss, kept)
            return True
        return False

    # --- what is tried, and undone when validation does not improve --------------------------------

    def _distil(self, number: int) -> bool:
        """Teach the worst generator what the best one knows; return whether it is a new best."""
        order = sorted(range(len(self.generators)), key=lambda place: self.scores[place].mse)
        best, worst = order[0], order[-1]
        teacher, student = self.generators[best], self.generators[worst]
        before = student.state()
        teacher.network.eval()
        student.network.train()
        for batch in self._training.shuffled(self.settings.fit):
            batch = self.device.share(batch)
            with self.device.autocast():
                with torch.no_grad():
                    taught = self._forecast(teacher, batch)
                forecast = self._forecast(student, batch)
                loss = adversarial.distillation_loss(
                    taught.logits,
                    forecast.logits,
                    forecast.log_returns,
                    batch.classes,
                    batch.targets,
                    self.settings.adversarial,
                )
            loss.backward()
            student.step(self.device)
        undo = ((student, before),)
        return self._keep_or_undo(number, worst, undo, f'distilled {teacher.name} -> ')

    def _cross_tune(self, number: int, strongest: int) -> bool:
        """Let the best generator play the best discriminator alone; return whether it gained."""
        place = min(range(len(self.generators)), key=lambda place: self.scores[place].mse)
        pair = (self.generators[place], self.discriminators[strongest])
        undo = tuple((player, player.state()) for player in pair)
        for _ in range(self.settings.adversarial.cross_epochs):
            self._play(pair[:1], pair[1:], torch.ones(1, 1, dtype=torch.float64))
        return self._keep_or_undo(number, place, undo, f'fine-tuned against {pair[1].name}: ')

    def _keep_or_undo(
        self,
        number: int,
        place: int,
        undo: Sequence[tuple[Player, Mapping[str, Any]]],
        what: str,
    ) -> bool:
        before, after = self.scores[place], self._validate([place])
        kept = after.loss < before.loss
        if kept:
            self.scores[place] = after
        else:
            for player, state in undo:
                player.load_state(state)
        self._notes.append(
            f'{what}{self.generators[place].name}: validation {before.loss:.5f} -> '
            f'{after.loss:.5f}, {"kept" if kept else "undone"}'
        )
        return kept and self._remember(place, number)

    def _player(
        self, name: str, network: nn.Module, kind: type[torch.optim.Adam | torch.optim.AdamW]
    ) -> Player:
        fit = self.settings.fit
        network.to(self.device.name)
        if self.settings.compile:
            network.compile()
        if kind is torch.optim.AdamW:
            rate, decay = fit.learning_rate, fit.weight_decay
        else:
            rate, decay = self.settings.discriminator_learning_rate or fit.learning_rate, 0.0
        optimizer = kind(network.parameters(), lr=rate, weight_decay=decay, fused=True)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=fit.plateau_factor, patience=fit.plateau_patience
        )
        return Player(name, network, optimizer, scheduler, fit.gradient_clip)


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
