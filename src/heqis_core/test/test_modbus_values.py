# SPDX-License-Identifier: Apache-2.0
"""Registers to numbers: types, orders, error values; and how requests are put together."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heqis_core.io.modbus_map import MOST_BITS, MOST_REGISTERS, Item
from heqis_core.io.modbus_plan import plan_requests
from heqis_core.io.modbus_values import KINDS, ORDERS, decode_words, is_error_value
from heqis_core.io.testing_modbus import encode_words


def numbers(name: str) -> st.SearchStrategy[int | float]:
    kind = KINDS[name]
    if kind.is_float:
        return st.floats(width=kind.bits, allow_nan=False)
    info = np.iinfo(name)
    return st.integers(int(info.min), int(info.max))


@pytest.mark.parametrize('byte_order', ORDERS)
@pytest.mark.parametrize('word_order', ORDERS)
@pytest.mark.parametrize('name', KINDS)
@settings(max_examples=30)
@given(data=st.data())
def test_each_type_in_each_order_comes_back(name, word_order, byte_order, data):
    kind = KINDS[name]
    value = data.draw(numbers(name))
    words = encode_words(value, kind, word_order, byte_order)
    assert len(words) == kind.words
    assert all(0 <= word <= 0xFFFF for word in words)
    assert decode_words(words, kind, word_order, byte_order) == value


@pytest.mark.parametrize(
    ('word_order', 'byte_order', 'words'),
    [
        ('big', 'big', [0xAABB, 0xCCDD]),
        ('little', 'big', [0xCCDD, 0xAABB]),
        ('big', 'little', [0xBBAA, 0xDDCC]),
        ('little', 'little', [0xDDCC, 0xBBAA]),
    ],
)
def test_the_four_orders_of_32_bits_are_those_of_the_manuals(word_order, byte_order, words):
    assert decode_words(words, KINDS['uint32'], word_order, byte_order) == 0xAABBCCDD


def test_float32_one_lies_in_the_registers_that_a_manual_shows():
    assert decode_words([0x3F80, 0x0000], KINDS['float32']) == 1.0
    assert decode_words([0x0000, 0x3F80], KINDS['float32'], word_order='little') == 1.0


@given(st.sampled_from([name for name in KINDS if not KINDS[name].is_float]), st.data())
def test_an_integer_error_value_is_known_by_its_bits_whatever_its_sign(name, data):
    kind = KINDS[name]
    pattern = data.draw(st.integers(0, (1 << kind.bits) - 1))
    words = [pattern >> 16 * n & 0xFFFF for n in reversed(range(kind.words))]
    value = decode_words(words, kind)
    assert is_error_value(value, kind, (pattern,))
    assert not is_error_value(value, kind, ((pattern + 1) % (1 << kind.bits),))
    assert not is_error_value(value, kind, ())


@pytest.mark.parametrize('name', ['float32', 'float64'])
def test_nan_and_infinity_are_error_values_without_being_named(name):
    for value in (math.nan, math.inf, -math.inf):
        words = encode_words(value, KINDS[name])
        assert is_error_value(decode_words(words, KINDS[name]), KINDS[name], ())


def test_a_float_error_value_is_compared_as_the_type_holds_it():
    value = decode_words(encode_words(-9999.9, KINDS['float32']), KINDS['float32'])
    assert value != -9999.9
    assert is_error_value(value, KINDS['float32'], (-9999.9,))
    assert not is_error_value(1.0, KINDS['float32'], (1e300,))


@st.composite
def items(draw: st.DrawFn) -> Item:
    function = draw(st.sampled_from(['holding', 'input', 'coil']))
    kind = None if function == 'coil' else draw(st.sampled_from([None, *KINDS.values()]))
    size = 1 if kind is None else kind.words
    address = draw(st.one_of(st.integers(0, 400), st.integers(0, 65536 - size)))
    return Item(function, min(address, 65536 - size), kind)


@given(st.lists(items(), max_size=60), st.integers(0, 123))
def test_every_item_lies_whole_in_one_request_within_the_limits(wanted, max_gap):
    requests = plan_requests(wanted, max_gap)
    assert sorted(map(repr, (i for r in requests for i in r.items))) == sorted(
        map(repr, set(wanted))
    )
    for request in requests:
        limit = MOST_BITS if request.function == 'coil' else MOST_REGISTERS
        assert 1 <= request.count <= limit
        assert request.address + request.count <= 65536
        end = request.address
        for item in request.items:
            assert item.function == request.function
            assert request.address <= item.address
            assert item.address + item.size <= request.address + request.count
            assert item.address - end <= max_gap
            end = max(end, item.address + item.size)


def test_neighbours_share_a_request_and_what_is_far_does_not():
    kind = KINDS['float32']
    near = [Item('holding', address, kind) for address in (0, 2, 6)]
    far = Item('holding', 50, kind)
    requests = plan_requests([far, *near], 2)
    assert [(r.address, r.count) for r in requests] == [(0, 8), (50, 2)]
    many = [Item('holding', address, kind) for address in range(0, 200, 2)]
    assert [(r.address, r.count) for r in plan_requests(many, 0)] == [(0, 124), (124, 76)]


def test_the_test_device_writes_what_struct_writes():
    assert encode_words(1.5, KINDS['float64']) == list(
        struct.unpack('>4H', struct.pack('>d', 1.5))
    )
