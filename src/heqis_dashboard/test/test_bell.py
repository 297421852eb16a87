# SPDX-License-Identifier: Apache-2.0
"""A ring wakes everyone who waits, comes from any thread, and does no harm at any time."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

from heqis_dashboard.bell import Bell

LONG_S = 30.0
"""A wait that ends by its time-out fails the test."""


async def waiting(bell: Bell, n: int, timeout_s: float = LONG_S) -> list[asyncio.Task[None]]:
    """Return tasks that wait for the bell already."""
    tasks = [asyncio.create_task(bell.wait(timeout_s)) for _ in range(n)]
    await asyncio.sleep(0)
    return tasks


async def soon(tasks: list[asyncio.Task[None]]) -> None:
    done, pending = await asyncio.wait(tasks, timeout=LONG_S / 3)
    assert not pending
    assert [task.exception() for task in done] == [None] * len(tasks)


def ring_from_a_thread(bell: Bell) -> None:
    thread = threading.Thread(target=bell.ring)
    thread.start()
    thread.join()


def test_a_ring_from_another_thread_wakes_all_who_wait_and_each_later_ring_the_next() -> None:
    async def main() -> None:
        bell = Bell()
        with bell.hung():
            for _ in range(3):
                tasks = await waiting(bell, 5)
                ring_from_a_thread(bell)
                await soon(tasks)

    asyncio.run(main())


def test_a_ring_before_anybody_waits_is_gone_and_the_wait_ends_by_its_time() -> None:
    async def main() -> None:
        bell = Bell()
        with bell.hung():
            bell.ring()
            await asyncio.sleep(0)
            start_s = time.monotonic()
            await bell.wait(0.05)
            assert 0.04 < time.monotonic() - start_s < LONG_S
            bell.ring()  # nobody waits any more
            tasks = await waiting(bell, 1)
            bell.ring()
            await soon(tasks)

    asyncio.run(main())


def test_nothing_that_happens_between_looking_and_waiting_is_missed() -> None:
    async def main() -> None:
        bell, n, count = Bell(), 1000, 0
        seen_it = threading.Event()

        def work() -> None:
            nonlocal count
            for _ in range(n):
                count += 1
                bell.ring()
                assert seen_it.wait(LONG_S)
                seen_it.clear()

        with bell.hung():
            thread = threading.Thread(target=work)
            thread.start()
            start_s, seen = time.monotonic(), 0
            while seen < n:
                if count == seen:
                    await bell.wait(LONG_S)
                if count > seen:
                    seen = count
                    seen_it.set()
            thread.join()
        assert time.monotonic() - start_s < LONG_S

    asyncio.run(main())


def test_a_ring_without_a_loop_and_after_it_ended_does_no_harm() -> None:
    bell = Bell()
    bell.ring()

    async def hang() -> None:
        with bell.hung():
            pass

    asyncio.run(hang())
    bell.ring()


def test_a_ring_into_a_loop_that_was_closed_just_now_does_no_harm() -> None:
    bell = Bell()

    async def hang() -> Any:
        hung = bell.hung()
        hung.__enter__()
        return hung

    loop = asyncio.new_event_loop()
    hung = loop.run_until_complete(hang())
    loop.close()
    bell.ring()
    hung.__exit__(None, None, None)


def test_a_bell_is_hung_again_in_the_loop_of_the_next_activation() -> None:
    bell = Bell()

    async def main() -> None:
        with bell.hung():
            tasks = await waiting(bell, 2)
            ring_from_a_thread(bell)
            await soon(tasks)

    asyncio.run(main())
    asyncio.run(main())


def test_one_who_stopped_waiting_and_two_rings_at_once_disturb_nobody() -> None:
    async def main() -> None:
        bell = Bell()
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        with bell.hung():
            gone, *tasks = await waiting(bell, 3)
            gone.cancel()
            bell.ring()
            bell.ring()
            await soon(tasks)
            assert gone.cancelled()
            await bell.wait(0.01)
            assert not bell._waiters  # none is kept
        assert complaints == []

    asyncio.run(main())
