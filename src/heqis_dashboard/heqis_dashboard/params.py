# SPDX-License-Identifier: Apache-2.0
"""The parameters of the dashboard node."""

from __future__ import annotations

from heqis_ros.params import Param, ParamTable

DASHBOARD = ParamTable(
    'dashboard',
    [
        Param(
            'host',
            str,
            '127.0.0.1',
            'Address to listen on; one off loopback needs trusted_network.',
        ),
        Param(
            'port',
            int,
            8050,
            'TCP port of the page; 0 = any free one, named in the log.',
            minimum=0,
            maximum=65535,
        ),
        Param(
            'trusted_network',
            bool,
            False,
            'Serve the page off loopback, without a password and unencrypted.',
        ),
        Param(
            'actions',
            str,
            'loopback',
            'Where the page may engage and clear the kill switch: on loopback, always, never.',
            choices=('loopback', 'always', 'never'),
        ),
        Param(
            'journal',
            str,
            '',
            'Journal to catch up from; empty: decisions come from the topic alone.',
        ),
        Param(
            'candles',
            int,
            300,
            'Candles that a page shows of a symbol, the newest; up to twice as many as it grows.',
            minimum=10,
            maximum=10_000,
        ),
        Param(
            'history',
            int,
            5000,
            'Event times of each stream that are kept.',
            minimum=10,
            maximum=1_000_000,
        ),
        Param(
            'history_mb',
            int,
            128,
            'Memory for bars and decisions of all streams; the oldest go.',
            unit='MB',
            minimum=1,
            maximum=65_536,
        ),
        Param(
            'pages',
            int,
            32,
            'Most pages that are open at once; one more is told so.',
            minimum=1,
            maximum=1000,
        ),
        Param('timezone', str, 'Asia/Shanghai', 'Time zone of the times on the page.'),
        Param(
            'rising',
            str,
            'red',
            'Colour of a rising candle: red as in China, green as elsewhere.',
            choices=('red', 'green'),
        ),
        Param(
            'autostart',
            bool,
            False,
            'Become active without a supervisor: on a machine that has no agent.',
        ),
    ],
)
