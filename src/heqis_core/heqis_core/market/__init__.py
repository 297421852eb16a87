# SPDX-License-Identifier: Apache-2.0
"""Rules of the Chinese stock exchanges, each with its dates; prices are int64 ticks, never floats.

`codes` tells exchange, board and status, `limits` the price limits, `tradability` what could have
been filled, `lots` and `fees` how much of it at what cost, `sessions` and `calendar` when, and
`settlement` how soon it can be sold again.
"""

from heqis_core.market.calendar import (
    TradingCalendar,
    calendar_from_days,
    calendar_from_events,
    calendar_from_trade_cal,
    is_open,
    read_calendar,
)
from heqis_core.market.codes import (
    Board,
    Exchange,
    Listings,
    Status,
    board_of,
    exchange_of,
    listings,
    status_of,
)
from heqis_core.market.fees import FeeRates, Fees, amount_fen, fee_rates, fees
from heqis_core.market.limits import (
    NO_HIGH,
    NO_LOW,
    limit_percent,
    limit_ticks,
    price_limits,
)
from heqis_core.market.lots import buy_quantity, sell_quantity
from heqis_core.market.sessions import (
    Session,
    bar_closes,
    local_days,
    midnight_ns,
    session_of,
    sessions_of,
)
from heqis_core.market.settlement import FundKind, fund_kind, holding_days
from heqis_core.market.ticks import TICK, from_ticks, tick_of, to_ticks
from heqis_core.market.tradability import (
    can_buy,
    can_sell,
    closes_at_limit,
    is_sealed_down,
    is_sealed_up,
    within_limits,
)

__all__ = [
    'NO_HIGH',
    'NO_LOW',
    'TICK',
    'Board',
    'Exchange',
    'FeeRates',
    'Fees',
    'FundKind',
    'Listings',
    'Session',
    'Status',
    'TradingCalendar',
    'amount_fen',
    'bar_closes',
    'board_of',
    'buy_quantity',
    'calendar_from_days',
    'calendar_from_events',
    'calendar_from_trade_cal',
    'can_buy',
    'can_sell',
    'closes_at_limit',
    'exchange_of',
    'fee_rates',
    'fees',
    'from_ticks',
    'fund_kind',
    'holding_days',
    'is_open',
    'is_sealed_down',
    'is_sealed_up',
    'limit_percent',
    'limit_ticks',
    'listings',
    'local_days',
    'midnight_ns',
    'price_limits',
    'read_calendar',
    'sell_quantity',
    'session_of',
    'sessions_of',
    'status_of',
    'tick_of',
    'to_ticks',
    'within_limits',
]
