# SPDX-License-Identifier: Apache-2.0
"""Decisions in key order, and the digest over them that two runs are compared by.

Works on any source of frames of decisions (the journal, or a batch run without a graph) and keeps
memory bounded: the frames are walked once for each group of symbols, never held all at once. No
storage here.

The digest is sha256 over, for each (stream, symbol) sorted by UTF-8 bytes of the stream, then of
the symbol:

    uint16 length and bytes of the stream, uint16 length and bytes of the symbol, uint64 number
    of decisions n, then n records in order of (event time, revision), 53 bytes each, without
    padding:
        int64   event_time_ns
        uint32  revision
        uint8   action
        float32 score (every NaN as 0x7fc00000)
        uint32  reasons
        32 bytes sha256 of the bundle id's UTF-8 bytes

all little-endian. Wall clock, epoch, seq and stage stamps are not part of it.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from heqis_core.decision import COLUMNS, Action, Decisions, Reason

Frames = Callable[[], Iterable[Decisions]]
"""Gives the same frames anew at each call."""

MAX_CELLS = 2_000_000
"""Decisions held in memory at once."""

RECORD = np.dtype(
    [
        ('symbol', '<i4'),
        ('event_time_ns', '<i8'),
        ('revision', '<u4'),
        ('action', 'u1'),
        ('reasons', '<u4'),
        ('score', '<f4'),
        ('target_position', '<f4'),
        ('probabilities', '<f4', (3,)),
        ('predicted_return', '<f4'),
        ('valid_until_ns', '<i8'),
        ('bundle', '<i4'),
        ('generator', '<i4'),
    ]
)

_DIGEST_RECORD = np.dtype(
    [
        ('event_time_ns', '<i8'),
        ('revision', '<u4'),
        ('action', 'u1'),
        ('score', '<f4'),
        ('reasons', '<u4'),
        ('bundle', 'V32'),
    ]
)


class DecisionRow(NamedTuple):
    """One decision of one symbol, as plain values."""

    stream: str
    symbol: str
    event_time_ns: int
    revision: int
    bundle_id: str
    generator: str
    action: Action
    reasons: Reason
    score: float
    target_position: float
    probabilities: tuple[float, float, float]
    predicted_return: float
    valid_until_ns: int


class SymbolRecords(NamedTuple):
    """Every decision of one symbol of one stream, in order of (event time, revision)."""

    stream: str
    symbol: str
    records: npt.NDArray[np.void]
    bundles: tuple[str, ...]
    """Names that `records['bundle']` counts into."""
    generators: tuple[str, ...]


def in_key_order(frames: Frames, max_cells: int = MAX_CELLS) -> Iterator[SymbolRecords]:
    """Yield the decisions of each (stream, symbol) in key order."""
    for stream, universes in sorted(_universes(frames).items(), key=lambda item: item[0].encode()):
        totals: dict[str, int] = {}
        for symbols, count in universes.items():
            for symbol in symbols:
                totals[symbol] = totals.get(symbol, 0) + count
        for group in _groups(totals, max_cells):
            yield from _collect(frames, stream, group)


def rows(frames: Frames, max_cells: int = MAX_CELLS) -> Iterator[DecisionRow]:
    """Yield each decision in key order (stream, symbol, event time, revision)."""
    for stream, symbol, records, bundles, generators in in_key_order(frames, max_cells):
        for item in records.tolist():
            (
                _,
                event_ns,
                revision,
                action,
                reasons,
                score,
                target,
                probs,
                ret,
                until,
                bundle,
                gen,
            ) = item
            yield DecisionRow(
                stream,
                symbol,
                event_ns,
                revision,
                bundles[bundle],
                generators[gen],
                Action(action),
                Reason(reasons),
                score,
                target,
                tuple(probs),
                ret,
                until,
            )


def signals_digest(frames: Frames, max_cells: int = MAX_CELLS) -> str:
    """Return the sha256 (hex) over every decision in key order, as this module defines it."""
    digest = hashlib.sha256()
    for stream, symbol, records, bundles, _ in in_key_order(frames, max_cells):
        for name in (stream.encode(), symbol.encode()):
            digest.update(struct.pack('<H', len(name)) + name)
        digest.update(struct.pack('<Q', len(records)))
        packed = np.empty(len(records), _DIGEST_RECORD)
        for field in ('event_time_ns', 'revision', 'action', 'reasons'):
            packed[field] = records[field]
        score = records['score']
        packed['score'] = np.where(np.isnan(score), np.float32(np.nan), score)
        hashes = np.array(
            [np.void(hashlib.sha256(name.encode()).digest()) for name in bundles], 'V32'
        )
        packed['bundle'] = hashes[records['bundle']]
        digest.update(packed.tobytes())
    return digest.hexdigest()


def _universes(frames: Frames) -> dict[str, dict[tuple[str, ...], int]]:
    found: dict[str, dict[tuple[str, ...], int]] = {}
    for frame in frames():
        counts = found.setdefault(frame.stream, {})
        counts[frame.symbols] = counts.get(frame.symbols, 0) + 1
    return found


def _groups(totals: dict[str, int], max_cells: int) -> Iterator[tuple[str, ...]]:
    group: list[str] = []
    cells = 0
    for symbol in sorted(totals, key=str.encode):
        if group and cells + totals[symbol] > max_cells:
            yield tuple(group)
            group, cells = [], 0
        group.append(symbol)
        cells += totals[symbol]
    if group:
        yield tuple(group)


def _collect(frames: Frames, stream: str, group: tuple[str, ...]) -> Iterator[SymbolRecords]:
    order = {symbol: index for index, symbol in enumerate(group)}
    places: dict[tuple[str, ...], tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]] = {}
    bundles: dict[str, int] = {}
    generators: dict[str, int] = {}
    parts = [np.empty(0, RECORD)]
    for frame in frames():
        if frame.stream != stream:
            continue
        place = places.get(frame.symbols)
        if place is None:
            here = [(i, order[name]) for i, name in enumerate(frame.symbols) if name in order]
            place = (
                np.array([i for i, _ in here], np.int64),
                np.array([k for _, k in here], np.int32),
            )
            places[frame.symbols] = place
        at, symbol = place
        part = np.empty(len(at), RECORD)
        part['symbol'] = symbol
        part['event_time_ns'] = frame.event_time_ns
        part['revision'] = frame.revision
        part['bundle'] = bundles.setdefault(frame.bundle_id, len(bundles))
        part['generator'] = generators.setdefault(frame.generator, len(generators))
        for field in COLUMNS:
            part[field] = getattr(frame, field)[at]
        parts.append(part)
    flat = np.concatenate(parts)
    flat = flat[np.lexsort((flat['revision'], flat['event_time_ns'], flat['symbol']))]
    bounds = np.searchsorted(flat['symbol'], np.arange(len(group) + 1))
    names, kinds = tuple(bundles), tuple(generators)
    for index, symbol_name in enumerate(group):
        part = flat[bounds[index] : bounds[index + 1]]
        yield SymbolRecords(stream, symbol_name, part, names, kinds)
