# SPDX-License-Identifier: Apache-2.0
"""Fill a small file system under a store, then make room. Started by `test_store_full_disk.py`.

The folder it is given is a file system of 4 MB that nothing else uses.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from heqis_core.decision import Decisions
from heqis_core.io.journal import Journal
from heqis_core.io.journal_check import check
from heqis_core.testing import wait_until
from heqis_core.testing_journal import make_frame
from heqis_supervisor.store import Store

WIDE = tuple(f'{i:06d}.SH' for i in range(1000))


class Gate:
    """Publishes everything and remembers which of it was durable then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.published: list[int] = []

    def judge(self, decisions: Decisions) -> Decisions:
        return decisions

    def settle(self, durable: bool) -> None:
        """Nothing is remembered of what was judged."""

    def ready(self) -> bool:
        return True

    def acknowledged(self) -> bool:
        return True

    def publish_frames(self, decisions: Sequence[Decisions], new: Sequence[bool]) -> bool:
        with Journal.open(self.path, read_only=True) as journal:
            durable = {frame.seq for frame in journal.frames()}
        assert {item.seq for item in decisions} <= durable
        self.published += [item.seq for item, fresh in zip(decisions, new, strict=True) if fresh]
        return True


def main() -> None:
    """Fill, hold, make room, flow."""
    folder = Path(sys.argv[1])
    filler = folder / 'filler'
    filler.write_bytes(bytes(2_000_000))
    path = folder / 'journal.sqlite'
    store, gate = Store(), Gate(path)
    store.open(path)
    store.attach(gate, batch=4, queue=1000)
    for index in range(40):
        assert store.put_decisions(make_frame(index, symbols=WIDE))
    wait_until(lambda: store.counters['commit_errors'] > 1, 20, 'the disk is never full')
    assert 'make room' in store.error, store.error
    held, published = store.pending, len(gate.published)
    assert held + published == 40
    assert 0 < held < 40
    filler.unlink()
    wait_until(lambda: len(gate.published) == 40, 20, 'it does not flow again')
    wait_until(lambda: store.error == '', 5)
    assert gate.published == list(range(40))
    store.detach()
    store.close()
    with Journal.open(path) as journal:
        assert check(journal).findings == []
        assert journal.unpublished() == []
    print(f'{published} published, {held} held, then all')


if __name__ == '__main__':
    main()
