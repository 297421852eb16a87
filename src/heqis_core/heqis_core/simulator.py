# SPDX-License-Identifier: Apache-2.0
"""A seeded market that obeys A-share rules.

It is for demonstrations, tests and load, not for judging a strategy. What is real about it: heavy
tails, volatility that comes in regimes, a common market factor, ticks, price limits by board and
date, suspensions, lots. What is put in to be learnt: every symbol has a slow hidden trend (its
part of a day's variance is about 2 %) and is pulled weakly towards its first price, so a model can
find a weak and honest-looking edge here. That edge is ours, and says nothing about any market.
What is left out: dividends and splits, holidays, new listings, special treatment.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt

from heqis_core.bars import AMOUNT, CLOSE, HIGH, LOW, OPEN, VOLUME, BarBlock, BarStatus
from heqis_core.errors import ConfigError, DataError
from heqis_core.market import TICK, Board, board_of, from_ticks, limit_percent, limit_ticks

_CLOSE_UTC = 7
"""15:00 in Shanghai; China has kept UTC+8 without summer time since 1992."""
_FIRST_DAY = date(1997, 1, 1)
"""The price limits that are in force began on 1996-12-16."""
_LOT = 100
_FREEDOM = 4.0
"""Degrees of freedom of the Student-t shocks: heavy tails, finite variance."""
_TO_UNIT = math.sqrt((_FREEDOM - 2) / _FREEDOM)
"""Brings a Student-t shock to variance one."""

_REGIMES = np.array([0.6, 1.0, 2.2])
"""Volatility of a calm, a usual and a wild market, as a multiple."""
_SWITCH = np.cumsum([[0.97, 0.03, 0.00], [0.015, 0.97, 0.015], [0.00, 0.06, 0.94]], axis=1)
_MARKET_DAILY = 0.010
_OWN_DAILY = 0.018
_TREND_KEEP = 0.95
_TREND_DAILY = 0.0028
"""Standing deviation of a hidden trend, as a log return a day."""
_PULL = 0.0015
_P_SUSPEND = 0.002
_P_RESUME = 0.2

_BOARDS = tuple(Board)
_ARRAYS = ('beta', 'sigma', 'lots', 'anchor', 'pre_close', 'trend', 'missed', 'suspended')
"""What a state holds for each symbol."""

_PREFIXES = (
    '600SH', '000SZ', '300SZ', '688SH',
    '601SH', '001SZ', '301SZ', '603SH', '002SZ', '605SH', '003SZ',
)  # fmt: skip
_PER_PREFIX = 999


def default_symbols(n: int) -> tuple[str, ...]:
    """Return `n` made-up symbols, sorted, from the main boards, ChiNext and STAR in turn."""
    most = _PER_PREFIX * len(_PREFIXES)
    if not 1 <= n <= most:
        raise ConfigError(f'symbols: {n} symbols cannot be simulated; expected 1 to {most}')
    turns = ((_PREFIXES[i % len(_PREFIXES)], i // len(_PREFIXES) + 1) for i in range(n))
    return tuple(sorted(f'{prefix[:3]}{number:03d}.{prefix[3:]}' for prefix, number in turns))


class MarketSimulator:
    """Endless daily bars of S symbols.

    Equal arguments give equal blocks, bit for bit, with one numpy version.
    """

    def __init__(
        self,
        symbols: Sequence[str] | int,
        seed: int,
        start_date: date | str = '2021-01-04',
        tick: float = TICK,
    ) -> None:
        """Draw the symbols' characters from the seed.

        Raise ConfigError for a value that cannot be used.

        Args:
            symbols: names, or how many to make up. Their codes decide the price limits.
            seed: 0 or more; all randomness comes from it.
            start_date: first day (a weekend moves it to the Monday after it), 1997 or later.
            tick: price step, CNY.
        """
        if isinstance(symbols, str):
            raise ConfigError(
                f"symbols: '{symbols}' is one text; expected a number or a list of names"
            )
        names = default_symbols(symbols) if isinstance(symbols, int) else tuple(symbols)
        if not names or len(set(names)) != len(names):
            raise ConfigError(
                f'symbols: {list(names)}; expected at least one name, each of them once'
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ConfigError(f'seed: {seed!r}; expected a whole number of 0 or more')
        if not (math.isfinite(tick) and tick > 0):
            raise ConfigError(f'tick: {tick!r}; expected a price step above 0, such as 0.01')
        self.symbols = names
        self._tick = tick
        self._day = _weekday(_to_date(start_date))
        self._board = np.array([_BOARDS.index(board_of(name)) for name in names])
        self._truncate = self._board == _BOARDS.index(Board.BSE)
        self._random = np.random.Generator(np.random.PCG64(seed))
        draw, n = self._random, len(names)
        self._beta = draw.uniform(0.6, 1.4, n)
        self._sigma = _OWN_DAILY * draw.uniform(0.6, 1.4, n)
        # numpy's own exp and log change their last bit with the processor; the generator does not
        self._lots = 2e4 * draw.lognormal(0.0, 1.0, n)
        self._anchor = np.maximum(np.rint(30.0 * draw.lognormal(0.0, 0.8, n) / tick), 100.0)
        self._pre_close = self._anchor.astype(np.int64)
        self._trend = _TREND_DAILY * draw.standard_normal(n)
        self._missed = np.zeros(n)
        self._suspended = np.zeros(n, np.bool_)
        self._regime = 1

    def next_block(self) -> BarBlock:
        """Return the next trading day.

        Event time 15:00 in Shanghai, values float64 (6, S), status uint8 (S,). A suspended symbol
        is SUSPENDED and has no values.
        """
        draw, n = self._random, len(self.symbols)
        # Every day draws the same amount, whatever happens on it.
        uniform = draw.random((2, n))
        switch = draw.random()
        shocks = _TO_UNIT * draw.standard_t(_FREEDOM, (3, n))
        common = _TO_UNIT * draw.standard_t(_FREEDOM)
        news = draw.standard_normal(n)
        crowd = draw.lognormal(0.0, 0.35, n)

        self._regime = int(np.searchsorted(_SWITCH[self._regime], switch, side='right'))
        scale = float(_REGIMES[self._regime])
        self._suspended = np.where(
            self._suspended, uniform[0] > _P_RESUME, uniform[0] < _P_SUSPEND
        )
        pull = _PULL * (self._anchor - self._pre_close) / np.maximum(self._anchor, self._pre_close)
        market = self._beta * (scale * _MARKET_DAILY * common)
        own = self._sigma * scale
        total = market + own * shocks[0] + self._trend + pull + self._missed
        self._missed = np.where(self._suspended, self._missed + market, 0.0)
        self._trend = (
            _TREND_KEEP * self._trend + math.sqrt(1 - _TREND_KEEP**2) * _TREND_DAILY * news
        )

        ticks = self._ohlc(total, own, shocks, uniform[1])
        lots = self._lots * crowd * (0.5 + 0.5 * scale) * (0.7 + np.abs(total) / self._sigma)
        values = self._values(ticks, np.maximum(np.rint(lots), 1.0) * _LOT, uniform[1])
        values[:, self._suspended] = np.nan
        status = np.where(self._suspended, BarStatus.SUSPENDED, BarStatus.VALID).astype(np.uint8)
        self._pre_close = np.where(self._suspended, self._pre_close, ticks[CLOSE])
        block = BarBlock(_close_ns(self._day), self.symbols, values, status)
        self._day = _weekday(self._day + timedelta(days=1))
        return block

    def _ohlc(
        self,
        total: npt.NDArray[np.float64],
        own: npt.NDArray[np.float64],
        shocks: npt.NDArray[np.float64],
        share: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.int64]:
        """Return open, high, low and close, int64 ticks (4, S), within the day's limits."""
        down, up = self._limits_today()
        # Part of the day's move is there at the open; the range goes beyond open and close.
        moves = np.stack([0.4 * share * total + 0.2 * own * shocks[1], total])
        ends = np.rint(self._pre_close * (1 + np.clip(moves, -0.9, 9.0))).astype(np.int64)
        opened, closed = np.clip(ends, down, up)
        beyond = 0.35 * own * np.minimum(np.abs(shocks[1:]), 9.0)
        high = np.rint(np.maximum(opened, closed) * (1 + beyond[0])).astype(np.int64)
        low = np.rint(np.minimum(opened, closed) * (1 - beyond[1])).astype(np.int64)
        return np.stack([opened, np.minimum(high, up), np.maximum(low, down), closed])

    def _values(
        self,
        ticks: npt.NDArray[np.int64],
        shares: npt.NDArray[np.float64],
        share: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.float64]:
        """Return float64 (6, S), the amount at an average price within low and high."""
        values = np.empty((AMOUNT + 1, len(self.symbols)))
        values[OPEN : CLOSE + 1] = from_ticks(ticks, self._tick)
        average = values[LOW] + (values[HIGH] - values[LOW]) * share
        values[VOLUME] = shares
        values[AMOUNT] = np.rint(shares * average * 100) / 100
        return values

    def _limits_today(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        # Before a board began there was no limit to look up: the main board's first one stands in.
        percents = np.array([limit_percent(board, self._day) or 10 for board in _BOARDS], np.int64)
        return limit_ticks(self._pre_close, percents[self._board], truncate=self._truncate)

    def save(self) -> dict[str, Any]:
        """Return the whole state, JSON-able, integers within 64 bits.

        `load` goes on from it bit for bit.
        """
        bits = self._random.bit_generator.state
        return {
            'symbols': list(self.symbols),
            'tick': self._tick,
            'day': self._day.isoformat(),
            'regime': self._regime,
            'random': {name: str(value) for name, value in bits['state'].items()},
            **{name: getattr(self, f'_{name}').tolist() for name in _ARRAYS},
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take a saved state.

        Raise DataError if it is of other symbols, of another tick, or not whole.
        """
        if list(state.get('symbols', ())) != list(self.symbols) or state.get('tick') != self._tick:
            raise DataError(
                f'simulator state is of the symbols {state.get("symbols")} with tick '
                f'{state.get("tick")}, this simulator has {list(self.symbols)} with tick '
                f'{self._tick}: remove the checkpoint, or run with its symbols'
            )
        try:
            bits = dict(self._random.bit_generator.state)
            bits['state'] = {name: int(value) for name, value in state['random'].items()}
            arrays = {
                name: np.array(state[name], getattr(self, f'_{name}').dtype) for name in _ARRAYS
            }
            if any(values.shape != (len(self.symbols),) for values in arrays.values()):
                raise ValueError('an array of another length than the symbols')
            day, regime = date.fromisoformat(state['day']), int(state['regime'])
            self._random.bit_generator.state = bits
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f'simulator state is damaged: {error!r}: remove the checkpoint'
            ) from error
        self._day, self._regime = day, regime
        for name, values in arrays.items():
            setattr(self, f'_{name}', values)


def _to_date(value: date | str) -> date:
    try:
        day = date.fromisoformat(value) if isinstance(value, str) else value
    except ValueError as error:
        raise ConfigError(f"start_date: '{value}' is no date; expected YYYY-MM-DD") from error
    if day < _FIRST_DAY:
        raise ConfigError(
            f'start_date: {day}; expected {_FIRST_DAY} or later, since when there are price limits'
        )
    return day


def _weekday(day: date) -> date:
    return day + timedelta(days=7 - day.weekday()) if day.weekday() > 4 else day


def _close_ns(day: date) -> int:
    return (
        int(datetime(day.year, day.month, day.day, _CLOSE_UTC, tzinfo=timezone.utc).timestamp())
        * 1_000_000_000
    )
