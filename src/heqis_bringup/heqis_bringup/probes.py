# SPDX-License-Identifier: Apache-2.0
"""Small looks at the machine for `heqis doctor`: clock, ports, browser, engines."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata, util
from pathlib import Path

DEFAULT_MIDDLEWARE = 'rmw_fastrtps_cpp'
_RMW_INDEX = 'share/ament_index/resource_index/rmw_typesupport'
_TIME_ERROR = 5
_TIMEX_BYTES = 512


def clock_synchronised() -> bool | None:
    """Ask the kernel whether its clock is synchronised; None where it does not tell."""
    buffer = ctypes.create_string_buffer(
        _TIMEX_BYTES
    )  # larger than struct timex; modes 0 only reads
    state = int(ctypes.CDLL(None).adjtimex(buffer))
    return None if state < 0 else state != _TIME_ERROR


def middlewares() -> list[str]:
    """Return the names of the RMW implementations that the ament index holds."""
    prefixes = [*os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep), sys.prefix]
    folders = [Path(prefix, _RMW_INDEX) for prefix in prefixes if prefix]
    return sorted(
        {item.name for folder in folders if folder.is_dir() for item in folder.iterdir()}
    )


def port_holder(port: int) -> str | None:
    """Return who listens on a port of 127.0.0.1, or None if the port is free."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(('127.0.0.1', port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return f'the system ({os.strerror(error.errno or 0)})'
        else:
            return None
    return _listener(port) or 'a process of another user'


def _listener(port: int) -> str | None:
    import psutil

    try:
        for connection in psutil.net_connections('tcp'):
            if connection.laddr and connection.laddr.port == port and connection.pid:
                process = psutil.Process(connection.pid)
                return f'{process.name()} (pid {connection.pid})'
    except (psutil.Error, OSError):
        pass
    return None


def chromium() -> Path | None:
    """Return the Chromium, or the Chrome, on PATH."""
    names = ('chromium', 'chromium-browser', 'google-chrome')
    return next((Path(found) for name in names if (found := shutil.which(name))), None)


@dataclass(frozen=True)
class EngineProbe:
    """One inference engine: how to ask whether it would be used.

    Attributes:
        name: as people call it.
        module: the module of HEQIS that drives it.
        needs: returns what stands in the way on this machine, None if nothing does.
        detail: returns what was found.
        fix: how to get it.
    """

    name: str
    module: str
    needs: Callable[[], str | None]
    detail: Callable[[], str]
    fix: str

    def passed_over(self) -> str | None:
        """Return why this engine would not be used, None if it would."""
        try:
            reason = self.needs()
        except Exception as error:
            return f'{type(error).__name__}: {error}'
        if reason is None and util.find_spec(self.module) is None:
            return f'this version of HEQIS has no driver for it ({self.module})'
        return reason


def _rknn() -> str | None:
    if util.find_spec('heqis_gateway') is None:
        return 'heqis_gateway is not installed'
    from heqis_gateway.engines.rknn_engine import rknn_obstacle

    return rknn_obstacle()


def _tensorrt() -> str | None:
    if util.find_spec('heqis_compute') is None:
        return 'heqis_compute is not installed'
    from heqis_compute.engines.probe import tensorrt_obstacle

    return tensorrt_obstacle()  # asks the driver first: without one, TensorRT ends the process


def _onnxruntime() -> str | None:
    return None if util.find_spec('onnxruntime') else 'onnxruntime is not installed'


def _onnxruntime_detail() -> str:
    # Looked at, not used: what loads it in earnest is heqis_core.io.ort_engine.
    runtime = import_module('onnxruntime')
    providers = ', '.join(runtime.get_available_providers())
    return f'ONNX Runtime {runtime.__version__}, offers {providers}; HEQIS runs it on the CPU'


def _package(name: str) -> Callable[[], str]:
    return lambda: f'{name} {metadata.version(name)}'


_RKNN = EngineProbe(
    'RKNN',
    'heqis_gateway.engines.rknn_engine',
    _rknn,
    _package('rknn-toolkit-lite2'),
    'on the RK3568: pip install -r requirements/board-rk3568.txt and librknnrt.so of its BSP',
)
_TENSORRT = EngineProbe(
    'TensorRT',
    'heqis_compute.engines.tensorrt_engine',
    _tensorrt,
    _package('tensorrt'),
    'on the Jetson: TensorRT and CUDA of JetPack, pip install -r requirements/board-jetson.txt',
)
_ORT = EngineProbe(
    'ONNX Runtime',
    'heqis_core.io.ort_engine',
    _onnxruntime,
    _onnxruntime_detail,
    'pip install -r requirements/runtime.txt',
)

ENGINE_ORDER: dict[str, tuple[EngineProbe, ...]] = {
    'factor encoder': (_RKNN, _ORT),
    'generators': (_TENSORRT, _ORT),
}
"""Engines in the order in which each part takes the first that works."""
