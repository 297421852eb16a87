# SPDX-License-Identifier: Apache-2.0
"""What the released signals of a journal add up to: the symbols that are held. `Journal` writes.

They are written in the transaction of the frames that move them, so they outlive the frames when
those are dropped, and a kill never parts the two.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence

from heqis_core.decision import Action, Decisions
from heqis_core.io import journal_format as fmt

Key = tuple[str, str]
"""Stream and symbol."""

_BUY, _SELL = int(Action.BUY), int(Action.SELL)
_UPGRADE = f"""
BEGIN IMMEDIATE;
{fmt.HOLDINGS}
INSERT INTO holdings SELECT stream, symbol, event_time_ns FROM (
    SELECT f.stream, i.symbol, f.event_time_ns, i.action, MAX(i.frame)
    FROM signal_index i JOIN frames f ON f.id = i.frame
    WHERE i.action >= {_BUY} GROUP BY f.stream, i.symbol
) WHERE action = {_BUY};
PRAGMA user_version={fmt.SCHEMA_VERSION};
COMMIT;
"""


def upgrade(db: sqlite3.Connection) -> None:
    """Add the holdings to a journal of version 1, from the signals that it holds."""
    db.executescript(_UPGRADE)


def load(db: sqlite3.Connection) -> set[Key]:
    """Return what is held."""
    return set(db.execute('SELECT stream, symbol FROM holdings'))


def moves(
    held: Collection[Key], frames: Mapping[int, Decisions], rows: Sequence[fmt.IndexRow]
) -> dict[Key, int | None]:
    """Return what new frames change: since when a symbol is held, or None where it no longer is.

    Args:
        held: before them.
        frames: by their ids.
        rows: of the index, in the order of the frames.
    """
    moved: dict[Key, int | None] = {}
    for number, _, symbol, action, *_ in rows:
        if action < _BUY:
            continue
        frame = frames[number]
        key = frame.stream, symbol
        is_held = moved[key] is not None if key in moved else key in held
        if (action == _BUY) is not is_held:
            moved[key] = None if is_held else frame.event_time_ns
    return moved


def write(db: sqlite3.Connection, moved: Mapping[Key, int | None]) -> None:
    """Write what `moves` gave, inside the transaction of its frames."""
    db.executemany('DELETE FROM holdings WHERE stream = ? AND symbol = ?', list(moved))
    opened = [(*key, since_ns) for key, since_ns in moved.items() if since_ns is not None]
    db.executemany('INSERT INTO holdings VALUES (?,?,?)', opened)
