# SPDX-License-Identifier: Apache-2.0
"""The sources file: which sources a gateway joins, and which channels it takes of them.

Everything is checked before any source is opened. Each kind is imported when a file names it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from msgspec import Struct

from heqis_core.align import ALWAYS_NS, Channel, Feed
from heqis_core.errors import ConfigError, LinkError
from heqis_core.io.quarantine import Quarantine, QuarantineRow
from heqis_core.io.yaml_struct import load_struct
from heqis_core.source import SourceConfig, open_source
from heqis_gateway.member import Joined, JoinedBars, JoinedReadings
from heqis_gateway.source_group import SourceGroup

if TYPE_CHECKING:
    from heqis_core.io.tushare_client import TushareClient
    from heqis_core.io.tushare_source import Timetable
    from heqis_core.io.zmq_feed_socket import FeedConfig, OnRefused

_NS_PER_MS = 1_000_000
_LIVE_WAIT_MS = 2_000

Log = Callable[[str], None]
Keep = Callable[[QuarantineRow], None]


class Place(NamedTuple):
    """Where a sources file stands, and who is told of what its sources refuse."""

    folder: Path
    log: Log
    keep: Keep
    quarantine: str
    """File of the group's refused rows; empty keeps none."""

    def quarantine_of(self, name: str) -> str:
        """Return the file of the rows that loading a source's files refuses."""
        if not self.quarantine:
            return ''
        file = Path(self.quarantine)
        return str(file.with_name(f'{file.stem}-{name}{file.suffix}'))


class _Named(Struct, kw_only=True, forbid_unknown_fields=True, tag_field='kind'):
    """What every source has.

    Attributes:
        name: of the source, in counters, logs and `channels`.
        wait_ms: how long a block waits for it before it goes out without; -1 waits for ever. None
            is the kind's own: for ever for what can be replayed, 2,000 for live bars, 0 for
            readings of devices.
        lateness_ms: how much older than its newest row another one may still be.
    """

    name: str
    wait_ms: int | None = None
    lateness_ms: int = 0

    def feed(self, symbols: tuple[str, ...] = ()) -> Feed:
        """Return what the alignment knows of it."""
        if self.lateness_ms < 0:
            raise ConfigError(f'source {self.name}: lateness_ms = {self.lateness_ms}; 0 or more')
        return Feed(self.name, symbols, self.lateness_ms * _NS_PER_MS)

    def wait_s(self, own_ms: int) -> float | None:
        """Return how long others wait for it; None is for ever."""
        wait_ms = own_ms if self.wait_ms is None else self.wait_ms
        return None if wait_ms < 0 else wait_ms / 1e3


class FileBars(_Named, kw_only=True, tag='file'):
    """Bars of a CSV or Parquet file, or of a folder of them: see `load_bars`.

    `columns` are further columns of it, which `channels` may join.
    """

    path: str
    symbols: list[str] = []
    columns: list[str] = []
    timezone: str = 'Asia/Shanghai'
    close_time: str = '15:00'

    def join(self, place: Place) -> Joined:
        """Load the file."""
        config = SourceConfig(
            'file',
            str(place.folder / self.path),
            self.symbols or 0,
            tz=self.timezone,
            close_time=self.close_time,
            channels=self.columns,
            quarantine=place.quarantine_of(self.name),
        )
        source = open_source(config)
        return JoinedBars(self.feed(source.symbols), source, self.wait_s(-1))


class SimulatedBars(_Named, kw_only=True, tag='simulator'):
    """Bars of the market simulator."""

    symbols: list[str] | int = 8
    seed: int = 7
    start_date: str = '2021-01-04'
    limit: int = 0

    def join(self, place: Place) -> Joined:
        """Make the simulator."""
        config = SourceConfig(
            'simulator',
            symbols=self.symbols,
            seed=self.seed,
            start_date=self.start_date,
            limit=self.limit,
        )
        source = open_source(config)
        return JoinedBars(self.feed(source.symbols), source, self.wait_s(-1))


class _Tushare(_Named, kw_only=True):
    """What both kinds of Tushare have; the token is in the environment, never here."""

    symbols: list[str]
    start: str
    ready: str = '17:00'
    check_s: float = 300.0
    calls_per_minute: int = 200

    def connect(self) -> TushareClient:
        """Return a client of the token in the environment."""
        from heqis_core.io.tushare_client import TushareClient

        return TushareClient.from_environment(per_minute=self.calls_per_minute)

    def timetable(self) -> Timetable:
        """Return when a day is asked for."""
        from heqis_core.io.tushare_source import Timetable

        return Timetable(self.start, self.ready, self.check_s)


class TushareBars(_Tushare, kw_only=True, tag='tushare'):
    """Daily bars of Tushare Pro as they are published."""

    endpoint: Literal['daily', 'fund_daily', 'index_daily'] = 'daily'

    def join(self, place: Place) -> Joined:
        """Make the source; it asks when it is opened."""
        from heqis_core.io.tushare_source import TushareSource

        source = TushareSource(self.connect, self.symbols, self.timetable(), self.endpoint)
        return JoinedBars(self.feed(source.symbols), source, self.wait_s(_LIVE_WAIT_MS), live=True)


class TushareColumns(_Tushare, kw_only=True, tag='tushare_readings'):
    """Columns of a daily endpoint of Tushare Pro, such as the turnover rate."""

    columns: list[str]
    endpoint: Literal['daily_basic', 'adj_factor', 'stk_limit'] = 'daily_basic'

    def join(self, place: Place) -> Joined:
        """Make the source; it asks when it is opened."""
        from heqis_core.io.tushare_source import TushareReadings

        source = TushareReadings(
            self.connect, self.symbols, self.timetable(), self.columns, self.endpoint
        )
        return JoinedReadings(self.feed(), source, self.wait_s(_LIVE_WAIT_MS))


class ModbusChannels(_Named, kw_only=True, tag='modbus'):
    """Registers of Modbus devices; `map` is a file like config/modbus.example.yaml."""

    map: str

    def join(self, place: Place) -> Joined:
        """Read the map; the connection is made when it is opened."""
        from heqis_core.io.modbus_map_file import load_map
        from heqis_core.io.modbus_source import ModbusSource

        source = ModbusSource(load_map(place.folder / self.map), place.log)
        return JoinedReadings(self.feed(), source, self.wait_s(0))


class _Feed(_Named, kw_only=True):
    """What both kinds of ZeroMQ feed have; off loopback the three key files are needed."""

    endpoint: str = 'tcp://127.0.0.1:5570'
    pattern: Literal['pull', 'sub'] = 'pull'
    bind: bool = True
    hwm: int = 1000
    symbols: list[str] = []
    close_after_ms: int = 1000
    secret_key_file: str = ''
    peer_key_file: str = ''
    allow_folder: str = ''

    def config(self, folder: Path) -> FeedConfig:
        """Return the feed's configuration."""
        from heqis_core.io.zmq_feed_socket import FeedConfig
        from heqis_core.io.zmq_security import optional_security

        keys = (self.secret_key_file, self.peer_key_file, self.allow_folder)
        return FeedConfig(
            self.endpoint,
            self.pattern,
            self.bind,
            self.hwm,
            tuple(self.symbols),
            self.close_after_ms / 1e3,
            security=optional_security(*(str(folder / key) if key else '' for key in keys)),
        )

    def refuser(self, keep: Keep) -> OnRefused:
        """Return what keeps the rows that the feed does not use."""
        return lambda *row: keep(QuarantineRow(self.name, *row))


class FeedOfBars(_Feed, kw_only=True, tag='feed'):
    """Bars that a program sends over ZeroMQ (docs/feed.md)."""

    def join(self, place: Place) -> Joined:
        """Make the source; it listens when it is opened."""
        from heqis_core.io.zmq_feed import FeedBars

        source = FeedBars(self.config(place.folder), place.log, self.refuser(place.keep))
        return JoinedBars(
            self.feed(source.symbols), source, self.wait_s(_LIVE_WAIT_MS), True, source.counters
        )


class FeedOfReadings(_Feed, kw_only=True, tag='feed_readings'):
    """Readings and ticks that a program sends over ZeroMQ (docs/feed.md)."""

    def join(self, place: Place) -> Joined:
        """Make the source; it listens when it is opened."""
        from heqis_core.io.zmq_feed import FeedReadings

        source = FeedReadings(self.config(place.folder), place.log, self.refuser(place.keep))
        return JoinedReadings(self.feed(), source, self.wait_s(0))


class ChannelRule(Struct, kw_only=True, forbid_unknown_fields=True):
    """One channel that is joined onto the bars.

    Attributes:
        name: as its source calls it.
        source: name of a source of readings.
        tolerance_ms: how old a reading may be; None for any age.
    """

    name: str
    source: str
    tolerance_ms: int | None = None


class SourcesFile(Struct, kw_only=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        sources: at least one of bars.
        channels: columns joined onto the bars, in order.
        late: what comes of a late bar: `drop` it (counted, quarantined), or `amend` the newest
            `amend_blocks` blocks with it.
    """

    sources: list[
        FileBars
        | SimulatedBars
        | TushareBars
        | TushareColumns
        | ModbusChannels
        | FeedOfBars
        | FeedOfReadings
    ]
    channels: list[ChannelRule] = []
    late: Literal['drop', 'amend'] = 'drop'
    amend_blocks: int = 1


def read_sources(path: Path) -> SourcesFile:
    """Return a sources file; raise ConfigError that names file, line and field."""
    file = load_struct(path, SourcesFile)
    if not 1 <= file.amend_blocks <= 64:
        raise ConfigError(f'{path}: amend_blocks = {file.amend_blocks}; expected 1 to 64')
    return file


def open_group(path: str | Path, quarantine: Path | str = '', log: Log = print) -> SourceGroup:
    """Return the sources that a file names as one, not yet opened.

    Args:
        path: YAML file; paths in it are relative to its folder.
        quarantine: CSV file that keeps what is refused, beside it one for the files of each source
            (`quarantine-NAME.csv`); empty keeps nothing.
        log: told of problems of sources.

    Raises ConfigError or DataError that names the file, and the line or the source.
    """
    path = Path(path)
    file = read_sources(path)
    kept = Quarantine(quarantine) if quarantine else None
    keep: Keep = kept.keep if kept else lambda _row: None
    place = Place(path.parent, log, keep, str(quarantine))
    try:
        joined = [source.join(place) for source in file.sources]
        return SourceGroup(
            joined,
            [_channel(rule) for rule in file.channels],
            amend=file.amend_blocks if file.late == 'amend' else 0,
            quarantine=kept,
            log=log,
        )
    except (ConfigError, LinkError) as error:
        raise ConfigError(f'{path}: {error}') from error


def _channel(rule: ChannelRule) -> Channel:
    if rule.tolerance_ms is not None and rule.tolerance_ms < 0:
        raise ConfigError(f'channel {rule.name}: tolerance_ms = {rule.tolerance_ms}; 0 or more')
    tolerance_ns = ALWAYS_NS if rule.tolerance_ms is None else rule.tolerance_ms * _NS_PER_MS
    return Channel(rule.name, rule.source, tolerance_ns)
