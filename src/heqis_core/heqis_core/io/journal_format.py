# SPDX-License-Identifier: Apache-2.0
"""The journal's schema and the bytes of its packed rows. No connection is opened here.

A frame of S decisions is one row of `frames`. Its `body` is the columns one after the other,
little-endian, no padding, 37 bytes a symbol:

    int64   valid_until_ns   (S,)
    float32 score            (S,)
    float32 target_position  (S,)
    float32 probabilities    (S, 3)  down, flat, up of each symbol
    float32 predicted_return (S,)
    uint32  reasons          (S,)
    uint8   action           (S,)

`stamps` is int64 (10,), the stages of `heqis_core.frame.Stage`; COMMITTED stands in `commits`,
because it is known only after the row is durable. `crc` is zlib.crc32 over the row's key, bundle
id, generator, stamps and body. A row of `predictions` has as body float32 log_return (G, S),
then float32 probabilities (G, S, 3). uint64 values (epoch, seq) are stored as SQLite's signed
64-bit integers, two's complement.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core.decision import REFUSALS, Action, Decisions, Predictions, Reason
from heqis_core.errors import JournalError
from heqis_core.frame import N_STAGES

SCHEMA_VERSION = 2
READABLE = (1, SCHEMA_VERSION)
"""Versions that can be read; 1 had no holdings, which the writer adds at its next start."""
APPLICATION_ID = 0x4845514A
"""`PRAGMA application_id` of a journal: HEQJ."""

BYTES_PER_SYMBOL = 37

# Plain numbers: numpy is slow with enums, and this is done for every frame.
_REFUSAL_BITS = np.uint32(int(REFUSALS))
_AWAY_BIT = np.uint32(int(Reason.BOARD_AWAY))
_NONE, _BUY = np.uint8(int(Action.NONE)), np.uint8(int(Action.BUY))

ARCHIVED = {'frames': 'archived_frames', 'events': 'archived_events'}
"""Keys of `meta`: the last row of a table that is in the archive."""
KILL_SWITCH = 'kill_switch'
"""Key of `meta` with the risk gate's kill switch; what it cannot read there counts as engaged."""
OWN_META = ('published', 'conflicts', 'name', 'floors', *ARCHIVED.values())
"""Keys of `meta` that the journal keeps for itself."""

IndexRow = tuple[int, int, str, int, int, float]
"""A row of `signal_index`: frame, place, symbol, action, reasons, score."""

HOLDINGS = """
CREATE TABLE holdings (
    stream TEXT NOT NULL,
    symbol TEXT NOT NULL,
    since_ns INTEGER NOT NULL,
    PRIMARY KEY (stream, symbol)
) WITHOUT ROWID;
"""
"""What the released signals add up to: symbols bought and not sold, each since an event time."""

SCHEMA = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE universes (id INTEGER PRIMARY KEY, names TEXT NOT NULL UNIQUE);
CREATE TABLE frames (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    event_time_ns INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    bundle_id TEXT NOT NULL,
    generator TEXT NOT NULL,
    universe INTEGER NOT NULL REFERENCES universes (id),
    n_symbols INTEGER NOT NULL,
    n_signals INTEGER NOT NULL,
    n_refused INTEGER NOT NULL,
    crc INTEGER NOT NULL,
    stamps BLOB NOT NULL,
    body BLOB NOT NULL,
    UNIQUE (stream, event_time_ns, revision)
);
CREATE TABLE signal_index (
    frame INTEGER NOT NULL REFERENCES frames (id),
    place INTEGER NOT NULL,
    symbol TEXT NOT NULL,
    action INTEGER NOT NULL,
    reasons INTEGER NOT NULL,
    score REAL,
    PRIMARY KEY (frame, place)
) WITHOUT ROWID;
CREATE TABLE commits (
    first_frame INTEGER PRIMARY KEY,
    last_frame INTEGER NOT NULL,
    committed_ns INTEGER NOT NULL
);
CREATE TABLE predictions (
    id INTEGER PRIMARY KEY,
    stream TEXT NOT NULL,
    event_time_ns INTEGER NOT NULL,
    revision INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    seq INTEGER NOT NULL,
    bundle_id TEXT NOT NULL,
    generators TEXT NOT NULL,
    served TEXT NOT NULL,
    universe INTEGER NOT NULL REFERENCES universes (id),
    body BLOB NOT NULL
);
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    stamp_ns INTEGER NOT NULL,
    level INTEGER NOT NULL,
    source TEXT NOT NULL,
    kind TEXT NOT NULL,
    subject TEXT NOT NULL,
    text TEXT NOT NULL
);
{HOLDINGS}"""


def signed(value: int) -> int:
    """Return a uint64 as the int64 with the same bits."""
    return value - (1 << 64) if value >= 1 << 63 else value


def unsigned(value: int) -> int:
    """Return an int64 as the uint64 with the same bits."""
    return value & 0xFFFF_FFFF_FFFF_FFFF


def pack_names(names: tuple[str, ...]) -> str:
    """Return a list of names as JSON text."""
    return msgspec.json.encode(names).decode()


def unpack_names(text: str) -> tuple[str, ...]:
    """Return the names of `pack_names`."""
    return msgspec.json.decode(text, type=tuple[str, ...])


def pack_body(item: Decisions) -> bytes:
    """Return the packed columns of one frame; JournalError if one is no `len(symbols)` long."""
    body = b''.join(
        (
            _bytes(item.valid_until_ns, _I8),
            _bytes(item.score, _F4),
            _bytes(item.target_position, _F4),
            _bytes(item.probabilities, _F4),
            _bytes(item.predicted_return, _F4),
            _bytes(item.reasons, _U4),
            _bytes(item.action, _U1),
        )
    )
    if len(body) != BYTES_PER_SYMBOL * len(item.symbols):
        raise JournalError(
            f'frame {item.stream} {item.event_time_ns} revision {item.revision}: the columns have '
            f'{len(body)} bytes, not {BYTES_PER_SYMBOL} for each of {len(item.symbols)} symbols; '
            'this is a bug of whoever made it'
        )
    return body


def unpack_body(body: bytes, n: int) -> tuple[npt.NDArray[Any], ...]:
    """Return the columns of a packed body in the order of `Decisions`; JournalError if damaged."""
    if len(body) != BYTES_PER_SYMBOL * n:
        raise JournalError(
            f'packed row has {len(body)} bytes, not {BYTES_PER_SYMBOL} for each of {n} symbols'
        )
    columns: dict[str, npt.NDArray[Any]] = {}
    offset = 0
    for name, dtype, width in _LAYOUT:
        column = np.frombuffer(body, dtype, n * width, offset)
        columns[name] = column.reshape(n, width) if width > 1 else column
        offset += column.nbytes
    return tuple(columns[name] for name in _IN_DECISIONS)


def pack_stamps(stamps: npt.NDArray[np.int64]) -> bytes:
    """Return the stage stamps as bytes, 8 for each of N_STAGES."""
    data = _bytes(stamps, _I8)
    if len(data) != 8 * N_STAGES:
        raise JournalError(f'{len(data) // 8} stage stamps, not {N_STAGES}')
    return data


def row_crc(item: Decisions, stamps: bytes, body: bytes) -> int:
    """Return the checksum that is stored with a frame."""
    head = (
        f'{item.stream}\0{item.event_time_ns}\0{item.revision}\0{item.bundle_id}\0{item.generator}'
    )
    return zlib.crc32(body, zlib.crc32(stamps, zlib.crc32(head.encode())))


def indexed(
    first_id: int, items: Sequence[Decisions]
) -> tuple[list[IndexRow], list[int], list[int]]:
    """Return the rows of the index for frames, and of each how many are signals and refusals.

    The frames have the ids from `first_id` on. All are looked at together: for small frames the
    calls cost more than the work. Their columns must be as long as `pack_body` demands.
    """
    action = np.concatenate([item.action for item in items])
    reasons = np.concatenate([item.reasons for item in items])
    is_signal = action >= _BUY
    is_refused = ((reasons & _REFUSAL_BITS) != 0) & (action == _NONE)
    ends = np.cumsum([len(item.action) for item in items])
    hits = np.flatnonzero(is_signal | is_refused)
    frame = np.searchsorted(ends, hits, 'right')
    n_all = np.bincount(frame, minlength=len(items))
    n_refused = np.bincount(frame, is_refused[hits], len(items)).astype(np.int64)
    if not len(hits):
        return [], n_all.tolist(), n_refused.tolist()
    starts = np.concatenate(([0], ends[:-1]))
    at, places = frame.tolist(), (hits - starts[frame]).tolist()
    score = np.concatenate([item.score for item in items])
    rows = zip(
        (frame + first_id).tolist(),
        places,
        [items[i].symbols[place] for i, place in zip(at, places, strict=True)],
        action[hits].tolist(),
        reasons[hits].tolist(),
        score[hits].tolist(),
        strict=True,
    )
    return list(rows), (n_all - n_refused).tolist(), n_refused.tolist()


def frame_row(
    frame_id: int, item: Decisions, universe: int, body: bytes, n_signals: int, n_refused: int
) -> tuple[object, ...]:
    """Return the row of `frames` for a frame and its `pack_body`."""
    stamps = pack_stamps(item.stamps)
    return (
        frame_id,
        item.stream,
        item.event_time_ns,
        item.revision,
        signed(item.epoch),
        signed(item.seq),
        item.bundle_id,
        item.generator,
        universe,
        len(item.symbols),
        n_signals,
        n_refused,
        row_crc(item, stamps, body),
        stamps,
        body,
    )


def same_proposal(one: Decisions, other: Decisions) -> bool:
    """Whether two frames of one key say the same, whatever the risk gate made of either.

    Compares symbols, bundle, generator, score, probabilities and predicted return bit for bit,
    the reasons but for the gate's own, and the actions where neither was refused; a symbol whose
    board was away for either of them is left out. Stamps, epoch and seq may differ.
    """
    head = ('symbols', 'bundle_id', 'generator')
    if any(getattr(one, name) != getattr(other, name) for name in head):
        return False
    said = (one.reasons | other.reasons) & _AWAY_BIT == 0
    columns = ('score', 'probabilities', 'predicted_return')
    if any(
        getattr(one, name)[said].tobytes() != getattr(other, name)[said].tobytes()
        for name in columns
    ):
        return False
    keep = ~_REFUSAL_BITS
    if not np.array_equal(one.reasons[said] & keep, other.reasons[said] & keep):
        return False
    untouched = said & ~(one.is_refused() | other.is_refused())
    return bool(np.array_equal(one.action[untouched], other.action[untouched]))


def pack_predictions(item: Predictions) -> bytes:
    """Return the packed body of one frame's predictions."""
    return b''.join(
        column.astype('<f4', copy=False).tobytes()
        for column in (item.log_return, item.probabilities)
    )


def unpack_predictions(
    body: bytes, n_generators: int, n: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return log_return (G, S) and probabilities (G, S, 3); JournalError if damaged."""
    values = np.frombuffer(body, '<f4')
    cells = n_generators * n
    if len(values) != 4 * cells:
        raise JournalError(f'packed predictions have {len(values)} values, not {4 * cells}')
    return values[:cells].reshape(n_generators, n), values[cells:].reshape(n_generators, n, 3)


def _bytes(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> bytes:
    return (values if values.dtype == dtype else values.astype(dtype)).tobytes()


_I8, _F4, _U4, _U1 = (np.dtype(name) for name in ('<i8', '<f4', '<u4', 'u1'))
_LAYOUT = (
    ('valid_until_ns', _I8, 1),
    ('score', _F4, 1),
    ('target_position', _F4, 1),
    ('probabilities', _F4, 3),
    ('predicted_return', _F4, 1),
    ('reasons', _U4, 1),
    ('action', _U1, 1),
)
_IN_DECISIONS = (
    'action',
    'reasons',
    'score',
    'target_position',
    'probabilities',
    'predicted_return',
    'valid_until_ns',
)
