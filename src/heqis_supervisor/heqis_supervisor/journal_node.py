# SPDX-License-Identifier: Apache-2.0
"""The journal process: the node that stores predictions and events, beside the risk gate."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

from heqis_core.errors import WireError
from heqis_msgs.msg import Event, Predictions
from heqis_ros import qos
from heqis_ros.convert import msg_to_predictions
from heqis_ros.convert_health import msg_to_event
from heqis_ros.node import ManagedNode
from heqis_ros.process import run_process
from heqis_supervisor.params import JOURNAL
from heqis_supervisor.retention import Retention
from heqis_supervisor.risk_gate_node import RiskGateNode
from heqis_supervisor.store import Store

REPORT_S = 0.2


class JournalNode(ManagedNode):
    """Stores what goes past on `predictions` and `events`."""

    PARAMS = JOURNAL

    def __init__(self, store: Store) -> None:
        """Create an unconfigured node over the process's store."""
        super().__init__()
        self._store = store
        self._retention: Retention | None = None

    def configure(self, params: Any) -> None:
        """Open the journal and listen; refuse with the reason if it cannot be opened."""
        self._store.open(
            params.path,
            queue=params.queue,
            max_predictions=params.max_predictions,
            max_events=0 if params.keep_mb else params.max_events,
        )
        self.defer(self._store.close)
        self._retention = self._retain(params) if params.keep_mb else None
        self.subscription(Predictions, 'predictions', qos.PREDICTIONS, self._on_predictions)
        self.subscription(Event, 'events', qos.EVENTS, self._on_event)
        self.timer(REPORT_S, self._report)

    def _retain(self, params: Any) -> Retention:
        path = Path(params.path).absolute()
        retention = Retention(
            self._store,
            path,
            folder=Path(params.archive) if params.archive else path.parent / 'archive',
            keep_mb=params.keep_mb,
            keep_events=params.max_events,
        )
        retention.start()
        self.defer(retention.close)
        return retention

    def _on_predictions(self, message: Predictions) -> None:
        try:
            self._store.put_predictions(msg_to_predictions(message))
        except WireError as error:
            self._refused(error)
            return
        self.progress()

    def _on_event(self, message: Event) -> None:
        try:
            self._store.put_event(msg_to_event(message))
        except WireError as error:
            self._refused(error)
            return
        self.progress()

    def _refused(self, error: WireError) -> None:
        self.count('bad_messages')
        self.get_logger().warning(f'not stored: {error}', throttle_duration_sec=5.0)

    def _report(self) -> None:
        self._store.check()
        for name in ('predictions_dropped', 'events_dropped', 'commit_errors', 'drop_errors'):
            self.set_counter(name, self._store.counters[name])
        trouble = self._store.error
        if self._retention is not None:
            self.set_counter('archived_frames', self._retention.archived)
            trouble = trouble or self._retention.error
        self.set_info(trouble or _from_here(self.params.path), degraded=bool(trouble))


def _from_here(path: str) -> str:
    """Return a path as people in the folder of this process would write it."""
    here, given = Path.cwd(), Path(path).absolute()
    return str(given.relative_to(here)) if given.is_relative_to(here) else path


def main() -> int:
    """Run the journal process: risk gate and journal."""
    store = Store()
    nodes = [functools.partial(RiskGateNode, store), functools.partial(JournalNode, store)]
    return run_process('journal', nodes)


if __name__ == '__main__':
    sys.exit(main())
