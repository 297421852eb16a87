# SPDX-License-Identifier: Apache-2.0
"""The parameters of the control path's nodes."""

from __future__ import annotations

from heqis_ros.params import Param, ParamTable

_PATH = Param('path', str, 'run/journal.sqlite', 'File of the journal; both nodes share it.')
_KEYS = [
    Param('secret_key_file', str, '', 'Own CURVE key; needed off loopback.'),
    Param('peer_key_file', str, '', 'Public CURVE key of the other end.'),
    Param('allow_folder', str, '', 'Folder of public keys (*.key) that may connect.'),
]

RISK_GATE = ParamTable(
    'risk_gate',
    [
        _PATH,
        Param(
            'clock',
            str,
            'event',
            'What freshness is judged by: event (replay: the newest bar seen) or wall (live).',
            choices=('event', 'wall'),
        ),
        Param(
            'rules',
            str,
            '',
            'File of the risk rules, like config/risk.yaml; empty: no bounds.',
        ),
        Param(
            'kill_file',
            str,
            'run/KILL',
            'While a file of this name exists every signal is refused; empty: none.',
        ),
        Param(
            'queue',
            int,
            4096,
            'Most frames that wait; more are dropped and counted, the gateway sends them again.',
            minimum=1,
            maximum=1_000_000,
        ),
        Param(
            'batch',
            int,
            64,
            'Most frames that are made durable in one transaction.',
            minimum=1,
            maximum=10_000,
        ),
        Param(
            'require_supervisor',
            bool,
            True,
            'Let decisions wait, unjudged, while no heartbeat of the supervisor is heard.',
        ),
        Param(
            'supervisor_lease_ms',
            int,
            1500,
            'Silence of the supervisor until decisions wait; activation counts as its word.',
            unit='ms',
            minimum=200,
            maximum=60000,
        ),
    ],
)

JOURNAL = ParamTable(
    'journal',
    [
        _PATH,
        Param(
            'queue',
            int,
            1024,
            'Most predictions and most events that wait; the oldest are dropped and counted.',
            minimum=1,
            maximum=1_000_000,
        ),
        Param(
            'max_predictions',
            int,
            50_000,
            'Frames of predictions that the journal keeps, the newest.',
            minimum=1,
            maximum=100_000_000,
        ),
        Param(
            'max_events',
            int,
            200_000,
            'Events that the journal keeps, the newest.',
            minimum=1,
            maximum=100_000_000,
        ),
        Param(
            'keep_mb',
            int,
            4096,
            'Size that the journal is held to: the oldest decisions go into the archive and only '
            'then out of it, with older events; 0 keeps every decision and archives nothing.',
            unit='MB',
            minimum=0,
            maximum=100_000_000,
        ),
        Param(
            'archive',
            str,
            '',
            'Folder of the archive, Parquet files; empty: archive, beside the journal.',
        ),
    ],
)

AGENT = ParamTable(
    'agent',
    [
        Param(
            'control_endpoint',
            str,
            'tcp://127.0.0.1:5558',
            'Where the supervisor listens for agents.',
        ),
        Param(
            'reboot_command',
            str,
            '',
            'Program and arguments that reboot this board in good order when the supervisor asks '
            'for it, as systemctl reboot; no shell reads them. Empty: such an order is refused.',
        ),
        *_KEYS,
    ],
)

SUPERVISOR = ParamTable(
    'supervisor',
    [
        Param(
            'control_endpoint',
            str,
            'tcp://127.0.0.1:5558',
            'Where to listen for agents.',
        ),
        Param('graph', str, 'config/graph.yaml', 'File of the rules: what is watched, and how.'),
        Param(
            'resets',
            str,
            '',
            'File of resets: how a board is reset in hardware; empty: none is.',
        ),
        Param(
            'state_dir',
            str,
            'run/supervisor',
            'Folder of the record of resets; all who can reset a board must share it.',
        ),
        Param(
            'loop_ms',
            int,
            50,
            'Longest time between two looks at the rules; messages are answered at once.',
            unit='ms',
            minimum=5,
            maximum=1000,
        ),
        Param(
            'diagnostics_ms',
            int,
            1000,
            'Time between two diagnostics; a change of a level goes out at once.',
            unit='ms',
            minimum=50,
            maximum=60_000,
        ),
        Param(
            'watchdog_device',
            str,
            '',
            'Hardware watchdog of the board, as /dev/watchdog: it resets the board when the '
            'supervisor stands still or stays away; empty: none.',
        ),
        Param(
            'watchdog_timeout_s',
            int,
            30,
            'Time until it does; longer than a new supervisor takes to start.',
            unit='s',
            minimum=5,
            maximum=3600,
        ),
        *_KEYS,
    ],
)

TABLES = (AGENT, JOURNAL, RISK_GATE, SUPERVISOR)
