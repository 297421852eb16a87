#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make docs`: write the parts of docs/ that are generated from the code.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"
exec python scripts/parameter_docs.py "$@"
