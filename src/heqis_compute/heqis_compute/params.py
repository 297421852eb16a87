# SPDX-License-Identifier: Apache-2.0
"""The parameters of the compute node."""

from __future__ import annotations

from heqis_compute.engines.probe import ENGINES
from heqis_compute.engines.tensorrt_build import PRECISIONS
from heqis_ros.params import TRUSTED_KEYS, Param, ParamTable

COMPUTE = ParamTable(
    'compute',
    [
        Param('bundle', str, '', 'Folder of the bundle to serve.'),
        TRUSTED_KEYS,
        Param(
            'engine',
            str,
            'auto',
            'What runs the generators; auto: the first that works.',
            choices=ENGINES,
        ),
        Param(
            'engine_precision',
            str,
            'fp32',
            'Model files that TensorRT runs: fp16 and int8 are those that `heqis convert` made.',
            choices=PRECISIONS,
        ),
        Param(
            'engine_dla',
            bool,
            False,
            'Let TensorRT use the DLA where the chip has one (fp16 and int8).',
        ),
        Param(
            'engine_cache',
            str,
            'run/engines',
            'Folder of engines that TensorRT built; relative to where the process was started.',
        ),
        Param(
            'shadow_frames',
            int,
            16,
            'Frames that a bundle judges beside the one served before it takes over.',
            minimum=1,
            maximum=256,
        ),
        Param(
            'shadow_ms',
            int,
            2000,
            'Time after which it takes over with fewer of them.',
            unit='ms',
            minimum=0,
            maximum=600000,
        ),
        Param(
            'state_dir',
            str,
            'run/compute',
            'Folder that remembers what was swapped in; relative to where the process began.',
        ),
        Param(
            'transport',
            str,
            'zmq',
            'What frames arrive by: the link or the `features` topic.',
            choices=('zmq', 'dds'),
        ),
        Param(
            'frames_endpoint',
            str,
            'tcp://127.0.0.1:5555',
            'Where this board listens for frames.',
        ),
        Param(
            'decisions_endpoint',
            str,
            'tcp://127.0.0.1:5556',
            'Where the gateway listens for decisions.',
        ),
        Param(
            'requests_endpoint',
            str,
            'tcp://127.0.0.1:5557',
            'Where the gateway answers requests for missed frames.',
        ),
        Param(
            'require_supervisor',
            bool,
            True,
            'Hold all output while no heartbeat of the supervisor is heard.',
        ),
        Param(
            'supervisor_lease_ms',
            int,
            1500,
            'Silence of the supervisor until output is held.',
            unit='ms',
            minimum=200,
            maximum=60000,
        ),
        Param(
            'request_timeout_ms',
            int,
            500,
            'Wait for an answer to a request for missed frames.',
            unit='ms',
            minimum=10,
            maximum=60000,
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
            "The gateway's CURVE public key; needed off loopback.",
        ),
        Param(
            'allow_folder',
            str,
            '',
            'Folder of further public keys (*.key) that may connect.',
        ),
    ],
)

TABLES = (COMPUTE,)
