# SPDX-License-Identifier: Apache-2.0
"""Which host names mean this machine alone: what may be open without keys."""

from __future__ import annotations

import ipaddress


def is_loopback(host: str) -> bool:
    """Return whether a host name or address (IPv6 without brackets) is this machine alone."""
    if host == 'localhost':
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
