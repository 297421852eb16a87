#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make demo`: hand the variables that are set to `heqis demo`, and become it, so that signals reach it.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"

arguments=()
for option in DATA DURATION TRANSPORT BUNDLE REPORT SYMBOLS PACE SEED EPOCHS LIMIT RUN_DIR; do
  if [[ -n ${!option:-} ]]; then
    flag=${option,,}
    arguments+=("--${flag//_/-}" "${!option}")
  fi
done
# shellcheck disable=SC2206  # ARGS holds several words
arguments+=(${ARGS:-})
exec heqis demo ${arguments[@]+"${arguments[@]}"}
