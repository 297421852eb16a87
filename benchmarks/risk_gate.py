# SPDX-License-Identifier: Apache-2.0
"""What the risk gate takes to judge a frame of a whole market, without and with risk rules.

5,400 symbols, a tenth of them BUY and a tenth SELL, one in fifty at its price limit. The floor is
the look at freshness alone, on the same frames in the same round.
"""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable

import numpy as np
from _harness import Row, main, paired_ratio

from heqis_core.decision import Action, Decisions, Reason
from heqis_supervisor.bounds import MINUTE_NS, Bounds, RiskRules
from heqis_supervisor.risk_gate import GateState, judge

SYMBOLS = tuple(f'{600_000 + i}.SH' for i in range(5400))
EVERY_RULE = RiskRules(
    max_positions=300,
    max_buys_per_frame=50,
    max_signals_per_minute=2000,
    max_signals_per_day=10**6,
    blocked=SYMBOLS[:200],
    only=SYMBOLS[200:5000],
)


def make_frames(n: int, *, at_limit: float) -> list[Decisions]:
    """Return frames one minute apart; a share of their bars is at the upper price limit."""
    rng = np.random.default_rng(7)
    size = len(SYMBOLS)
    made = []
    for seq in range(n):
        kinds = (Action.HOLD, Action.BUY, Action.SELL)
        action = rng.choice(kinds, size, p=(0.8, 0.1, 0.1)).astype(np.uint8)
        reasons = np.where(rng.random(size) < at_limit, Reason.AT_LIMIT_UP, 0).astype(np.uint32)
        score = rng.random(size, np.float32)
        target = np.where(action == Action.BUY, 1, 0).astype(np.float32)
        made.append(
            Decisions(
                'bench', 1, seq, seq * MINUTE_NS, 0, '0123456789abcdef', 'gru', SYMBOLS, action,
                reasons, score, target, np.ones((size, 3), np.float32), score,
                np.full(size, 2**62, np.int64),
            )
        )  # fmt: skip
    return made


def gate_of(rules: RiskRules) -> Callable[[Decisions], None]:
    """Return a function that judges one frame as the gate does, and counts what it refused."""
    bounds, state = Bounds(rules), GateState()

    def run(frame: Decisions) -> None:
        bounds.judge(judge(frame, 0, state)).refusals()
        bounds.settle(durable=True)

    return run


def timed(run: Callable[[Decisions], object], frame: Decisions) -> float:
    """Return how long one call takes, microseconds."""
    start = time.perf_counter()
    run(frame)
    return (time.perf_counter() - start) * 1e6


def measure(args: Namespace) -> list[Row]:
    """Measure each set of rules."""
    n, rows = 200 if args.quick else 2000, []
    state = GateState()
    for name, rules, at_limit in (
        ('no rules, no price limits', RiskRules(), 0.0),
        ('no rules', RiskRules(), 0.02),
        ('every rule', EVERY_RULE, 0.02),
    ):
        run = gate_of(rules)
        fresh, told = make_frames(50, at_limit=0.0), make_frames(50, at_limit=at_limit)
        times = np.array(
            [
                (
                    timed(lambda frame: judge(frame, 0, state), fresh[i % 50]),
                    timed(run, told[i % 50]),
                )
                for i in range(n)
            ]
        )
        floor, ours = np.median(times, axis=0)
        rows.append(
            Row(
                f'5400 symbols, {name}',
                'time per frame, p50',
                'us',
                float(ours),
                floor=float(floor),
                ratio=paired_ratio(times[:, 1], times[:, 0]),
            )
        )
    return rows


if __name__ == '__main__':
    sys.exit(main('risk_gate', __doc__ or '', measure))
