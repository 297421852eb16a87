#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make picture`: docs/page.png, the picture of the README, taken by the browser test of a whole graph.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"
HEQIS_PICTURE=$HEQIS_ROOT/docs/page.png python -m pytest -q src/heqis_bringup/test/test_page.py
say "docs/page.png is taken"
