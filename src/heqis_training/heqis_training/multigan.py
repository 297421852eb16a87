# SPDX-License-Identifier: Apache-2.0
"""Multi-GAN: N generators against M discriminators, epoch by epoch.

With one of each it is a plain conditional GAN, without discriminators N separate regressions, so
that every network of a comparison is trained by this code. Losses live in `adversarial`, the loop
over epochs in `loop`, files elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional

from heqis_core.errors import DataError
from heqis_core.manifest import ENSEMBLE
from heqis_training import adversarial
from heqis_training.adversarial import Next
from heqis_training.batches import Batch, Part
from heqis_training.device import Device
from heqis_training.models.build import Forecast, build_discriminator, build_generator
from heqis_training.player import Best, Player, make_player
from heqis_training.settings import TrainingSettings
from heqis_training.shrinkage import shrinkage

TRAINING_FIGURES = ('training_mse', 'training_cross_entropy', 'training_adversarial')
"""Mean losses of a generator over the windows of an epoch."""


class Scores(NamedTuple):
    """What a forecaster got on the validation windows, in units of the training spread.

    `loss` is the weighted sum of `mse` and `cross_entropy`: it chooses epochs and the generator
    that is served, so that neither head is chosen by the other's merit alone.
    """

    loss: float
    mse: float
    cross_entropy: float
    accuracy: float


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
        n_horizons, names = len(settings.horizons), settings.network_names
        fit = settings.fit
        rate = settings.discriminator_learning_rate or fit.learning_rate
        # Adam is AdamW without decay: a discriminator must stay as sharp as it can be.
        against = msgspec.structs.replace(fit, learning_rate=rate, weight_decay=0.0)
        self.generators = [
            make_player(name, build_generator(part, n_features, n_horizons), fit, self.device)
            for name, part in zip(names, settings.generators, strict=False)
        ]
        if settings.compile:
            for player in self.generators:
                player.network.compile()
        self.discriminators = [
            make_player(name, build_discriminator(part), against, self.device)
            for name, part in zip(
                names[len(self.generators) :], settings.discriminators, strict=True
            )
        ]
        self.best = [Best() for _ in self.generators]
        self.scores = [Scores(1.0, 1.0, 1.0, 0.0) for _ in self.generators]
        self._notes: list[str] = []

    # --- epochs ----------------------------------------------------------------------------------

    def run_epoch(self, number: int) -> tuple[dict[str, dict[str, float]], bool]:
        """Train one epoch, validate, distil and fine-tune when due; see `loop.Trainee`.

        Raises DataError if the validation loss of a generator is not finite.
        """
        weights = adversarial.pair_weights(
            self.settings.adversarial,
            number,
            len(self.discriminators),
            [score.mse for score in self.scores],
        )
        alone = self.settings.adversarial.identity_epochs
        if self.discriminators and alone and number == alone + 1:
            self._notes.append(
                f'pair weights are {self.settings.adversarial.weights} from here on: adversarial '
                'and discriminator losses do not compare with those before'
            )
        figures = self._play(self.generators, self.discriminators, weights)
        improved = False
        for place, player in enumerate(self.generators):
            self.scores[place] = self._agreed(place)
            self._require_finite(place, number)
            player.scheduler.step(self.scores[place].loss)
            improved |= self._remember(place, number)
        for player in self.discriminators:
            player.scheduler.step(figures[player.name]['discriminator_loss'])
        rules = self.settings.adversarial
        if _due(number, rules.cross_every) and self.discriminators:
            losses = [figures[p.name]['discriminator_loss'] for p in self.discriminators]
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

    def networks(self) -> dict[str, nn.Module]:
        """Return every network by name."""
        return {p.name: p.network for p in (*self.generators, *self.discriminators)}

    def best_networks(self) -> dict[str, nn.Module]:
        """Put every generator into its best state, for good, and return them by name."""
        for player, best in zip(self.generators, self.best, strict=True):
            best.restore(player.network)
        return {player.name: player.network for player in self.generators}

    def shrink_returns(self) -> dict[str, list[float]]:
        """Scale the return heads to what validation supports; return the factors by generator.

        Call it once, after `best_networks`.
        """
        factors = {}
        for player in self.generators:
            head = player.network.return_head
            forecasts, targets, times = [], [], []
            with torch.no_grad(), self.device.autocast():
                for batch in self._validation.in_order(self.settings.fit.max_windows):
                    forecasts.append(self._forecast(player, batch).log_returns.float().cpu())
                    targets.append(batch.targets.cpu())
                    times.append(batch.t)
            columns = (torch.cat(part).numpy() for part in (forecasts, targets, times))
            scales = shrinkage(*columns)
            with torch.no_grad():
                factor = torch.tensor(scales, dtype=torch.float32, device=head.bias.device)
                head.weight.mul_(factor[:, None])
                head.bias.mul_(factor)
            factors[player.name] = scales
        return factors

    def candidates(self) -> dict[str, Scores]:
        """Return the validation scores of what could be served, with the networks as they are.

        The ensemble is the mean of all generators, if the settings have one and there are two.
        """
        places = range(len(self.generators))
        found = {self.generators[place].name: self._validate([place]) for place in places}
        if self.settings.ensemble and len(places) > 1:
            found[ENSEMBLE] = self._validate(places)
        return found

    def forecast(self, place: int, batch: Batch) -> Forecast:
        """Return what generator `place` forecasts of a batch, with its network as it is."""
        return self._forecast(self.generators[place], batch)

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
        means = self.device.mean(total / count).tolist()
        figures = {
            player.name: dict(zip(TRAINING_FIGURES, means[3 * place :], strict=False))
            for place, player in enumerate(generators)
        }
        for loss, player in zip(means[3 * len(generators) :], discriminators, strict=True):
            figures[player.name] = {'discriminator_loss': loss}
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
                Next(
                    forecast.log_returns[:, 0].float(),
                    adversarial.soft_class(forecast.logits, rules.class_gradient),
                )
                for forecast in forecasts
            ]
        judged = self._step_discriminators(discriminators, batch, fakes, weights)
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
        return torch.cat((each, judged)).detach()

    def _step_discriminators(
        self, players: Sequence[Player], batch: Batch, fakes: Sequence[Next], weights: Tensor
    ) -> Tensor:
        """Step discriminators; return their losses (M,)."""
        if not players:
            return torch.zeros(0, device=self.device.name)
        with self.device.autocast():
            losses = torch.stack(
                [
                    adversarial.discriminator_loss(
                        player.network, batch.past, batch.real, fakes, weights[j]
                    )
                    for j, player in enumerate(players)
                ]
            )
        losses.sum().backward()
        for player in players:
            player.step(self.device)
        return losses

    def _forecast(self, player: Player, batch: Batch) -> Forecast:
        forecast: Forecast = player.network(batch.rows[:, -player.network.window :])
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
        total, count = torch.zeros(3, dtype=torch.float64, device=self.device.name), 0
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
                total += size * torch.stack(part).double()
                count += size
        mse, entropy, accuracy = (total / count).tolist()
        rules = self.settings.adversarial
        loss = rules.regression * mse + rules.classification * entropy
        return Scores(loss, mse, entropy, accuracy)

    def _agreed(self, place: int) -> Scores:
        """Score a generator so that every process that trains sees the same bits."""
        scores = torch.tensor(self._validate([place]), dtype=torch.float64)
        return Scores(*self.device.mean(scores).tolist())

    def _require_finite(self, place: int, number: int) -> None:
        """Raise DataError where a network has diverged: it would take all others with it."""
        loss = self.scores[place].loss
        if not math.isfinite(loss):
            raise DataError(
                f'{self.generators[place].name}: epoch {number} has no finite validation loss '
                f'({loss}); lower the learning rate or check the data'
            )

    def _remember(self, place: int, number: int) -> bool:
        network = self.generators[place].network
        return self.best[place].offer(number, self.scores[place].loss, network)

    # --- what is tried, and undone when validation does not improve ------------------------------

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
        before, after = self.scores[place], self._agreed(place)
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


def _due(number: int, every: int) -> bool:
    return every > 0 and number % every == 0
