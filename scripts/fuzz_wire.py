# SPDX-License-Identifier: Apache-2.0
"""Alter link messages for some minutes and hold the decoder to what must be true of it.

`python scripts/fuzz_wire.py --minutes 10` starts from valid messages of random shapes and alters
bytes, lengths, descriptors, dtype codes, shapes and offsets; most get right checksums again, so
that the checks behind them are reached. Whatever comes in, the decoder raises WireError and
nothing else, allocates little, and returns read-only views that lie within the message. It prints
cases, cases per second, findings and, with `--coverage N`, the branches that N cases reach; exit
status 1 if there is a finding.
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from heqis_core import wire
from heqis_core.checksum import seal
from heqis_core.decision import Decisions
from heqis_core.errors import WireError
from heqis_core.frame import FeatureFrame
from heqis_core.link import MissedReply, MissedRequest
from heqis_core.testing_link import make_decisions, make_frame

_MOST = 5
"""Findings after which a run ends: more of the same help nobody."""
_MEMORY = 512 << 20
"""Address space that a run may take beyond what it has when it starts."""
_FACTOR, _SLACK = 128, 1 << 18
"""Bytes that decoding may allocate: for each byte of the message, and besides."""
_TRACED = 50
"""One case in so many is run under tracemalloc, which is slow."""
_INTS = (
    *(0, 1, 2, 3, 4, 7, 8, 63, 64, 65, 127, 128, 255, 256, 16384, 1 << 16, 1 << 24, 1 << 30),
    *((1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1),
)
_VALUES: tuple[Any, ...] = (
    *(*_INTS, -1, -64, -(1 << 63), None, True, 0.5, float('nan'), '', 'x', 'features', 'close'),
    *('\x00', b'', b'x', [], [1], [[]], {}, {'a': 1}),
)
_HEAD = (
    *(('B', 8), ('B', 9), ('H', 10), ('I', 12), ('I', 16), ('I', 20), ('Q', 24), ('Q', 32)),
    *(('Q', 40), ('I', 48), ('I', 52), ('Q', 56)),
)
"""Fields of the prologue; docs/wire-format.md."""


class Seed(NamedTuple):
    """A valid message, and the method that reads it."""

    kind: str
    message: bytes


def main(argv: list[str] | None = None) -> int:
    """Run until the time is up; return 1 if there is a finding."""
    parser = argparse.ArgumentParser(prog='fuzz_wire', description=__doc__)
    parser.add_argument('--minutes', type=float, default=1.0, help='default %(default)s')
    parser.add_argument('--seed', type=int, help='of all cases; default: another one each time')
    parser.add_argument('--case', type=int, help='run this one alone, to see a finding again')
    parser.add_argument('--cases', type=int, help='end after so many')
    parser.add_argument(
        '--coverage',
        type=int,
        default=0,
        metavar='N',
        help='report branches reached',
    )
    parser.add_argument('--keep', type=Path, default=Path('output/fuzz'), metavar='DIR')
    args = parser.parse_args(argv)
    seed = random.SystemRandom().randrange(1 << 32) if args.seed is None else args.seed
    if reseal(bytearray(seeds(random.Random(0))[0].message)) != seeds(random.Random(0))[0].message:
        raise SystemExit('the format of messages has changed: adapt reseal() and _HEAD')
    if args.case is not None:
        return 0 if _try(seed, args.case, Counter(), args.keep) else 1
    limit_memory()
    findings = run(seed, args.minutes, args.cases, args.keep)
    if args.coverage:
        print(coverage_of(seed, args.coverage))
    return 1 if findings else 0


def run(seed: int, minutes: float, cases: int | None, keep: Path) -> int:
    """Run cases until the time is up or they are; return the number of findings."""
    started_s = said_s = time.monotonic()
    results: Counter[str] = Counter()
    findings = index = 0
    print(f'seed {seed}, {minutes:g} minutes', flush=True)
    while findings < _MOST and (cases is None or index < cases):
        findings += not _try(seed, index, results, keep)
        index += 1
        now_s = time.monotonic()
        if now_s - started_s > 60 * minutes:
            break
        if now_s - said_s > 60:
            said_s = now_s
            print(f'{index:,} cases: {dict(results)}', flush=True)
    seconds = time.monotonic() - started_s
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f'{index:,} cases in {seconds:.1f} s, {index / seconds:,.0f} per second: {dict(results)}; '
        f'peak memory {peak_mb:.0f} MB; {findings} findings',
        flush=True,
    )
    return findings


def _try(seed: int, index: int, results: Counter[str], keep: Path) -> bool:
    """Run one case; print and keep what is a finding, and return False then."""
    kind, message = case(seed, index)
    try:
        results[f'{kind} {verify(kind, message, traced=index % _TRACED == 0)}'] += 1
    except Exception:
        keep.mkdir(parents=True, exist_ok=True)
        kept = keep / f'wire-{seed}-{index}-{kind}.bin'
        kept.write_bytes(message)
        print(f'finding, --seed {seed} --case {index}, in {kept}:\n{traceback.format_exc()}')
        return False
    return True


def limit_memory() -> None:
    """Make an absurd allocation a MemoryError, and with it a finding."""
    pages = int(Path('/proc/self/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + _MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def case(seed: int, index: int) -> tuple[str, bytes]:
    """Return the kind of reading and the altered message of one case."""
    draw = random.Random(f'{seed} {index}')
    group = random.Random(f'{seed} {index // 64}')  # the same valid messages for a while
    kind, message = draw.choice(seeds(group))
    if draw.random() < 0.05:
        kind = draw.choice(list(_READ))
    altered = bytearray(message)
    for _ in range(draw.choice((1, 1, 1, 2, 3, 6))):
        altered = draw.choice(_ALTER)(altered, draw)
    return kind, reseal(altered) if draw.random() < 0.85 else bytes(altered)


_cached: dict[tuple[Any, ...], list[Seed]] = {}


def seeds(draw: random.Random) -> list[Seed]:
    """Return one valid message of each kind, of random shapes."""
    key = draw.randrange(1 << 30), draw.choice((1, 2, 3, 9, 70)), draw.choice((1, 2, 33, 130))
    if key not in _cached:
        _cached.clear()
        seq, symbols, features = key
        frames = [make_frame(seq + i, symbols, features) for i in range(draw.randrange(4))]
        frame = make_frame(seq, symbols, features)
        for i in range(draw.randrange(4)):
            shape = (symbols, *(draw.randint(1, 4) for _ in range(draw.randrange(4))))
            dtype = draw.choice(('i1', 'u2', 'i4', 'u8', 'f2', 'f4', 'f8', '?'))
            frame.tensors[f'extra{i}'] = np.zeros(shape, dtype)
        _cached[key] = [
            Seed('frame', wire.encode_frame(frame)),
            Seed('decisions', wire.encode_decisions(make_decisions(seq, symbols))),
            Seed('request', wire.encode_request(MissedRequest(7, seq, seq + 9), seq)),
            Seed('reply', wire.encode_reply(MissedReply(7, 0, seq + 9, 3, frames), seq)),
        ]
    return _cached[key]


def reseal(message: bytearray) -> bytes:
    """Return a message with checksums that are right; one too short for them as it is."""
    if len(message) >= 64:
        seal(np.frombuffer(message, '<u4', len(message) // 4))
    return bytes(message)


def verify(kind: str, message: bytes, traced: bool = False) -> str:
    """Read a message and check what must hold; return `read` or `refused`.

    Raises AssertionError if something does not hold, and whatever the decoder raises besides
    WireError.
    """
    if traced:
        tracemalloc.start()
    try:
        found = _READ[kind](message)
    except WireError:
        return 'refused'
    finally:
        if traced:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
            assert peak < _FACTOR * len(message) + _SLACK, f'{peak} B for {len(message)} B'
    for frame in found.frames if isinstance(found, MissedReply) else [found]:
        if isinstance(frame, FeatureFrame):
            check_arrays(list(frame.tensors.values()), len(frame.symbols), message)
        elif isinstance(frame, Decisions):
            names = 'action reasons score target_position probabilities predicted_return'
            columns = [getattr(frame, name) for name in (*names.split(), 'valid_until_ns')]
            check_arrays(columns, len(frame.symbols), message)
    return 'read'


def check_arrays(arrays: list[npt.NDArray[Any]], symbols: int, message: bytes) -> None:
    """Fail unless all arrays are read-only, non-empty and within the message."""
    start = np.frombuffer(message, np.uint8).ctypes.data
    for array in arrays:
        assert not array.flags.writeable
        assert array.flags.c_contiguous
        assert array.shape[0] == symbols > 0
        address = array.ctypes.data
        assert start <= address <= address + array.nbytes <= start + len(message)


_decoder = wire.Decoder()  # kept, as the links keep theirs: what it remembers must not harm
_READ: dict[str, Callable[[bytes], Any]] = {
    'frame': lambda data: _decoder.frame(data),
    'decisions': lambda data: _decoder.decisions(data),
    'reply': lambda data: _decoder.reply(data)[0],
    'request': lambda data: wire.decode_request(data)[0],
}


def _place(message: bytearray, draw: random.Random) -> int:
    """Return a place, more often one in the prologue and the descriptor."""
    most = len(message) if draw.random() < 0.4 else min(len(message), 400)
    return draw.randrange(max(1, most))


def _bits(message: bytearray, draw: random.Random) -> bytearray:
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = _place(message, draw)
        message[at : at + 1] = bytes([message[at] ^ 1 << draw.randrange(8)] if message else [])
    return message


def _number(message: bytearray, draw: random.Random) -> bytearray:
    form = draw.choice(('<B', '<H', '<I', '<Q'))
    size = struct.calcsize(form)
    at = _place(message, draw) // size * size
    message[at : at + size] = struct.pack(form, draw.choice(_INTS) & (256**size - 1))
    return message


def _head(message: bytearray, draw: random.Random) -> bytearray:
    form, at = draw.choice(_HEAD)
    size = struct.calcsize(form)
    if len(message) >= at + size:
        (value,) = struct.unpack_from(f'<{form}', message, at)
        value = draw.choice((value + 1, value - 1, value + 64, value - 64, draw.choice(_INTS)))
        struct.pack_into(f'<{form}', message, at, value & (256**size - 1))
    return message


def _size(message: bytearray, draw: random.Random) -> bytearray:
    if draw.random() < 0.5:
        return message[: draw.randrange(len(message) + 1)]
    return message + bytes(draw.choice((1, 7, 8, 63, 64, 4096)))


def _move(message: bytearray, draw: random.Random) -> bytearray:
    """Copy a run of bytes over another, insert it, or take it out."""
    length, start, to = draw.choice((1, 8, 64, 200)), _place(message, draw), _place(message, draw)
    run = message[start : start + length]
    how = draw.randrange(3)
    if how == 0:
        message[to : to + len(run)] = run
    elif how == 1:
        message[to:to] = run
    else:
        del message[to : to + length]
    return message


def _descriptor(message: bytearray, draw: random.Random) -> bytearray:
    """Alter a value, key or entry of the descriptor, and let the lengths fit again."""
    if len(message) < 64:
        return message
    length = struct.unpack_from('<I', message, 12)[0]
    end = 64 + -(-length // 64) * 64
    try:
        tree = msgspec.msgpack.decode(bytes(message[64 : 64 + length]))
        block = msgspec.msgpack.encode(_alter_tree(tree, draw))
    except (msgspec.MsgspecError, ValueError, OverflowError):
        return message
    struct.pack_into('<I', message, 12, len(block))
    return message[:64] + block + bytes(-len(block) % 64) + message[end:]


def _alter_tree(tree: Any, draw: random.Random) -> Any:
    """Return the tree with one node replaced, doubled or taken out."""
    if isinstance(tree, dict) and tree and draw.random() < 0.95:
        key = draw.choice(list(tree))
        how = draw.random()
        if how < 0.05:
            return {k: v for k, v in tree.items() if k != key}
        if how < 0.1:
            return {**tree, draw.choice(('x', '', 'stream')): draw.choice(_VALUES)}
        return {**tree, key: _alter_tree(tree[key], draw)}
    if isinstance(tree, list) and tree and draw.random() < 0.95:
        at, how = draw.randrange(len(tree)), draw.random()
        if how < 0.08:
            return tree[:at] + tree[at + 1 :]
        if how < 0.16:
            return tree[:at] + [tree[at]] * draw.choice((2, 3, 70)) + tree[at + 1 :]
        return [*tree[:at], _alter_tree(tree[at], draw), *tree[at + 1 :]]
    if isinstance(tree, int) and draw.random() < 0.5:
        return tree + draw.choice((-64, -1, 1, 64, 128))
    return draw.choice(_VALUES)


def _counts(message: bytearray, draw: random.Random) -> bytearray:
    """Alter one of the words at the start of the body: seqs, counts and lengths of a reply."""
    if len(message) >= 64:
        body = 64 + -(-struct.unpack_from('<I', message, 12)[0] // 64) * 64
        at = body + 8 * draw.randrange(8)
        if at + 8 <= len(message):
            (value,) = struct.unpack_from('<Q', message, at)
            value = draw.choice((value + 1, value - 1, value + 64, value - 64, draw.choice(_INTS)))
            struct.pack_into('<Q', message, at, value & ((1 << 64) - 1))
    return message


_ALTER = (_bits, _number, _head, _size, _move, _counts, *[_descriptor] * 5)


def coverage_of(seed: int, cases: int) -> str:
    """Return which branches of the decoder a run of its own reaches; reading, not writing."""
    with tempfile.TemporaryDirectory() as folder:
        data, here = f'--data-file={folder}/data', str(Path(__file__).resolve())
        files = '*/heqis_core/wire.py,*/heqis_core/envelope.py'
        command = [sys.executable, '-m', 'coverage']
        subprocess.run(
            [*command, 'run', data, '--branch', f'--include={files}', here,
             '--seed', str(seed), '--cases', str(cases), '--minutes', '60'],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        done = subprocess.run(
            [*command, 'report', data, '--show-missing'],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return done.stdout


if __name__ == '__main__':
    sys.exit(main())
