# SPDX-License-Identifier: Apache-2.0
"""Alignment of many sources onto event time, pure: no clock, no thread, no I/O.

Feeds put in what they have, in any order. A feed's watermark is the event time up to which it has
said everything; a block comes out once the watermarks of all feeds have reached it, and never
changes by what is put in later. A reading joins a block if it is the newest one at or before the
event time of the block, and not older than its tolerance.

`blocks` puts bar blocks together, `asof` joins readings onto them, `ledger` says what became of
each bar and each reading.
"""

from heqis_core.align.asof import EVERY_SYMBOL, Channel
from heqis_core.align.blocks import Aligner, Feed
from heqis_core.align.ledger import ALWAYS_NS, KEPT_APART, Fate, Ledger, Refused

__all__ = [
    'ALWAYS_NS',
    'EVERY_SYMBOL',
    'KEPT_APART',
    'Aligner',
    'Channel',
    'Fate',
    'Feed',
    'Ledger',
    'Refused',
]
