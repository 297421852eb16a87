#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make test`: colcon test on every package (PACKAGES="a b": on those), then what failed and one closing line.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"

read -r -a packages <<< "${PACKAGES:-}"
selection=()
if ((${#packages[@]})); then
  selection=(--packages-select "${packages[@]}")
fi

# Results of an earlier run must not be counted.
find build -maxdepth 2 -name pytest.xml -delete
rm -rf build/*/test_results

# colcon would keep Python from writing byte code, and every process of every test would compile its imports.
export PYTHONDONTWRITEBYTECODE=
status=0
workspace_colcon test ${selection[@]+"${selection[@]}"} || status=$?
if ((status)); then
  say "colcon test ended with status $status"
fi
exec python scripts/test_summary.py build --status "$status"
