# SPDX-License-Identifier: Apache-2.0
"""The feature spec: an ordered list of indicators with parameters, its column names and its id.

What an indicator computes lives in `kernels`, its state in `state`. This module only knows which
kinds exist, which parameters they take, what their columns are called and how many bars each
column needs.

Kinds (C close, V volume; every window counts VALID bars of one symbol):

================ ================== =============================================================
kind             parameters         columns
================ ================== =============================================================
``return``       n                  C / C[-n] - 1
``ma``           n                  mean of the last n closes
``sma``          n, m               Chinese SMA(C, n, m): Y += (C - Y) m / n, from the first close
``ema``          n                  Y += (C - Y) 2 / (n + 1), from the first close
``macd``         fast, slow, signal dif = EMA fast - EMA slow, dea = EMA signal of dif,
                                    bar = 2 (dif - dea)
``kdj``          n, k, d            RSV over n bars (50 where HHV = LLV); k and d smooth it, from
                                    50 at the first whole window; j = 3 k - 2 d
``rsi``          n                  100 G / (G + L), gains and losses smoothed by SMA(x, n, 1)
                                    from the first change; 50 where nothing ever moved
``boll``         n, width, ddof     mid = MA n; up, low = mid +- width * deviation
``atr``          n                  true range smoothed after Wilder, from the mean of the first n
``volume_ratio`` n                  V / mean of the n volumes before it
================ ================== =============================================================

A column is NaN until its window is whole, and a recursive one of period n for its first n - 1 bars
(`Output.warm_up` has the number); what the seed left behind fades on after that.

`relative` makes a column scale-free: price levels (ma, sma, ema, boll) become x / C - 1, price
spreads (macd, atr) x / C. The other kinds are scale-free already.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from heqis_core.errors import ConfigError

MAX_PERIOD = 10_000
"""Longest period in bars: a typing error must not ask for gigabytes of state."""

Number = int | float
Params = Mapping[str, Number]


class Param(NamedTuple):
    """One parameter of a kind: a period in bars unless `is_float` or `minimum` say otherwise."""

    default: Number
    minimum: Number = 1
    maximum: Number = MAX_PERIOD
    is_float: bool = False


class Kind(NamedTuple):
    """What a kind of indicator takes and gives."""

    params: dict[str, Param]
    outputs: tuple[str, ...]
    """Column suffixes; one empty suffix for a kind with one column."""
    scale: str
    """`level` or `spread` of prices (both may be relative), or `free`."""
    warm_up: Callable[[Params], tuple[int, ...]]
    """For each output: the number of first bars without a value."""
    rule: Callable[[Params], str] = lambda p: ''
    """What the parameters break together, or an empty string."""


def _period(default: int, minimum: int = 1) -> dict[str, Param]:
    return {'n': Param(default, minimum)}


def _macd_warm_up(p: Params) -> tuple[int, ...]:
    dif = int(p['slow']) - 1
    return dif, dif + int(p['signal']) - 1, dif + int(p['signal']) - 1


KINDS: dict[str, Kind] = {
    'return': Kind(_period(1), ('',), 'free', lambda p: (int(p['n']),)),
    'ma': Kind(_period(20), ('',), 'level', lambda p: (int(p['n']) - 1,)),
    'sma': Kind(
        {'n': Param(20), 'm': Param(1)},
        ('',),
        'level',
        lambda p: (int(p['n']) - 1,),
        lambda p: '' if p['m'] <= p['n'] else 'm must not be above n',
    ),
    'ema': Kind(_period(20), ('',), 'level', lambda p: (int(p['n']) - 1,)),
    'macd': Kind(
        {'fast': Param(12), 'slow': Param(26), 'signal': Param(9)},
        ('dif', 'dea', 'bar'),
        'spread',
        _macd_warm_up,
        lambda p: '' if p['fast'] < p['slow'] else 'fast must be below slow',
    ),
    'kdj': Kind(
        {'n': Param(9), 'k': Param(3), 'd': Param(3)},
        ('k', 'd', 'j'),
        'free',
        lambda p: (int(p['n']) - 1,) * 3,
    ),
    'rsi': Kind(_period(14), ('',), 'free', lambda p: (int(p['n']),)),
    'boll': Kind(
        {
            'n': Param(20, 2),
            'width': Param(2.0, 1e-6, 1e6, is_float=True),
            'ddof': Param(0, 0, 1),
        },
        ('mid', 'up', 'low'),
        'level',
        lambda p: (int(p['n']) - 1,) * 3,
    ),
    'atr': Kind(_period(14), ('',), 'spread', lambda p: (int(p['n']),)),
    'volume_ratio': Kind(_period(5), ('',), 'free', lambda p: (int(p['n']),)),
}
"""Every kind of indicator by name."""


class Output(NamedTuple):
    """One column: its name, and the number of first VALID bars of a symbol without a value."""

    name: str
    warm_up: int


@dataclass(frozen=True)
class FeatureItem:
    """One indicator of a spec.

    Attributes:
        kind: a key of `KINDS`.
        params: parameters by name; what is left out is filled in with the kind's default.
        relative: give prices as a ratio to the close (only kinds that are prices).
        outputs: which of the kind's columns are wanted; empty is filled in with all of them. They
            always stand in the kind's order.

    Raises ConfigError that names the item, the value and what is allowed.
    """

    kind: str
    params: Params = field(default_factory=dict)
    relative: bool = False
    outputs: tuple[str, ...] = ()

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
                f'feature {self.kind!r}: relative = true, but it has no price scale; '
                f'leave it out (only {able} take it)'
            )
        if broken := kind.rule(self.params):
            raise ConfigError(f'feature {self.kind!r}: {dict(self.params)}: {broken}')

    @property
    def columns(self) -> tuple[Output, ...]:
        """Return the columns of this item, in order."""
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
            if name == 'ddof':
                parts += ['ddof1'] if value else []
            else:
                parts.append(str(int(value)) if value == int(value) else repr(value))
        parts += [suffix] if suffix else []
        parts += ['rel'] if self.relative else []
        return '_'.join(parts)


@dataclass(frozen=True)
class FeatureSpec:
    """An ordered list of features; equal specs have equal ids, on any machine.

    Raises ConfigError for an empty list and for two columns of the same name.
    """

    features: tuple[FeatureItem, ...]

    def __post_init__(self) -> None:
        """Validate the list as a whole."""
        object.__setattr__(self, 'features', tuple(self.features))
        if not self.features:
            raise ConfigError('feature spec: no features; expected at least one')
        seen: dict[str, int] = {}
        for index, item in enumerate(self.features):
            for name, _ in item.columns:
                if name in seen:
                    raise ConfigError(
                        f'feature spec: features[{index}] ({item.kind}) gives the column {name!r} '
                        f'that features[{seen[name]}] gives already; remove one of them'
                    )
                seen[name] = index

    @cached_property
    def outputs(self) -> tuple[Output, ...]:
        """Return the F columns, in order."""
        return tuple(column for item in self.features for column in item.columns)

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
        return any(item.kind == 'volume_ratio' for item in self.features)

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

    def _plain(self) -> dict[str, object]:
        return {
            'features': [
                {
                    'kind': item.kind,
                    'params': dict(item.params),
                    'relative': item.relative,
                    'outputs': list(item.outputs),
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


def _item(index: int, entry: object) -> FeatureItem:
    where = f'feature spec: features[{index}]'
    if not isinstance(entry, dict) or not isinstance(entry.get('kind'), str):
        raise ConfigError(f'{where}: expected an object with a kind, found {entry!r}')
    fields = ('kind', 'params', 'relative', 'outputs')
    _refuse_unknown(where, entry, fields)
    outputs = entry.get('outputs', [])
    if not isinstance(outputs, list):
        raise ConfigError(f'{where}: outputs = {outputs!r}; expected a list')
    try:
        return FeatureItem(
            entry['kind'], entry.get('params', {}), entry.get('relative', False), tuple(outputs)
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
