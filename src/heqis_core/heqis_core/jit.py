# SPDX-License-Identifier: Apache-2.0
"""How HEQIS compiles: strictly, and kept on disk. What is compiled lives with what it computes.

Strict means that a result depends on nothing but the input: no fastmath, no contraction, no
parallel reduction. A division by zero gives inf or NaN, as in numpy.

Compiled code is kept so that a restarted process does not compile again: in `NUMBA_CACHE_DIR` if
it is set, else in the `__pycache__` beside the source file (with a symlink install that of the
source tree), else in the user's cache folder. numba keys it by the content of the source file and
by processor, so a stale entry is never used; but it does not see what a kernel calls in **other**
files: a kernel calls only kernels and constants of its own file.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

_log = logging.getLogger(__name__)
_Function = TypeVar('_Function', bound=Callable[..., Any])


def strict_njit(function: _Function) -> _Function:
    """Compile a function strictly; it releases the GIL while it runs.

    Without any writable folder (read-only root, no home) each process compiles anew and says so.
    """
    try:
        compiled = numba.njit(function, cache=True, nogil=True, error_model='numpy')
    except RuntimeError as error:
        _log.warning(
            '%s: compiled code cannot be kept and every start compiles again (%s); '
            'set NUMBA_CACHE_DIR to a writable folder',
            function.__qualname__,
            error,
        )
        compiled = numba.njit(function, nogil=True, error_model='numpy')
    return compiled  # type: ignore[no-any-return]


def one_layout(array: npt.NDArray[Any], dtype: type[np.generic]) -> npt.NDArray[Any]:
    """Return an array in the one layout that kernels are compiled for; a copy if it has another.

    Contiguous, writable, of that type: any other would compile anew, in the middle of a stream.
    """
    if array.dtype == dtype and array.flags.carray:
        return array
    return np.require(array, dtype, ['C', 'W', 'A'])


def strict_helper(function: _Function) -> _Function:
    """Compile a helper strictly, as a part of the kernels of its own file that call it."""
    return numba.njit(  # type: ignore[no-any-return]
        function,
        nogil=True,
        error_model='numpy',
        no_cpython_wrapper=True,
        no_cfunc_wrapper=True,
    )


def strict_inline(function: _Function) -> _Function:
    """Compile a helper strictly, in the place where it is called."""
    return numba.njit(  # type: ignore[no-any-return]
        function, nogil=True, error_model='numpy', inline='always'
    )
