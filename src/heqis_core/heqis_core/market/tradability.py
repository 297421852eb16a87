# SPDX-License-Identifier: Apache-2.0
"""Whether an order could have been filled, given a bar and the limits of its day.

The price that is asked about is the one at which the order is filled: the open for an order filled
at the open, the close for one at the close. Never the day's high or low: a stock that touches its
limit and leaves it trades on both sides. At the upper limit only sellers are served, at the lower
one only buyers: whoever asks at the limit price stands behind the queue, and no queue is guessed
here. All prices are int64 ticks, all results bool, of the broadcast shape.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_Ticks = npt.NDArray[np.int64] | int
_Bools = npt.NDArray[np.bool_]


def can_buy(price: _Ticks, low_limit: _Ticks, high_limit: _Ticks) -> _Bools:
    """Return where a buy at this price is filled: from the lower limit to below the upper one."""
    return np.asarray((np.asarray(price) >= low_limit) & (np.asarray(price) < high_limit))


def can_sell(price: _Ticks, low_limit: _Ticks, high_limit: _Ticks) -> _Bools:
    """Return where a sell at this price is filled: from above the lower limit to the upper one."""
    return np.asarray((np.asarray(price) > low_limit) & (np.asarray(price) <= high_limit))


def is_sealed_up(low: _Ticks, high_limit: _Ticks) -> _Bools:
    """Return where no trade was below the upper limit all day: no buy is filled at any time."""
    return np.asarray(np.asarray(low) >= high_limit)


def is_sealed_down(high: _Ticks, low_limit: _Ticks) -> _Bools:
    """Return where no trade was above the lower limit all day: no sell is filled at any time."""
    return np.asarray(np.asarray(high) <= low_limit)


def closes_at_limit(close: _Ticks, limit: _Ticks) -> _Bools:
    """Return where the day ended at a limit; a limit that was touched and left does not count."""
    return np.asarray(np.asarray(close) == limit)


def within_limits(price: _Ticks, low_limit: _Ticks, high_limit: _Ticks) -> _Bools:
    """Return where a price is one that the day's limits allow."""
    return np.asarray((np.asarray(price) >= low_limit) & (np.asarray(price) <= high_limit))
