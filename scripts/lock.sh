#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Write requirements/constraints.txt: the exact version of every package that the role files bring with them,
# for Python 3.10 (boards with Humble) to 3.12, on x86-64 and aarch64. Needs uv (pip install uv).
#   lock.sh                          keeps the pins that are there, as far as the role files allow
#   lock.sh --upgrade                takes the newest version of everything
#   lock.sh --upgrade-package NAME   of one package
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v uv >/dev/null || { echo 'lock.sh: uv is missing; get it with: pip install uv' >&2; exit 2; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat requirements/{runtime,ros,build,development,dashboard,board-rk3568,board-jetson}.txt > "$work/all.in"
# torch itself stays out: its default build would drag the names of the CUDA packages in. What remains are
# the packages that any build of it needs.
grep -v '^torch==' requirements/training.txt >> "$work/all.in"
printf '%s\n' filelock fsspec jinja2 networkx sympy typing-extensions >> "$work/all.in"

# uv prefers the versions that its output file already names.
grep -v '^torch==' requirements/constraints.txt > "$work/pins"
uv pip compile --quiet --universal --python-version 3.10 --no-header --no-annotate \
  --output-file "$work/pins" "$@" "$work/all.in"

{
  echo '# Every package that the role files bring with them, pinned. Written by scripts/lock.sh; do not edit.'
  grep '^torch==' requirements/training.txt
  cat "$work/pins"
} > requirements/constraints.txt
echo "requirements/constraints.txt: $(grep -c '==' requirements/constraints.txt) pins"
