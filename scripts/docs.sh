#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make docs`: write the parts of docs/ that are generated from the code.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"
mkdir -p docs
python -m heqis_ros.param_docs --write docs/parameters.md
say "docs/parameters.md is written"
python -m heqis_supervisor.ladder_docs --write docs/supervision.md
say "the ladder in docs/supervision.md is written"
