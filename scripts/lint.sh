#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The gates, one function each.  lint.sh [GATE ...] runs them (all by default), --list names them,
# --fix formats instead. A gate whose tool is not there says so and exits 77.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"

GATES=(format ruff mypy imports ament shell docker docs config)
SKIPPED=77

need() {
  command -v "$1" > /dev/null && return
  printf 'skipped: %s is not installed (%s)\n' "$1" "$2"
  exit "$SKIPPED"
}

gate_format() { ruff format --check .; }

gate_ruff() { ruff check .; }

gate_mypy() { mypy; }

gate_imports() { lint-imports --no-cache; }

# Where ROS 2 brings its own linters, they must agree with ours.
gate_ament() {
  need ament_pep257 'package ros-jazzy-ament-pep257'
  need ament_flake8 'package ros-jazzy-ament-flake8'
  # Ours: the summary stands on the first line; sections as Google writes them; ruff judges the mood.
  ament_pep257 --add-ignore D213 D401 D405 D406 D407 D410 D411 D413 D415 -- src
  ament_flake8 --config .ci/flake8.ini src
}

gate_shell() {
  need shellcheck 'package shellcheck'
  shellcheck --external-sources scripts/*.sh docker/*.sh .ci/run
}

gate_docker() {
  need hadolint 'requirements/development.txt'
  hadolint docker/Dockerfile.*
}

gate_docs() {
  python -m heqis_ros.param_docs --compare docs/parameters.md
  python -m heqis_supervisor.ladder_docs --compare docs/supervision.md
}

# The shipped parameter files hold nothing that a node would refuse.
gate_config() {
  local files=()
  mapfile -t files < <(grep -rl --include='*.yaml' '^ *ros__parameters:' config | sort)
  python -m heqis_ros.param_docs --check "${files[@]}"
}

case ${1:-} in
  --list)
    printf '%s\n' "${GATES[@]}"
    exit
    ;;
  --fix)
    ruff check --fix . || true
    exec ruff format .
    ;;
esac

chosen=("$@")
((${#chosen[@]})) || chosen=("${GATES[@]}")
if ((${#chosen[@]} == 1)); then
  "gate_${chosen[0]}"
  exit
fi
failed=()
for gate in "${chosen[@]}"; do
  say "$gate"
  status=0
  ("gate_$gate") || status=$?
  ((status == 0 || status == SKIPPED)) || failed+=("$gate")
done
((${#failed[@]} == 0)) || die "failed: ${failed[*]}"
