# SPDX-License-Identifier: Apache-2.0
"""Reads a gateway's frames in the place of the compute board: docs/wire-format.md says how."""

import struct
import sys

import msgpack
import numpy as np
import zmq

PROLOGUE = struct.Struct('<4s4xBBHIIIQQqI4xQ')
KINDS = {0: 'i', 1: 'u', 2: 'f', 6: 'b'}


def read(message):
    """Return seq, descriptor, stamps and tensors of a FRAME or DECISIONS message."""
    magic, version, _, _, length, _, n_stamps, _, seq, _, _, check = PROLOGUE.unpack_from(message)
    if magic != b'HEQS' or version != 2:
        raise ValueError(f'{magic!r} version {version}: not a HEQIS message of version 2')
    words = np.frombuffer(message, '<u4').astype('u8')
    words[14:16] = 0
    if check != (words * np.arange(1, len(words) + 1, dtype='u8')).sum():
        raise ValueError('the check does not fit: the message was altered')
    descriptor = msgpack.unpackb(message[64 : 64 + length])
    body = (64 + length + 63) // 64 * 64
    tensors = {}
    for name, code, bits, shape, offset in descriptor['tensors']:
        dtype = f'<{KINDS[code]}{bits // 8}'
        tensors[name] = np.ndarray(shape, dtype, message, body + offset)
    return seq, descriptor, np.ndarray(n_stamps, '<i8', message, body), tensors


if __name__ == '__main__':
    socket = zmq.Context.instance().socket(zmq.PULL)
    socket.bind(sys.argv[1] if len(sys.argv) > 1 else 'tcp://127.0.0.1:5555')
    while True:
        seq, descriptor, _, tensors = read(socket.recv())
        print(seq, *descriptor['symbols'][:3], tensors['features'][0, :3].tolist(), flush=True)
