# SPDX-License-Identifier: Apache-2.0
"""The process that builds one `.rknn` file and runs it on the vendor's simulator.

It is started in a scratch folder by the Python of `.venv-rknn`, which has the toolkit and nothing
of HEQIS. `rknn_tool` gives it `job.json` and reads `result.json`; what the toolkit prints goes to
the log that the caller keeps.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

MODEL, OUTPUTS, RESULT = 'model.rknn', 'outputs.npy', 'result.json'
DISTRIBUTION = 'rknn-toolkit2'


def toolkit() -> Any:
    """Return the class `RKNN` of the toolkit.

    Its gradient-based quantiser is written with torch, and imported whether it is used or not.
    Where torch is not installed (0.9 GB for nothing here) its definitions get names to be defined
    with; whoever called it would be told at once that there is no torch.
    """
    if importlib.util.find_spec('torch') is None:
        torch, nn = ModuleType('torch'), ModuleType('torch.nn')
        torch.nn, nn.Module = nn, object  # type: ignore[attr-defined]
        torch.no_grad = lambda: lambda function: function  # type: ignore[attr-defined]
        torch.__path__, nn.__path__ = [], []
        sys.modules |= {'torch': torch, 'torch.nn': nn}
    from rknn.api import RKNN  # type: ignore[import-not-found]

    return RKNN


def build(job: dict[str, Any]) -> None:
    """Build `MODEL` from `job`, and write what it answers to the job's inputs as `OUTPUTS`.

    A job has `onnx` (path), `platform`, `calibration` (paths of .npy files in the layout of the
    model's input; empty: float16) and `inputs` (path of an .npy file (n, *input)).
    """
    calibration = job['calibration']
    dataset = Path('calibration.txt')
    dataset.write_text(''.join(f'{path}\n' for path in calibration), encoding='utf-8')
    rknn = toolkit()(verbose=True)
    _expect('config', rknn.config(target_platform=job['platform']))
    _expect('load_onnx', rknn.load_onnx(model=job['onnx']))
    quantised = {'do_quantization': True, 'dataset': str(dataset)}
    _expect('build', rknn.build(**quantised if calibration else {'do_quantization': False}))
    _expect('export_rknn', rknn.export_rknn(MODEL))
    # Only what was built in this process can be simulated; no target means the simulator.
    _expect('init_runtime', rknn.init_runtime())
    outputs = []
    for tile in np.load(job['inputs'], allow_pickle=False):
        # Without the format it would take the axes for NHWC.
        answer = rknn.inference(inputs=[tile], data_format=['nchw'])
        if not answer or len(answer) != 1:
            raise RuntimeError(f'inference returned {answer!r}, expected one output')
        outputs.append(answer[0])
    np.save(OUTPUTS, np.stack(outputs).astype(np.float32), allow_pickle=False)
    rknn.release()


def main() -> int:
    """Run the job in this folder, or print the toolkit's version for `--version`."""
    if sys.argv[1:] == ['--version']:
        toolkit()
        print(f'{DISTRIBUTION} {version(DISTRIBUTION)}')
        return 0
    result = {'tool': f'{DISTRIBUTION} {version(DISTRIBUTION)}', 'error': ''}
    try:
        build(json.loads(Path('job.json').read_text(encoding='utf-8')))
    except Exception as error:  # the toolkit raises whatever its compiled parts raise
        traceback.print_exc()
        # the toolkit's messages begin with a traceback; what happened stands at their end
        said = str(error).strip().splitlines() or ['']
        result['error'] = f'{type(error).__name__}: {said[-1]}'
    Path(RESULT).write_text(json.dumps(result), encoding='utf-8')
    return 0


def _expect(step: str, status: object) -> None:
    # Some failures raise, others return -1.
    if status != 0:
        raise RuntimeError(f'{step} returned {status}')


if __name__ == '__main__':
    sys.exit(main())
