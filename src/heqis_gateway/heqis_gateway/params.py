# SPDX-License-Identifier: Apache-2.0
"""The parameters of the gateway's nodes."""

from __future__ import annotations

from heqis_gateway.engines.encoder_engine import ENGINES, PRECISIONS
from heqis_gateway.modbus_registers import MOST_SYMBOLS
from heqis_ros.params import TRUSTED_KEYS, Param, ParamTable

GATEWAY = ParamTable(
    'gateway',
    [
        Param('bundle', str, '', 'Folder of the bundle whose features and encoder are computed.'),
        TRUSTED_KEYS,
        Param(
            'encoder_engine',
            str,
            'auto',
            'What runs the factor encoder; auto: the NPU where it works, else the processor.',
            choices=ENGINES,
        ),
        Param(
            'encoder_precision',
            str,
            PRECISIONS[0],
            'Converted encoder that the NPU runs: one that `heqis convert` made.',
            choices=PRECISIONS,
        ),
        Param('stream', str, 'daily', "Name of the stream, part of every decision's key."),
        Param(
            'source',
            str,
            'simulator',
            'Where bars come from.',
            choices=('file', 'simulator', 'several'),
        ),
        Param('data', str, '', 'CSV or Parquet file, or a folder of them (source: file).'),
        Param(
            'sources',
            str,
            '',
            'YAML file that names several sources and what is joined (source: several).',
        ),
        Param(
            'quarantine',
            str,
            '',
            'CSV file that keeps the rows that cleaning refused; empty: next to the checkpoint.',
        ),
        Param(
            'timezone', str, 'Asia/Shanghai', 'Time zone of dates and times in files (IANA name).'
        ),
        Param('close_time', str, '15:00', 'Close of a bar that has a date alone (HH:MM).'),
        Param(
            'symbols',
            int,
            8,
            'Symbols to simulate (source: simulator).',
            minimum=1,
            maximum=10000,
        ),
        Param('seed', int, 7, 'Seed of the simulator.', minimum=0),
        Param(
            'limit',
            int,
            0,
            'Event times to simulate, warm-up included; 0 = without end.',
            minimum=0,
        ),
        Param(
            'pace_bars_per_s',
            float,
            50.0,
            'Event times replayed or simulated in a second; 0 = as fast as flow control allows.',
            unit='1/s',
            minimum=0.0,
            maximum=100000.0,
        ),
        Param(
            'start_after_training',
            bool,
            True,
            'Bars up to the end of the training data only warm features and windows.',
        ),
        Param(
            'transport',
            str,
            'zmq',
            'What carries frames to the compute board.',
            choices=('zmq', 'dds'),
        ),
        Param(
            'max_in_flight',
            int,
            32,
            'Most frames whose decisions are not yet known to be durable.',
            minimum=1,
            maximum=64,
        ),
        Param(
            'resend_after_ms',
            int,
            1000,
            'Time without an acknowledgement until open frames are sent again.',
            unit='ms',
            minimum=50,
            maximum=60000,
        ),
        Param(
            'state_dir',
            str,
            'run/gateway',
            'Folder of the checkpoint; relative to the folder that the process was started in.',
        ),
        Param(
            'checkpoint_ms',
            int,
            500,
            'Time between two checkpoints.',
            unit='ms',
            minimum=10,
            maximum=600000,
        ),
        Param(
            'bar_history_mb',
            int,
            32,
            'Newest bars kept in memory for late readers of `bars`.',
            unit='MB',
            minimum=1,
            maximum=4096,
        ),
    ],
)

BRIDGE = ParamTable(
    'bridge',
    [
        Param(
            'frames_endpoint',
            str,
            'tcp://127.0.0.1:5555',
            'Where the compute board listens for frames.',
        ),
        Param(
            'decisions_endpoint',
            str,
            'tcp://127.0.0.1:5556',
            'Where the bridge listens for decisions.',
        ),
        Param(
            'requests_endpoint',
            str,
            'tcp://127.0.0.1:5557',
            'Where the bridge listens for requests for missed frames.',
        ),
        Param(
            'secret_key_file',
            str,
            '',
            "This board's CURVE secret key (mode 0600); needed off loopback.",
        ),
        Param(
            'peer_key_file',
            str,
            '',
            "The compute board's CURVE public key; needed off loopback.",
        ),
        Param(
            'allow_folder',
            str,
            '',
            'Folder of further public keys (*.key) that may connect.',
        ),
        Param(
            'boards',
            str,
            '',
            'YAML file of several compute boards that share the symbols; empty: one board, at the '
            'three endpoints.',
        ),
        Param(
            'board_lease_ms',
            int,
            2000,
            'Time that a frame waits for a board after the first one answered (boards).',
            unit='ms',
            minimum=50,
            maximum=600000,
        ),
    ],
)

MODBUS = ParamTable(
    'modbus',
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
            5020,
            'TCP port; 502 is the standard one and needs a privilege; 0 = any free one.',
            minimum=0,
            maximum=65535,
        ),
        Param(
            'trusted_network',
            bool,
            False,
            'Serve off loopback: whoever reaches the port may read, unencrypted.',
        ),
        Param(
            'unit_id',
            int,
            1,
            'Unit that is answered for; 0 = whatever unit is asked for.',
            minimum=0,
            maximum=247,
        ),
        Param(
            'max_clients',
            int,
            16,
            'Most connections at once; one more is closed.',
            minimum=1,
            maximum=1000,
        ),
        Param(
            'max_symbols',
            int,
            64,
            'Number of records.',
            minimum=1,
            maximum=MOST_SYMBOLS,
        ),
        Param(
            'symbols',
            str,
            '',
            'Symbols of the first records, in this order, with blanks between; others follow as '
            'they are heard of.',
        ),
        Param('stream', str, '', 'Stream that is shown; empty: the first one that is heard.'),
        Param(
            'stale_after_ms',
            int,
            60_000,
            'Time without a new decision until a record is stale.',
            unit='ms',
            minimum=100,
            maximum=604_800_000,
        ),
        Param(
            'clock',
            str,
            'event',
            'What ends the validity of a decision: the newest event time (replay) or the wall '
            "clock (live); as the risk gate's.",
            choices=('event', 'wall'),
        ),
        Param(
            'required_nodes',
            list[str],
            ['supervisor', 'gateway', 'compute', 'risk_gate'],
            'Nodes that must be heard and active for the heartbeat counter to advance.',
        ),
    ],
)

TABLES = (GATEWAY, BRIDGE, MODBUS)
