# SPDX-License-Identifier: Apache-2.0
"""The feature spec: an ordered list of features with parameters, its column names and its id.

Which kinds there are and what they take is in `kinds`, what they compute in `kernels` and `cross`,
their state in `state`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from heqis_core.bars import BAR_FIELDS
from heqis_core.errors import ConfigError
from heqis_core.features.kinds import (
    CHANNEL,
    CROSS_SECTION,
    KINDS,
    ROLLING,
    Kind,
    Number,
    Param,
    Params,
)


class Output(NamedTuple):
    """One column: its name, and the number of first VALID bars of a symbol without a value."""

    name: str
    warm_up: int


@dataclass(frozen=True)
class FeatureItem:
    """One feature of a spec.

    Attributes:
        kind: a key of `KINDS`.
        params: parameters by name; what is left out is filled in with the kind's default.
        relative: give a level or a spread as a ratio to the series that is read (only kinds that
            have such a scale).
        outputs: which of the kind's columns are wanted; empty is filled in with all of them. They
            always stand in the kind's order.
        of: the series to read, where the kind leaves a choice: a field of the bar, a channel as
            `channel:NAME`, or a column that an earlier item of the spec gives. Empty is the kind's
            default, and the default is kept as empty.

    Raises ConfigError that names the item, the value and what is allowed.
    """

    kind: str
    params: Params = field(default_factory=dict)
    relative: bool = False
    outputs: tuple[str, ...] = ()
    of: str = ''

    def __post_init__(self) -> None:
        """Validate, and fill in what was left to the defaults."""
        if self.kind not in KINDS:
            raise ConfigError(
                f'feature {self.kind!r}: unknown kind; expected one of {", ".join(KINDS)}'
            )
        kind = KINDS[self.kind]
        object.__setattr__(self, 'params', _complete_params(self.kind, kind, self.params))
        object.__setattr__(self, 'outputs', _complete_outputs(self.kind, kind, self.outputs))
        if not isinstance(self.relative, bool):
            raise ConfigError(
                f'feature {self.kind!r}: relative = {self.relative!r}; expected true or false'
            )
        if self.relative and kind.scale == 'free':
            able = ', '.join(name for name, other in KINDS.items() if other.scale != 'free')
            raise ConfigError(
                f'feature {self.kind!r}: relative = true, but it has no scale to relate to; '
                f'leave it out (only {able} take it)'
            )
        if broken := kind.rule(self.params):
            raise ConfigError(f'feature {self.kind!r}: {dict(self.params)}: {broken}')
        object.__setattr__(self, 'of', _complete_of(self.kind, kind, self.of))

    @property
    def reads(self) -> tuple[str, ...]:
        """Return the series that this item reads, the one that `of` chooses first."""
        kind = KINDS[self.kind]
        return kind.reads if kind.of is None else (self.of or kind.of,)

    @property
    def columns(self) -> tuple[Output, ...]:
        """Return the columns of this item, in order; warm-up in numbers of the series it reads."""
        kind = KINDS[self.kind]
        warm_up = kind.warm_up(self.params)
        return tuple(
            Output(self._name(suffix), warm_up[k])
            for k, suffix in enumerate(kind.outputs)
            if suffix in self.outputs
        )

    def _name(self, suffix: str) -> str:
        parts = [self.kind]
        for name, value in self.params.items():
            param = KINDS[self.kind].params[name]
            if not param.label or value != param.default:
                shown = str(int(value)) if value == int(value) else repr(value)
                parts.append(param.label + shown)
        parts += [suffix] if suffix else []
        parts += ['of', self.of.replace(':', '_')] if self.of else []
        parts += ['rel'] if self.relative else []
        return '_'.join(parts)


@dataclass(frozen=True)
class FeatureSpec:
    """An ordered list of features; equal specs have equal ids, on any machine.

    Raises ConfigError for an empty list, for two columns of the same name, and for an item that
    reads a series which is not there.
    """

    features: tuple[FeatureItem, ...]

    def __post_init__(self) -> None:
        """Validate the list as a whole."""
        object.__setattr__(self, 'features', tuple(self.features))
        if not self.features:
            raise ConfigError('feature spec: no features; expected at least one')
        givers: dict[str, int] = {}
        for index, item in enumerate(self.features):
            for name, _ in item.columns:
                if name in givers:
                    raise ConfigError(
                        f'feature spec: features[{index}] ({item.kind}) gives the column {name!r} '
                        f'that features[{givers[name]}] gives already; remove one of them'
                    )
                givers[name] = index
        for index, item in enumerate(self.features):
            if item.of and not is_bar_series(item.of):
                _check_giver(f'feature spec: features[{index}] ({item.kind})', item, givers, index)

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """Return the F columns, in order, with their warm-up in VALID bars.

        The warm-up is that of bars that have each volume and channel that is read.
        """
        warm_up: dict[str, int] = {}
        for item in self.features:
            before = warm_up.get(item.of, 0)
            warm_up.update((name, before + own) for name, own in item.columns)
        return tuple(Output(name, bars) for name, bars in warm_up.items())

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Return the F column names, in order."""
        return tuple(column.name for column in self.outputs)

    @cached_property
    def warmup_bars(self) -> int:
        """Return how many first VALID bars of a symbol lack some feature."""
        return max(column.warm_up for column in self.outputs)

    @cached_property
    def needs_volume(self) -> bool:
        """Return whether some feature is NaN for ever without a volume."""
        return any('volume' in item.reads for item in self.features)

    @cached_property
    def needs_event_time(self) -> bool:
        """Return whether some feature is of the event time."""
        return any(item.kind == 'calendar' for item in self.features)

    @cached_property
    def channels(self) -> tuple[str, ...]:
        """Return the names of the channels that are read, each once, in the order of the items."""
        series = (name for item in self.features for name in item.reads)
        return tuple(dict.fromkeys(n[len(CHANNEL) :] for n in series if n.startswith(CHANNEL)))

    @cached_property
    def id(self) -> str:
        """Return the first 16 hex digits of the sha256 of the canonical JSON."""
        canonical = json.dumps(self._plain(), sort_keys=True, separators=(',', ':'))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """Return the spec as indented JSON that `from_json` reads back to an equal spec."""
        return json.dumps(self._plain(), indent=1) + '\n'

    @classmethod
    def from_json(cls, text: str | bytes) -> FeatureSpec:
        """Read a spec; raise ConfigError that names the item, the field and what is allowed."""
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise ConfigError(f'feature spec: not JSON: {error}') from error
        if not isinstance(plain, dict) or not isinstance(plain.get('features'), list):
            raise ConfigError('feature spec: expected {"features": [...]}')
        _refuse_unknown('feature spec', plain, ('features',))
        return cls(tuple(_item(index, entry) for index, entry in enumerate(plain['features'])))

    @classmethod
    def load(cls, path: Path | str) -> FeatureSpec:
        """Read a spec from a JSON file; raise ConfigError that names it and what is wrong."""
        try:
            return cls.from_json(Path(path).read_bytes())
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f'{path}: cannot be read ({reason}); check the name') from error
        except ConfigError as error:
            raise ConfigError(f'{path}: {error}') from None

    def _plain(self) -> dict[str, object]:
        return {
            'features': [
                {
                    'kind': item.kind,
                    'params': dict(item.params),
                    'relative': item.relative,
                    'outputs': list(item.outputs),
                    # Left out where empty: specs from before `of` keep their ids.
                    **({'of': item.of} if item.of else {}),
                }
                for item in self.features
            ]
        }


def default_spec(has_volume: bool = True) -> FeatureSpec:
    """Return the first feature spec: 23 scale-free columns, 22 without volume; 33 bars of warm-up.

    BOLL gives its bands only: its middle line is the 20-bar MA, which is there already.
    """
    items = [FeatureItem('return', {'n': n}) for n in (1, 5, 10)]
    items += [FeatureItem('ma', {'n': n}, relative=True) for n in (5, 10, 20, 30)]
    items += [FeatureItem('ema', {'n': n}, relative=True) for n in (5, 10, 20)]
    items.append(FeatureItem('macd', relative=True))
    items.append(FeatureItem('kdj'))
    items += [FeatureItem('rsi', {'n': n}) for n in (6, 12, 24)]
    items.append(FeatureItem('boll', relative=True, outputs=('up', 'low')))
    items.append(FeatureItem('atr', relative=True))
    if has_volume:
        items.append(FeatureItem('volume_ratio', {'n': 5}))
    return FeatureSpec(tuple(items))


def full_spec(has_volume: bool = True, channels: Sequence[str] = ()) -> FeatureSpec:
    """Return every usual indicator, scale-free but for OBV, with calendar and cross-section.

    Args:
        has_volume: whether the bars carry volumes; without, OBV and volume ratio are left out.
        channels: of the bars; with `turnover_rate` among them, the turnover is there.
    """
    periods = (5, 10, 20, 30, 60)
    items = [FeatureItem('return', {'n': n}) for n in (1, 5, 10, 20, 60)]
    items.append(FeatureItem('log_return'))
    for kind in ('ma', 'ema', 'sma'):
        items += [FeatureItem(kind, {'n': n}, relative=True) for n in periods]
    for fast, slow in ((12, 26), (10, 20)):
        items.append(FeatureItem('macd', {'fast': fast, 'slow': slow}, relative=True))
    items += [FeatureItem('kdj', {'n': n}) for n in (9, 14)]
    items += [FeatureItem('rsi', {'n': n}) for n in (6, 12, 14, 24)]
    items.append(FeatureItem('boll', relative=True, outputs=('up', 'low')))
    items.append(FeatureItem('atr', relative=True))
    items.append(FeatureItem('cci'))
    crossed = ['return_1', 'return_5', 'return_20', 'rsi_14', 'atr_14_rel']
    if has_volume:
        items += [FeatureItem('obv'), FeatureItem('volume_ratio')]
        crossed.append('volume_ratio_5')
    if 'turnover_rate' in channels:
        items.append(FeatureItem('turnover'))
        crossed.append('turnover_5')
    items.append(FeatureItem('calendar'))
    items += [FeatureItem(kind, of=name) for name in crossed for kind in CROSS_SECTION]
    return FeatureSpec(tuple(items))


def normalised_spec(
    has_volume: bool = True, channels: Sequence[str] = (), n: int = 60
) -> FeatureSpec:
    """Return the full spec, and each rolling normaliser of `n` bars of each of its columns."""
    full = full_spec(has_volume, channels)
    rolling = [FeatureItem(kind, {'n': n}, of=name) for name in full.names for kind in ROLLING]
    return FeatureSpec((*full.features, *rolling))


def is_bar_series(name: str) -> bool:
    """Return whether a series comes with the bars, and is not a column of the spec."""
    return name in BAR_FIELDS or name.startswith(CHANNEL)


def _check_giver(where: str, item: FeatureItem, givers: Mapping[str, int], index: int) -> None:
    giver = givers.get(item.of)
    if giver is None:
        columns = ', '.join(name for name, k in givers.items() if k < index)
        raise ConfigError(
            f'{where}: of = {item.of!r}: no such series; expected one of '
            f'{", ".join(BAR_FIELDS)}, {CHANNEL}NAME, or a column of an earlier item: '
            f'{columns or "there is none"}'
        )
    if giver >= index:
        raise ConfigError(
            f'{where}: of = {item.of!r} is a column of features[{giver}], which comes later; '
            'an item reads columns of earlier items only: put that one before'
        )


def _complete_params(name: str, kind: Kind, given: Params) -> dict[str, Number]:
    if not isinstance(given, Mapping):
        raise ConfigError(f'feature {name!r}: params = {given!r}; expected an object')
    _refuse_unknown(f'feature {name!r}', given, kind.params, 'parameter')
    return {
        key: _checked(name, key, param, given.get(key, param.default))
        for key, param in kind.params.items()
    }


def _checked(name: str, key: str, param: Param, value: object) -> Number:
    types = (int, float) if param.is_float else (int,)
    good = isinstance(value, types) and not isinstance(value, bool)
    if not good or not param.minimum <= value <= param.maximum:  # type: ignore[operator]
        what = 'a number' if param.is_float else 'a whole number'
        raise ConfigError(
            f'feature {name!r}: {key} = {value!r}; '
            f'expected {what} from {param.minimum} to {param.maximum}'
        )
    return float(value) if param.is_float else value  # type: ignore[arg-type, return-value]


def _complete_outputs(name: str, kind: Kind, wanted: Sequence[str]) -> tuple[str, ...]:
    wanted = tuple(wanted) if not isinstance(wanted, str) else (wanted,)
    for output in wanted:
        if output not in kind.outputs or wanted.count(output) > 1:
            allowed = ', '.join(kind.outputs) or 'none: it has one column'
            raise ConfigError(
                f'feature {name!r}: outputs = {list(wanted)}; '
                f'expected each at most once of: {allowed}'
            )
    return tuple(output for output in kind.outputs if not wanted or output in wanted)


def _complete_of(name: str, kind: Kind, of: object) -> str:
    if not isinstance(of, str):
        raise ConfigError(f'feature {name!r}: of = {of!r}; expected the name of a series')
    if kind.of is None and of:
        able = ', '.join(other for other, k in KINDS.items() if k.of is not None)
        raise ConfigError(
            f'feature {name!r}: of = {of!r}, but it leaves no choice of what it reads; '
            f'leave it out (only {able} take it)'
        )
    if kind.of == '' and not of:
        raise ConfigError(
            f'feature {name!r}: of is missing; expected a field of the bar '
            f'({", ".join(BAR_FIELDS)}), {CHANNEL}NAME, or a column of an earlier item'
        )
    if of == CHANNEL:
        raise ConfigError(f'feature {name!r}: of = {of!r}; expected a name after {CHANNEL!r}')
    return '' if of == kind.of else of


def _item(index: int, entry: object) -> FeatureItem:
    where = f'feature spec: features[{index}]'
    if not isinstance(entry, dict) or not isinstance(entry.get('kind'), str):
        raise ConfigError(f'{where}: expected an object with a kind, found {entry!r}')
    fields = ('kind', 'params', 'relative', 'outputs', 'of')
    _refuse_unknown(where, entry, fields)
    outputs = entry.get('outputs', [])
    if not isinstance(outputs, list):
        raise ConfigError(f'{where}: outputs = {outputs!r}; expected a list')
    try:
        return FeatureItem(
            entry['kind'],
            entry.get('params', {}),
            entry.get('relative', False),
            tuple(outputs),
            entry.get('of', ''),
        )
    except ConfigError as error:
        raise ConfigError(f'{where}: {error}') from None


def _refuse_unknown(
    where: str, given: Mapping[str, object], known: object, what: str = 'field'
) -> None:
    names = list(known)  # type: ignore[call-overload]
    for key in given:
        if key not in names:
            raise ConfigError(f'{where}: unknown {what} {key!r}; expected {", ".join(names)}')
