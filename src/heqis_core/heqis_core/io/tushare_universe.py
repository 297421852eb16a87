# SPDX-License-Identifier: Apache-2.0
"""Universe files: symbols as codes or as Chinese names, by sector, and what each one resolves to.

A name means what `stock_basic` calls so now; failing that a listed fund, failing that an index.
What matches none, or more than one, is said, never dropped and never guessed.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from heqis_core.errors import DataError

_SECTOR = re.compile(
    r'[\[【](?P<name>[^\]】]+)[\]】]\s*[:\uff1a]?|(?P<plain>[^:\uff1a]+)[:\uff1a]'
)
_SEPARATORS = re.compile(r'[,\uff0c、;\uff1b|/\t]|\s{2,}')
_CODE = re.compile(
    r'(?:(?P<before>SH|SZ|BJ)\.?)?(?P<digits>\d{6})(?:\.?(?P<after>SH|SZ|BJ|SS|XSHG|XSHE|BSE))?'
)
_TS_CODE = re.compile(r'[0-9A-Z]+\.[A-Z]{2,4}')
_EXCHANGES = {'SS': 'SH', 'XSHG': 'SH', 'XSHE': 'SZ', 'BSE': 'BJ'}
_MARKS = re.compile(
    r'^(?:XD|XR|DR|S\*ST|SST|\*ST|ST|退市|N(?=[\u4e00-\u9fff])|C(?=[\u4e00-\u9fff]))'
    r'|-(?:UW|WD|[UWD])$|退$'
)
"""What the exchanges put before or after a name for a while."""
_SHOWN = 3
"""Suggestions for a name that is not known."""


class Entry(NamedTuple):
    """One symbol as the file names it."""

    text: str
    sector: str
    """Empty before the first sector line."""
    line: int


class Security(NamedTuple):
    """One row of `stock_basic`, `fund_basic` or `index_basic`."""

    ts_code: str
    name: str
    kind: str
    """`stock`, `fund` or `index`."""
    is_listed: bool
    list_date: str
    delist_date: str


class Resolved(NamedTuple):
    """One entry and the security that it means."""

    entry: Entry
    security: Security
    note: str
    """Why it is this one, where the text is not simply its name or code."""


class Unresolved(NamedTuple):
    """One entry that names nothing, or too much."""

    entry: Entry
    reason: str
    """`unknown` or `ambiguous`."""
    hint: str


class Universe(NamedTuple):
    """What a universe file resolves to."""

    resolved: tuple[Resolved, ...]
    unresolved: tuple[Unresolved, ...]

    def securities(self) -> list[Security]:
        """Return the securities, each once, sorted by code."""
        return sorted({one.security.ts_code: one.security for one in self.resolved}.values())


def read_universe(path: Path | str) -> list[Entry]:
    """Return the entries of a universe file (UTF-8 or GBK) in order.

    Symbols are separated by commas, Chinese ones too, 、, `;`, `|`, `/`, tabs, blanks or lines.
    `[sector]`, `【sector】` or `sector:` begin a sector, alone on a line or before its symbols.
    `#` begins a comment.

    Raises DataError if the file cannot be read or names nothing.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(f'{path}: cannot be read: {error}; check the path') from error
    for encoding in ('utf-8-sig', 'gb18030'):
        try:
            text = raw.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        raise DataError(f'{path}: neither UTF-8 nor GB18030 (GBK) text; save it as UTF-8')
    entries: list[Entry] = []
    sector = ''
    for number, line in enumerate(text.splitlines(), 1):
        rest = line.split('#', 1)[0].strip()
        found = _SECTOR.match(rest)
        if found:
            sector = (found['name'] or found['plain']).strip()
            rest = rest[found.end() :]
        for part in _SEPARATORS.split(rest):
            if part.strip():
                entries.append(Entry(part.strip(), sector, number))
    if not entries:
        raise DataError(
            f'{path}: names no symbol; expected ts_codes such as 600519.SH, or names, one a line'
        )
    return entries


def normalise(name: str) -> str:
    """Return a name for comparison: half-width, upper case, without blanks."""
    return re.sub(r'\s+', '', unicodedata.normalize('NFKC', name)).upper()


def resolve(entries: Iterable[Entry], tables: Iterable[Callable[[], list[Security]]]) -> Universe:
    """Return what each entry means.

    Args:
        entries: of `read_universe`.
        tables: give the stocks, the funds, the indices; a table is asked for only while an entry
            is not known by those before it.
    """
    left = list(entries)
    resolved: list[Resolved] = []
    unresolved: list[Unresolved] = []
    known: list[_Index] = []
    for table in tables:
        if not left:
            break
        index = _Index(table())
        known.append(index)
        waiting = []
        for entry in left:
            found, said = index.find(entry)
            resolved += found
            unresolved += said
            if not found and not said:
                waiting.append(entry)
        left = waiting
    for entry in left:
        found, said = _split(entry, known)
        resolved += found
        unresolved += said
    return Universe(
        tuple(sorted(resolved, key=lambda one: (one.entry.line, one.security.ts_code))),
        tuple(sorted(unresolved, key=lambda one: (one.entry.line, one.entry.text))),
    )


class _Index:
    """Securities of one kind by code and by name."""

    def __init__(self, securities: list[Security]) -> None:
        self.by_code = {one.ts_code: one for one in securities}
        self.by_digits = _group((one.ts_code.split('.')[0], one) for one in securities)
        self.by_name = _group((normalise(one.name), one) for one in securities)
        self.by_stem = _group((_stem(one.name), one) for one in securities)

    def find(self, entry: Entry) -> tuple[list[Resolved], list[Unresolved]]:
        """Return what the whole text of an entry means here, or why it means too much."""
        text = normalise(entry.text)
        code = _code(text)
        if code in self.by_code:
            return [Resolved(entry, self.by_code[code], '')], []
        if code.isdigit():
            return _one(entry, self.by_digits.get(code, []), '')
        if text in self.by_name:
            return _one(entry, self.by_name[text], '')
        stem = _stem(entry.text)
        matches = self.by_stem.get(stem, []) if stem else []
        names = ', '.join(sorted({one.name for one in matches}))
        return _one(entry, matches, f'{entry.text} is now called {names}')


def _one(
    entry: Entry, matches: list[Security], note: str
) -> tuple[list[Resolved], list[Unresolved]]:
    listed = [one for one in matches if one.is_listed]
    chosen = listed if listed else matches
    if len(chosen) > 1:
        hint = ', '.join(f'{one.ts_code} {one.name}' for one in sorted(chosen)[: 2 * _SHOWN])
        return [], [Unresolved(entry, 'ambiguous', f'could be {hint}: give the code')]
    if len(matches) > 1:
        note = (f'{note}; ' if note else '') + 'delisted ones had this name too'
    return [Resolved(entry, one, note) for one in chosen], []


def _split(entry: Entry, known: list[_Index]) -> tuple[list[Resolved], list[Unresolved]]:
    """Resolve the words of an entry one by one: a blank may separate, or stand inside a name."""
    words = entry.text.split()
    if len(words) == 1:
        return [], [Unresolved(entry, 'unknown', _hint(entry, known))]
    resolved: list[Resolved] = []
    unresolved: list[Unresolved] = []
    for word in words:
        one = Entry(word, entry.sector, entry.line)
        for index in known:
            found, said = index.find(one)
            resolved += found
            unresolved += said
            if found or said:
                break
        else:
            unresolved.append(Unresolved(one, 'unknown', _hint(one, known)))
    return resolved, unresolved


def _hint(entry: Entry, known: list[_Index]) -> str:
    text = normalise(entry.text)
    if _code(text) != text or text.isdigit() or _TS_CODE.fullmatch(text):
        return 'no stock, listed fund or index has this code'
    stem = _stem(entry.text)
    near = sorted(
        f'{one.name} {one.ts_code}'
        for index in known
        for name, group in index.by_stem.items()
        for one in group
        if len(stem) > 1 and one.is_listed and (stem in name or (name and name in stem))
    )
    if near:
        return f'perhaps {", ".join(near[:_SHOWN])}'
    return 'renamed or misspelt: give the code; a sector is written [name]'


def _code(text: str) -> str:
    """Return `600519.SH` or `600519` for the ways in which a code is written, else the text."""
    found = _CODE.fullmatch(text)
    if not found:
        return text
    exchange = found['after'] or found['before'] or ''
    exchange = _EXCHANGES.get(exchange, exchange)
    return f'{found["digits"]}.{exchange}' if exchange else found['digits']


def _stem(name: str) -> str:
    """Return a name without the marks that the exchanges put on it."""
    text, before = normalise(name), ''
    while text != before:
        before, text = text, _MARKS.sub('', text)
    return text


def _group(pairs: Iterable[tuple[str, Security]]) -> dict[str, list[Security]]:
    groups: dict[str, list[Security]] = {}
    for key, one in pairs:
        groups.setdefault(key, []).append(one)
    return groups


def to_securities(kind: str, columns: Mapping[str, list[str | None]]) -> list[Security]:
    """Return the rows of `stock_basic`, `fund_basic` or `index_basic` as securities."""
    ended = {'stock': 'delist_date', 'fund': 'delist_date', 'index': 'exp_date'}[kind]
    n = len(columns['ts_code'])
    status = columns.get('list_status') or columns.get('status') or [None] * n
    rows = zip(
        columns['ts_code'], columns['name'], status, columns['list_date'], columns[ended],
        strict=True,
    )  # fmt: skip
    # The vendor may list one index under two markets.
    return list(
        {
            code: Security(code or '', name or '', kind, state != 'D', first or '', last or '')
            for code, name, state, first, last in rows
        }.values()
    )
