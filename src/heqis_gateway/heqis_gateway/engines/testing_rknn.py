# SPDX-License-Identifier: Apache-2.0
"""A fake of `rknnlite.api` 2.5.0 that runs models on ONNX Runtime, and the files of an RK3568.

The class has the vendor's signatures and ways to fail: -1, None, an exception. Its `.rknn` file is
an ONNX file of the converted batch. Nothing outside a test imports this.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime as ort

NPU_CORE_AUTO = 0


class FakeNpu:
    """The chip: what is wrong with it, and what was done to it.

    Attributes:
        fail: name of the call that fails.
        how: what it answers then: -1, None, or an exception that it raises.
        scale, noise: a wrong result: outputs times `scale`, plus normal noise of that spread.
        open: runtimes that hold memory of the NPU.
        inputs: shape and dtype of each input array, in order.
    """

    def __init__(self) -> None:
        """Make a chip that works."""
        self.fail = ''
        self.how: Any = -1
        self.scale = 1.0
        self.noise = 0.0
        self.open = 0
        self.inputs: list[tuple[tuple[int, ...], np.dtype[Any]]] = []


def fake_rknnlite(npu: FakeNpu) -> dict[str, Any]:
    """Return what `sys.modules` holds where rknn-toolkit-lite2 is installed."""

    class RKNNLite:
        NPU_CORE_AUTO = NPU_CORE_AUTO

        def __init__(self, verbose: bool = False, verbose_file: str | None = None) -> None:
            self._data: bytes | None = None
            self._session: ort.InferenceSession | None = None

        def load_rknn(self, path: str, key_path: str | None = None) -> int:
            if npu.fail == 'load_rknn':
                return int(_failure(npu))
            self._data = Path(path).read_bytes()
            return 0

        def init_runtime(
            self,
            target: str | None = None,
            device_id: str | None = None,
            async_mode: bool = False,
            core_mask: int = NPU_CORE_AUTO,
        ) -> int:
            if npu.fail == 'init_runtime' or self._data is None:
                return int(_failure(npu))
            self._session = ort.InferenceSession(self._data, providers=['CPUExecutionProvider'])
            npu.open += 1
            return 0

        def inference(
            self,
            inputs: list[np.ndarray[Any, Any]],
            data_type: str | None = None,
            data_format: str | None = None,
            inputs_pass_through: list[int] | None = None,
            get_frame_id: bool = False,
            reuse_outputs: bool = False,
        ) -> list[np.ndarray[Any, Any]] | None:
            if npu.fail == 'inference' or self._session is None:
                failed: list[np.ndarray[Any, Any]] | None = _failure(npu)
                return failed
            npu.inputs += [(array.shape, array.dtype) for array in inputs]
            feeds = {
                node.name: array.transpose(0, 3, 1, 2)  # rank 4 comes as NHWC
                for node, array in zip(self._session.get_inputs(), inputs, strict=True)
            }
            rng = np.random.default_rng(0)
            return [
                out * np.float32(npu.scale) + rng.normal(0, npu.noise, out.shape).astype('f4')
                for out in self._session.run(None, feeds)
            ]

        def get_sdk_version(self) -> str | None:
            if npu.fail == 'get_sdk_version' or self._session is None:
                return None
            return 'API version: 2.5.0\nDRV version: rknpu: 0.9.8'

        def release(self) -> None:
            npu.open -= self._session is not None
            self._session = None

    api: Any = ModuleType('rknnlite.api')
    api.RKNNLite = RKNNLite
    return {'rknnlite': ModuleType('rknnlite'), 'rknnlite.api': api}


def write_board(root: Path) -> Path:
    """Write the files by which an RK3568 with its NPU is known, under `root`."""
    for folder in ('sys/bus/platform/drivers/RKNPU/fde40000.npu', 'proc/device-tree', 'usr/lib'):
        (root / folder).mkdir(parents=True)
    (root / 'proc/device-tree/compatible').write_bytes(b'vendor,board\0rockchip,rk3568\0')
    (root / 'usr/lib/librknnrt.so').write_bytes(b'')
    return root


def _failure(npu: FakeNpu) -> Any:
    if isinstance(npu.how, Exception):
        raise npu.how
    return npu.how
