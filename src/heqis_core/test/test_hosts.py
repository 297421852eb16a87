# SPDX-License-Identifier: Apache-2.0
"""What is this machine alone, and what others may reach."""

from __future__ import annotations

import pytest

from heqis_core.hosts import is_loopback


@pytest.mark.parametrize('host', ['localhost', '127.0.0.1', '127.8.9.10', '::1'])
def test_loopback_is_this_machine_alone(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize('host', ['0.0.0.0', '::', '10.0.0.1', 'gateway', 'localhost.evil', ''])
def test_everything_else_may_be_reached(host: str) -> None:
    assert not is_loopback(host)
