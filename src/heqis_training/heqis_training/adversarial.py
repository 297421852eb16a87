# SPDX-License-Identifier: Apache-2.0
"""The game of Multi-GAN on one batch: who plays whom, what each sees, what each loses.

Pure functions of tensors and networks (multi-agent adversarial forecasting). Epochs, optimisers
and validation live in `multigan`.

Discriminator j sees `W_j` past returns and one more, each with its class: the real next return, or
the forecast of generator i. The past is the same for all of them, so that it is encoded once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from heqis_training.models.discriminator import Discriminator
from heqis_training.settings import AdversarialSettings

N_CLASSES = 3


class Past(NamedTuple):
    """Past returns of a batch, oldest first: `values` (N, W), one-hot `classes` (N, W, 3)."""

    values: Tensor
    classes: Tensor

    def last(self, length: int) -> Past:
        """Return the newest `length` of them."""
        return Past(self.values[:, -length:], self.classes[:, -length:])


class Next(NamedTuple):
    """One more return, real or a forecast: `value` (N,), `classes` (N, 3) one-hot or soft."""

    value: Tensor
    classes: Tensor

    def detach(self) -> Next:
        """Return it without a way back to the generator that made it."""
        return Next(self.value.detach(), self.classes.detach())


def sequence(past: Past, following: Next, length: int) -> tuple[Tensor, Tensor]:
    """Return what a discriminator of `length` past returns sees: (N, length + 1), (..., 3).

    The windows of generators and discriminators end at the same bar, so that the aligned sequence
    of the reference, `[Y[0 : W_j − W_i], Y_i[0 : W_i], ŷ_i]` for W_i < W_j and the last W_j + 1
    elements otherwise, is the newest W_j past returns and the forecast, for every W_i.
    """
    seen = past.last(length)
    return (
        torch.cat((seen.values, following.value[:, None]), dim=1),
        torch.cat((seen.classes, following.classes[:, None]), dim=1),
    )


def soft_class(logits: Tensor, how: str) -> Tensor:
    """Return the class of each row (N, 3) as one-hot with the gradient of a soft choice.

    `straight_through` takes the likeliest class forward and the softmax backward (Bengio et al.,
    2013); `gumbel` draws one (Jang et al., 2017).
    """
    if how == 'gumbel':
        return functional.gumbel_softmax(logits.float(), hard=True)
    soft = torch.softmax(logits.float(), dim=1)
    hard = functional.one_hot(logits.argmax(dim=1), N_CLASSES).to(soft.dtype)
    return hard - soft.detach() + soft


def pair_weights(
    settings: AdversarialSettings,
    epoch: int,
    n_discriminators: int,
    validation_mse: Sequence[float],
) -> Tensor:
    """Return w_ji, float64 (D, N): what generator i counts for discriminator j in this epoch.

    Args:
        settings: schedule and kind of the weights.
        epoch: from 1.
        n_discriminators: D.
        validation_mse: of the N generators, in units of the training spread.

    In the first epochs each generator has one opponent, and each discriminator too: where their
    numbers differ, the fewer are shared out in turn.
    """
    n = len(validation_mse)
    rows, columns = torch.arange(n_discriminators)[:, None], torch.arange(n)[None, :]
    if n >= n_discriminators:
        own = rows == columns % max(n_discriminators, 1)
    else:
        own = rows % n == columns
    if epoch <= settings.identity_epochs:
        return own.double()
    if settings.weights == 'uniform':
        return torch.full((n_discriminators, n), 1 / n, dtype=torch.float64)
    mse = torch.tensor(validation_mse, dtype=torch.float64)
    return torch.softmax(-mse, dim=0) + own.double()


def discriminator_loss(
    discriminator: Discriminator, past: Past, real: Next, fakes: Sequence[Next], weights: Tensor
) -> Tensor:
    """Return BCE(D(real), 1) + Σ_i w_i BCE(D(fake_i), 0), a scalar.

    `fakes` go in detached; a fake whose weight (N,) is 0 is not looked at.
    """
    who = [i for i, weight in enumerate(weights.tolist()) if weight]
    shown = [real, *(fakes[i].detach() for i in who)]
    logits = _judge(discriminator, _encode(discriminator, past), shown)
    loss = _bce(logits[0], 1.0)
    for place, i in enumerate(who, start=1):
        loss = loss + weights[i].item() * _bce(logits[place], 0.0)
    return loss


def adversarial_losses(
    discriminators: Sequence[Discriminator], past: Past, fakes: Sequence[Next], weights: Tensor
) -> Tensor:
    """Return Σ_j w_ji BCE(D_j(fake_i), 1) for each generator i, (N,): it wants to pass as real.

    Gradients reach the forecasts, values and classes, and no parameter of a discriminator.
    """
    losses = [torch.zeros((), device=past.values.device) for _ in fakes]
    with frozen(discriminators):
        for j, discriminator in enumerate(discriminators):
            who = [i for i, weight in enumerate(weights[j].tolist()) if weight]
            if not who:
                continue
            with torch.no_grad():
                state = _encode(discriminator, past)
            logits = _judge(discriminator, state, [fakes[i] for i in who])
            for place, i in enumerate(who):
                losses[i] = losses[i] + weights[j, i].item() * _bce(logits[place], 1.0)
    return torch.stack(losses)


def distillation_loss(
    teacher_logits: Tensor,
    logits: Tensor,
    log_returns: Tensor,
    classes: Tensor,
    targets: Tensor,
    settings: AdversarialSettings,
) -> Tensor:
    """Return α T² KL(softmax(z_t/T) ‖ softmax(z_s/T)) + (1−α) CE(z_s, c) + (1−α) λ MSE(ŷ_s, y).

    Logits are (N, 3), classes int64 (N,), log returns and targets (N, H). Source: Hinton et al.,
    2015, with the regression term of the reference.
    """
    alpha, heat = settings.distil_alpha, settings.distil_temperature
    logits, teacher_logits = logits.float(), teacher_logits.float()
    divergence = functional.kl_div(
        functional.log_softmax(logits / heat, dim=1),
        functional.log_softmax(teacher_logits / heat, dim=1),
        reduction='batchmean',
        log_target=True,
    )
    labels = functional.cross_entropy(logits, classes)
    values = functional.mse_loss(log_returns.float(), targets)
    return alpha * heat**2 * divergence + (1 - alpha) * (labels + settings.distil_lambda * values)


@contextlib.contextmanager
def frozen(networks: Iterable[nn.Module]) -> Iterator[None]:
    """Let gradients pass through `networks` without being computed for their parameters."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _encode(discriminator: Discriminator, past: Past) -> Tensor:
    seen = past.last(discriminator.window)
    return discriminator.encode(seen.values, seen.classes)


def _judge(discriminator: Discriminator, state: Tensor, shown: Sequence[Next]) -> Tensor:
    """Return logits (len(shown), N) by one call."""
    values = torch.cat([one.value for one in shown])
    classes = torch.cat([one.classes for one in shown])
    logits = discriminator.judge(state.repeat(len(shown), 1), values, classes)
    return logits.view(len(shown), -1)


def _bce(logits: Tensor, target: float) -> Tensor:
    logits = logits.float()  # a loss is never computed in half precision
    return functional.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))
