# SPDX-License-Identifier: Apache-2.0
"""Which board serves which symbol: rendezvous hashing (highest random weight). Pure.

Every board has a weight for every symbol, made of the two names alone, and the heaviest serves the
symbol. So each process finds the same owner without asking, whatever the order of the names, and a
board that goes takes only its own symbols with it: no other symbol changes its owner.

The weight is the first 8 bytes of BLAKE2b over the UTF-8 bytes of the board's name, one zero byte
and the UTF-8 bytes of the symbol, read as a big-endian number; of two equal weights the greater
name wins. Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM
Transactions on Networking 6(1), 1998.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt


def weight(board: str, symbol: str) -> int:
    """Return the weight of a board for a symbol, a number of 64 bits."""
    return int.from_bytes(blake2b(f'{board}\0{symbol}'.encode(), digest_size=8).digest(), 'big')


def owner(symbol: str, boards: Iterable[str]) -> str:
    """Return the board that serves a symbol; raise ValueError without a board."""
    return max(boards, key=lambda board: (weight(board, symbol), board))


def split(symbols: Sequence[str], boards: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Return the places in `symbols` of what each board serves, int64, ascending.

    Together they are every place once; a board that serves no symbol is left out.
    """
    places: dict[str, list[int]] = {board: [] for board in boards}
    for place, symbol in enumerate(symbols):
        places[owner(symbol, boards)].append(place)
    return {board: np.array(found, np.int64) for board, found in places.items() if found}
