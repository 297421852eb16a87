#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make bench NAME=transport JSON=file.json ARGS="--quick"`: one program of benchmarks/; without NAME all of them (over an
# hour: forecast and t3vae train models), and JSON is an array.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"

programs() { find benchmarks -maxdepth 1 -name '[a-z]*.py' -printf '%f\n' 2> /dev/null | sed 's/\.py$//' | sort; }

if [[ -n ${NAME:-} ]]; then
  if [[ ! -r benchmarks/$NAME.py ]]; then
    die "there is no benchmark named $NAME; there is: $(programs | paste -sd ' ')"
  fi
  # shellcheck disable=SC2086  # ARGS holds several words
  exec python "benchmarks/$NAME.py" ${JSON:+--json "$JSON"} ${ARGS:-}
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
status=0
for name in $(programs); do
  say "$name"
  python "benchmarks/$name.py" --json "$work/$name.json" || status=$?
done
if [[ -n ${JSON:-} ]]; then
  python - "$JSON" "$work" <<< 'import json, pathlib, sys
results = [json.loads(file.read_text()) for file in sorted(pathlib.Path(sys.argv[2]).glob("*.json"))]
pathlib.Path(sys.argv[1]).write_text(json.dumps(results, indent=2) + "\n")'
fi
exit "$status"
