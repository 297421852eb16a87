# SPDX-License-Identifier: Apache-2.0
"""What a bar says of its market beside prices: whether it ended at a price limit of its day.

Known only where the source brings the limits of the day. They are not worked out from the last
close: that takes the ex-right reference price, special treatment and the age of the listing.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag

import numpy as np
import numpy.typing as npt

from heqis_core.bars import CLOSE, BarBlock
from heqis_core.clean import no_limit
from heqis_core.market.tradability import closes_at_limit

LIMIT_CHANNELS = ('up_limit', 'down_limit')
"""Channels of a bar block with the highest and the lowest price of the day, as the vendor says."""

_PER_UNIT = 1000
"""Every price step is a whole number of thousandths (`heqis_core.market.tick_of`)."""


class MarketFact(IntFlag):
    """Bits of the tensor `market` of a feature frame (uint8)."""

    AT_LIMIT_UP = 1 << 0
    """The close is the upper price limit of the day."""
    AT_LIMIT_DOWN = 1 << 1
    """The close is the lower price limit of the day."""


def limit_places(channels: Sequence[str]) -> tuple[int, int] | None:
    """Return where the limits stand among the channels of a block; None if one is not there."""
    up, down = LIMIT_CHANNELS
    if up not in channels or down not in channels:
        return None
    return channels.index(up), channels.index(down)


def market_facts(block: BarBlock, places: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Return `MarketFact` bits, uint8 (S,), of a block whose limits stand at `places`.

    0 too where there is no bar, no limit that day, or no limit known. A close beyond its limits
    is at neither: then close and limits are not of one day or one adjustment.
    """
    assert block.extra is not None
    up, down = block.extra[places[0]], block.extra[places[1]]
    limited = ~no_limit(up, down)
    close, high, low = (np.rint(x * _PER_UNIT) for x in (block.values[CLOSE], up, down))
    facts = np.zeros(len(close), np.uint8)
    facts[limited & closes_at_limit(close, high)] = MarketFact.AT_LIMIT_UP
    facts[limited & closes_at_limit(close, low)] |= np.uint8(MarketFact.AT_LIMIT_DOWN)
    return facts
