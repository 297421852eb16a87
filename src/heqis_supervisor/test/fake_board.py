# SPDX-License-Identifier: Apache-2.0
"""Runs a script or module as on a board whose boot identity is the text of a file.

`python fake_board.py FILE SCRIPT|-m MODULE [arguments]`: writing the file boots the board.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from heqis_ros import vitals

if __name__ == '__main__':
    identity = Path(sys.argv[1])
    vitals.boot_id = lambda: identity.read_text(encoding='ascii').strip()
    if sys.argv[2] == '-m':
        sys.argv = sys.argv[3:]
        runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)
    else:
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name='__main__')
