# SPDX-License-Identifier: Apache-2.0
"""`heqis bundle`: make keys, sign, verify, show, compare, pack and unpack the folder boards run.

What is checked is in `heqis_core.bundle`, `heqis_core.io.signing` and
`heqis_core.io.bundle_archive`; what a bundle's tables say in `heqis_core.commands.bundle_tables`.
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from rich.console import Console

from heqis_core.bundle import Bundle
from heqis_core.commands.bundle_tables import (
    diff_table,
    differences,
    facts_table,
    metrics_table,
)
from heqis_core.io.bundle_archive import SUFFIX, pack_bundle, unpack_bundle
from heqis_core.io.ort_engine import OrtEngine
from heqis_core.io.signing import (
    Signature,
    TrustedKeys,
    read_signature,
    sign_bundle,
    write_key_pair,
)

SAME, DIFFERENT = 0, 1
"""Exit status of `diff`, as of diff(1); what cannot be used at all is an error, and ends in 2."""

_PIPE_WIDTH = 160
"""Columns where the output is no terminal."""
_EXAMPLES = """examples:
  heqis bundle key factory                                    keys/factory.pub.pem and .secret.pem
  heqis bundle sign output/bundles/ID --key keys/factory.secret.pem
  heqis bundle make output/bundles/ID --out ID.hqb            one file for the way to the boards
  heqis bundle unpack ID.hqb --out /opt/heqis/bundles --trusted /opt/heqis/trusted
  heqis bundle verify /opt/heqis/bundles/ID --trusted /opt/heqis/trusted
  heqis bundle show output/bundles/ID
  heqis bundle diff output/bundles/OLD output/bundles/NEW
  heqis bundle swap /opt/heqis/bundles/ID                     on a compute board that runs

docs/bundle.md explains every field, signing and revoking.
"""

if TYPE_CHECKING:
    _Actions = argparse._SubParsersAction[argparse.ArgumentParser]


def register(subparsers: _Actions) -> None:
    """Add `bundle` to the subcommands of `heqis`."""
    parser = subparsers.add_parser(
        'bundle',
        help='sign, verify, show, compare and pack bundles',
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)

    key = actions.add_parser('key', help='make a key pair; existing files are never replaced')
    key.add_argument('name', help='name of the key: who signs')
    key.add_argument('--dir', type=Path, default=Path('keys'), help='default %(default)s')
    key.set_defaults(func=run_key)

    sign = _on_folder(actions, 'sign', 'check a bundle, then write its signature.json', run_sign)
    sign.add_argument('--key', metavar='FILE', type=Path, required=True, help='NAME.secret.pem')

    verify = _on_folder(
        actions, 'verify', 'check hashes, signature and golden outputs on ONNX Runtime', run_verify
    )
    _add_trusted(verify)
    verify.add_argument('--no-golden', action='store_true', help='run no model')

    show = _on_folder(actions, 'show', 'what a bundle holds, and why it serves what it', run_show)
    show.add_argument('--json', action='store_true', help='print JSON')

    diff = actions.add_parser(
        'diff',
        help='what differs between two bundles',
        description='Exit status: 0 the same content, 1 another, 2 one of them is not sound.',
    )
    diff.add_argument('a', metavar='A', type=Path, help='bundle folder')
    diff.add_argument('b', metavar='B', type=Path, help='bundle folder')
    diff.set_defaults(func=run_diff)

    make = _on_folder(actions, 'make', f'pack a bundle into one {SUFFIX} file', run_make)
    make.add_argument('--out', metavar='FILE', type=Path, help=f'default: ID{SUFFIX} here')

    unpack = actions.add_parser('unpack', help=f'unpack a {SUFFIX} file, checked, into DIR/ID')
    unpack.add_argument('archive', metavar='FILE', type=Path)
    unpack.add_argument('--out', metavar='DIR', type=Path, default=Path(), help='default: here')
    _add_trusted(unpack)
    unpack.set_defaults(func=run_unpack)

    # What needs ROS comes from another package, where it is installed.
    for point in sorted(metadata.entry_points(group='heqis.bundle'), key=lambda one: one.name):
        point.load()(actions)


def run_key(args: argparse.Namespace) -> int:
    """Write both files and say what to do with them; return 0."""
    public, secret, fingerprint = write_key_pair(args.dir, args.name)
    print(f'{public}: copy it to the folder trusted_keys of every board')
    print(f'{secret}: stays where bundles are signed, readable by its owner alone')
    print(f'fingerprint {fingerprint}')
    return 0


def run_sign(args: argparse.Namespace) -> int:
    """Sign, say by which key; return 0."""
    signature = sign_bundle(args.bundle, args.key)
    print(f'{args.bundle}: signed by {_signer(signature)}')
    return 0


def run_verify(args: argparse.Namespace) -> int:
    """Check everything, say what was and what was not checked; return 0."""
    bundle = Bundle.load(args.bundle, args.trusted and TrustedKeys.load(args.trusted).check)
    signature = read_signature(args.bundle)
    if signature is None:
        said = 'none: nothing says who made this bundle'
    elif args.trusted:
        said = f'ok, {_signer(signature)}'
    else:
        said = f'NOT CHECKED, claims {_signer(signature)}; give --trusted DIR'
    if not args.no_golden:
        bundle.verify_golden(OrtEngine)
    total = sum(entry.bytes for entry in bundle.manifest.files.values())
    print(f'bundle     {bundle.bundle_id}')
    print(f'hashes     ok, {len(bundle.manifest.files)} files, {total} bytes')
    print(f'signature  {said}')
    print(f'golden     {"NOT CHECKED" if args.no_golden else "ok on onnxruntime"}')
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print tables or JSON; return 0."""
    bundle = Bundle.load(args.bundle)
    signature = read_signature(args.bundle)
    if args.json:
        content = {
            'path': str(bundle.path),
            'manifest': msgspec.to_builtins(bundle.manifest),
            'signature': msgspec.to_builtins(signature),
        }
        print(json.dumps(content, indent=2))
        return 0
    signer = f'{_signer(signature)}, not verified here' if signature else 'none'
    console = _console()
    console.print(facts_table(bundle.manifest, signer))
    if bundle.manifest.provenance.metrics:
        console.print(metrics_table(bundle.manifest))
    console.print(bundle.manifest.provenance.metrics_note, markup=False)
    return 0


def run_diff(args: argparse.Namespace) -> int:
    """Print what differs; return 1 if the content does."""
    a, b = (Bundle.load(path).manifest for path in (args.a, args.b))
    rows = differences(a, b)
    if rows:
        _console().print(diff_table(rows, str(args.a), str(args.b)))
    if a.bundle_id == b.bundle_id:
        print(f'the same content: bundle {a.bundle_id}')
        return SAME
    return DIFFERENT


def run_make(args: argparse.Namespace) -> int:
    """Pack, say how large it is; return 0."""
    out = args.out or Path(f'{Bundle.load(args.bundle).bundle_id}{SUFFIX}')
    pack_bundle(args.bundle, out)
    signed = 'signed' if read_signature(args.bundle) else 'not signed'
    print(f'{out}: {out.stat().st_size} bytes, {signed}')
    return 0


def run_unpack(args: argparse.Namespace) -> int:
    """Unpack, print the folder; return 0."""
    check = args.trusted and TrustedKeys.load(args.trusted).check
    print(unpack_bundle(args.archive, args.out, check))
    return 0


def _on_folder(actions: _Actions, name: str, text: str, func: object) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text)
    parser.add_argument('bundle', metavar='DIR', type=Path, help='bundle folder')
    parser.set_defaults(func=func)
    return parser


def _add_trusted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--trusted',
        metavar='DIR',
        type=Path,
        help='folder of public keys (NAME.pub.pem) and revoked.txt: ask for a signature of them',
    )


def _signer(signature: Signature) -> str:
    return f'key {signature.key}, fingerprint {signature.fingerprint}'


def _console() -> Console:
    return Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
