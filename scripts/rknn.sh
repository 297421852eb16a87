#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make rknn`: .venv-rknn with the vendor's toolkit for the RK3568's NPU, which needs other versions of numpy, onnx and
# protobuf than the workspace. `heqis convert --target rk3568` starts it as a process. Does only what changed.
#   PYTHON=python3.12 scripts/rknn.sh   chooses the interpreter; default: that of .venv
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$HEQIS_ROOT"

RKNN_VENV=$HEQIS_ROOT/.venv-rknn
PINS=requirements/rknn.txt

exec 9< "$PINS"
flock 9

# The toolkit has wheels for these alone; on the board itself nothing is converted.
[[ $(uname -s)-$(uname -m) == Linux-x86_64 ]] ||
  die "the RKNN toolkit exists for x86-64 Linux alone, this is $(uname -s) on $(uname -m); convert on such a machine"

fits() {
  "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2> /dev/null
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    fits "$PYTHON" || die "PYTHON=$PYTHON is not Python 3.11 or 3.12, and the RKNN toolkit has no wheel for it"
    printf '%s\n' "$PYTHON"
    return
  fi
  for candidate in "$VENV/bin/python" python3.11 python3.12 python3; do
    if fits "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done
  die 'the RKNN toolkit needs Python 3.11 or 3.12, and neither is here (Debian package python3.11)'
}

python=$(find_python)
# A venv made by the Python of a venv would lead into that one: take what both stand on.
base=$(env -u PYTHONPATH -u PYTHONHOME "$python" -c 'import sys; print(sys._base_executable)')
stamp=$({
  printf '%s\n' "$HEQIS_ROOT" "$("$base" -V)"
  cat "$PINS"
} | sha256sum | cut -d ' ' -f 1)
if [[ $(cat "$RKNN_VENV/heqis-stamp" 2> /dev/null) == "$stamp" ]]; then
  exit
fi

"$base" -c 'import ensurepip, venv' 2> /dev/null || die "$("$base" -V) lacks its venv module (Debian package python3-venv)"
say "RKNN toolkit in .venv-rknn ($("$base" -V))"
started=$SECONDS
rm -rf "$RKNN_VENV"
unset PYTHONPATH PYTHONHOME
"$base" -m venv "$RKNN_VENV"
"$RKNN_VENV/bin/python" -m pip install --disable-pip-version-check --no-compile --quiet --no-deps -r "$PINS"
# What cannot even be imported must not look as if it were there.
"$RKNN_VENV/bin/python" src/heqis_training/heqis_training/convert/rknn_worker.py --version
printf '%s\n' "$stamp" > "$RKNN_VENV/heqis-stamp"
say "the RKNN toolkit is in place ($((SECONDS - started)) s)"
