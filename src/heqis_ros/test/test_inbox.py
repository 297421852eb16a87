# SPDX-License-Identifier: Apache-2.0
"""Messages wait in trays until somebody takes them: in order, sorted, and never without bound."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.qos import QoSProfile

from heqis_msgs.msg import Event
from heqis_ros import inbox as inbox_module
from heqis_ros import qos
from heqis_ros.inbox import MOST, Inbox, Tray
from heqis_ros.node import ManagedNode
from heqis_ros.params import ParamTable
from heqis_ros.testing import Graph, ros_graph

WAIT = Duration(seconds=10)


class Owner(ManagedNode):
    PARAMS = ParamTable('owner', [])


@dataclass
class Post:
    """A publisher and the tray that its messages come to."""

    graph: Graph
    owner: Owner
    inbox: Inbox
    tray: Tray
    pub: Any

    def send(self, *texts: str) -> None:
        """Publish, and wait until all of it has arrived."""
        for text in texts:
            self.pub.publish(Event(text=text))
        assert self.pub.wait_for_all_acked(WAIT)

    def take(self, n: int) -> list[str]:
        """Take until so many have come."""
        found: list[Event] = []
        self.graph.spin_until(lambda: len(found) >= n or bool(found.extend(self.tray.take())))
        return [message.text for message in found]


def post(graph: Graph, depth: int = 64, namespace: str = '/somewhere') -> Post:
    owner = graph.add(Owner(namespace=namespace))
    inbox = Inbox(owner, 'owner_inbox')
    tray = inbox.listen(Event, 'news', QoSProfile(depth=depth))
    pub = graph.add(Node('sender', namespace=namespace)).create_publisher(
        Event, 'news', QoSProfile(depth=5000)
    )
    graph.spin_until(lambda: pub.get_subscription_count() == 1)
    return Post(graph, owner, inbox, tray, pub)


@pytest.fixture
def graph() -> Iterator[Graph]:
    with ros_graph() as graph:
        yield graph


def test_messages_are_taken_once_in_the_order_in_which_they_came(graph):
    box = post(graph)
    assert box.tray.take() == []
    box.send('a', 'b', 'c')
    assert box.take(3) == ['a', 'b', 'c']
    assert box.tray.take() == []
    box.send('d')
    assert box.take(1) == ['d']
    box.inbox.close()


def test_what_is_not_wanted_is_taken_but_not_unpacked(graph, monkeypatch):
    box = post(graph)
    box.send(*(f'{kind} {i}' for i in range(10) for kind in ('good', 'bad')))
    unpacked = []
    unpack = inbox_module.deserialize_message
    monkeypatch.setattr(
        inbox_module, 'deserialize_message', lambda *args: unpacked.append(1) or unpack(*args)
    )
    found: list[Event] = []
    seen: list[bytes] = []

    def wanted(data: bytes) -> bool:
        seen.append(data)
        return b'good' in data

    graph.spin_until(lambda: len(seen) >= 20 or bool(found.extend(box.tray.take(wanted))))
    assert [message.text for message in found] == [f'good {i}' for i in range(10)]
    assert len(unpacked) == 10
    assert box.tray.take() == []
    box.inbox.close()


def test_one_call_takes_a_bounded_number_and_the_next_goes_on(graph):
    box = post(graph, depth=4 * MOST)
    box.send(*map(str, range(MOST + 10)))
    found = [message.text for message in box.tray.take()]
    assert len(found) == MOST
    assert found == [str(i) for i in range(MOST)]
    assert box.take(10) == [str(i) for i in range(MOST, MOST + 10)]
    box.inbox.close()


def test_unwanted_ones_count_too_so_that_a_flood_of_them_ends(graph):
    box = post(graph, depth=4 * MOST)
    box.send(*(['noise'] * MOST), 'news')
    seen: list[bytes] = []

    def wanted(data: bytes) -> bool:
        seen.append(data)
        return b'news' in data

    assert box.tray.take(wanted) == []
    assert len(seen) == MOST
    assert box.take(1) == ['news']
    box.inbox.close()


def test_the_oldest_go_when_nobody_takes_them(graph):
    box = post(graph, depth=5)
    box.send(*map(str, range(50)))
    assert box.take(5) == ['45', '46', '47', '48', '49']
    assert box.tray.take() == []
    box.inbox.close()


def test_the_inbox_wakes_no_executor_and_is_no_part_of_its_owner(graph):
    box = post(graph, namespace='/alone')
    assert list(box.owner.subscriptions) == []
    names = {(name, space) for name, space, *_ in box.owner.get_node_names_and_namespaces()}
    assert ('owner_inbox', '/alone') in names
    (reader,) = box.owner.get_subscriptions_info_by_topic('/alone/news')
    assert (reader.node_name, reader.node_namespace) == ('owner_inbox', '/alone')
    box.inbox.close()
    graph.spin_until(lambda: box.pub.get_subscription_count() == 0)


def test_two_trays_of_a_topic_each_get_all_of_it(graph):
    box = post(graph)
    second = box.inbox.listen(Event, 'news', qos.EVENTS)
    graph.spin_until(lambda: box.pub.get_subscription_count() == 2)
    box.send('a', 'b')
    assert box.take(2) == ['a', 'b']
    box.tray = second
    assert box.take(2) == ['a', 'b']
    box.inbox.close()
