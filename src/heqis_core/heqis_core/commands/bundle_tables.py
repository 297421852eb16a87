# SPDX-License-Identifier: Apache-2.0
"""What `heqis bundle show` and `diff` print: the facts of one manifest, the differences of two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, NamedTuple

import msgspec
from rich.table import Table
from rich.text import Text

from heqis_core.manifest import Conversion, FileEntry, Manifest

ABSENT = '—'
_SHA_SHOWN = 16


class Difference(NamedTuple):
    """One field that is not the same: section, name, and the value on either side."""

    section: str
    field: str
    a: str
    b: str


def facts_table(manifest: Manifest, signer: str) -> Table:
    """Return a manifest as names and values; `signer` is what is known of the signature."""
    table = Table(box=None, show_header=False)
    table.add_column(style='bold', no_wrap=True)
    table.add_column(overflow='fold')
    for name, value in facts(manifest, signer):
        table.add_row(Text(name), Text(value))
    return table


def facts(manifest: Manifest, signer: str) -> Iterator[tuple[str, str]]:
    """Yield what the table says, in its order."""
    provenance, features = manifest.provenance, manifest.features
    data, selection = provenance.data, provenance.selection
    encoder, window, strategy = manifest.encoder, manifest.window, manifest.strategy
    factors = encoder.factors if encoder else 0
    source = f', converted from {manifest.converted_from}' if manifest.converted_from else ''
    yield 'bundle', f'{manifest.bundle_id}, made {manifest.created_at}{source}'
    yield (
        'features',
        f'{len(features.names) - factors} indicators and {factors} factors, spec '
        f'{features.spec_id}\n{" ".join(features.names)}',
    )
    yield 'window', f'{window.length} rows within {window.horizon} frames'
    yield (
        'encoder',
        'none'
        if encoder is None
        else f'{encoder.file}: {encoder.window} rows within {encoder.horizon} frames to '
        f'{encoder.factors} factors, tiles of {encoder.tile}',
    )
    yield (
        'generators',
        '\n'.join(
            f'{part.name}: {part.file}, {part.window} rows, tiles of {part.tile}'
            for part in manifest.generators
        ),
    )
    if manifest.conversions:
        yield 'converted', '\n'.join(_conversion(one) for one in manifest.conversions)
    members = manifest.ensemble.members if manifest.ensemble else ()
    yield 'ensemble', f'mean of {", ".join(members)}' if members else 'none'
    scores = ', '.join(f'{name} {score:.6g}' for name, score in selection.scores.items())
    yield 'served', f'{manifest.served}\nrule: {selection.rule}\nscores: {scores}'
    yield (
        'decisions',
        f'BUY from score {strategy.buy_threshold:g} on, SELL up to {strategy.sell_threshold:g}, '
        f'valid for {strategy.valid_for_s:g} s; classes {", ".join(manifest.classes)}, flat '
        f'within {manifest.flat_band:g}',
    )
    yield (
        'data',
        f'{data.bars} bars of {len(data.symbols)} symbols, {_day(data.first_ns)} to '
        f'{_day(data.last_ns)}, fingerprint {data.fingerprint[:_SHA_SHOWN]}…; '
        f'decides after {_day(manifest.trained_until_ns)}',
    )
    yield 'training', f'seed {provenance.seed}, {provenance.training_s:.0f} s'
    yield 'settings', _pairs(provenance.settings)
    yield 'packages', _pairs(provenance.packages)
    total = sum(entry.bytes for entry in manifest.files.values())
    files = [f'{name}: {_file(entry)}' for name, entry in manifest.files.items()]
    yield 'files', '\n'.join([*files, f'{len(files)} files, {total} bytes'])
    yield 'signature', signer


def metrics_table(manifest: Manifest) -> Table:
    """Return the metrics of training: a row for each model and part, a column for each figure.

    Below a figure stands its 95 % interval.
    """
    rows = manifest.provenance.metrics
    names = list(dict.fromkeys(name for row in rows for name in row.figures))
    table = Table(box=None)
    for name in ('model', 'part', 'samples', *names):
        table.add_column(name, overflow='fold')
    for row in rows:
        cells = []
        for name in names:
            text = f'{row.figures[name]:.4g}' if name in row.figures else ''
            if name in row.intervals:
                low, high = row.intervals[name]
                text += f'\n{low:.3g} … {high:.3g}'
            cells.append(text)
        table.add_row(*map(Text, (row.model, row.part, str(row.samples), *cells)))
    return table


def differences(a: Manifest, b: Manifest) -> list[Difference]:
    """Return every field that differs, identity and clock included, in the order of A."""
    left, right = dict(_fields(a)), dict(_fields(b))
    return [
        Difference(section, field, left.get(key, ABSENT), right.get(key, ABSENT))
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
        for section, field in (key,)
    ]


def diff_table(rows: Sequence[Difference], a: str, b: str) -> Table:
    """Return differences for the terminal; `a` and `b` name the sides."""
    table = Table(box=None)
    for title in ('section', 'field', a, b):
        table.add_column(Text(title), overflow='fold')
    section = ''
    for row in rows:
        head = row.section if row.section != section else ''
        section = row.section
        table.add_row(*map(Text, (head, row.field, row.a, row.b)))
    return table


def _fields(manifest: Manifest) -> Iterator[tuple[tuple[str, str], str]]:
    """Yield ((section, field), value); what is a list of named things goes by their names."""
    content = msgspec.to_builtins(manifest)
    provenance = content.pop('provenance')
    features, data = content['features'], provenance['data']
    identity = {key: content.pop(key) for key in ('schema_version', 'bundle_id', 'created_at')}
    features['names'] = {name: str(at) for at, name in enumerate(features['names'])}
    data['symbols'] = dict.fromkeys(data['symbols'], 'there')
    content['generators'] = {part.pop('name'): part for part in content['generators']}
    # Their figures fill pages; `show` has them.
    content['conversions'] = {part['file']: part['tool'] for part in content['conversions']}
    provenance['metrics'] = {
        f'{row.pop("model")}, {row.pop("part")}': row for row in provenance['metrics']
    }
    content['files'] = {name: _file(entry) for name, entry in manifest.files.items()}
    for section, value in {'identity': identity, **content, **provenance}.items():
        for field, leaf in _leaves(value):
            yield (section, field), leaf


def _leaves(value: Any, name: str = '') -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f'{name}.{key}' if name else str(key))
    else:
        yield name, str(value)


def _file(entry: FileEntry) -> str:
    return f'{entry.bytes} bytes, sha256 {entry.sha256[:_SHA_SHOWN]}…'


def _conversion(one: Conversion) -> str:
    figures = ', '.join(f'{name} {value:.6g}' for name, value in one.figures.items())
    return f'{one.file}: {one.tool}; {figures or "no figures"}'


def _pairs(values: Mapping[str, object]) -> str:
    return ', '.join(f'{name}={value}' for name, value in values.items()) or 'none'


def _day(ns: int) -> str:
    return f'{datetime.fromtimestamp(ns // 10**9, timezone.utc):%Y-%m-%dT%H:%MZ}'
