#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build with colcon the packages whose build inputs changed since their last build. Python modules are linked,
# not copied, so an edit needs no build. --all builds every package.
set -euo pipefail
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$HEQIS_ROOT"

STAMPS=build/.stamps

# Print one hash over what the build of a package reads.
inputs_hash() {
  {
    cat "$VENV/heqis-base" requirements/{ros,build}.txt colcon.meta colcon_defaults.yaml
    find "src/$1" -name __pycache__ -prune -o -type f \( -name package.xml -o -name setup.py -o -name setup.cfg \
      -o -name CMakeLists.txt -o -name '*.msg' -o -name '*.srv' -o -path '*/resource/*' \) -print0 |
      sort -z | xargs -0 sha256sum
    # launch/ and config/ are linked too: only which files there are matters.
    [[ $1 != heqis_bringup ]] || find launch config -type f 2> /dev/null | sort
  } | sha256sum | cut -d ' ' -f 1
}

changed=()
declare -A hash
for manifest in src/*/package.xml; do
  package=$(basename "$(dirname "$manifest")")
  hash[$package]=$(inputs_hash "$package")
  if [[ ${1:-} == --all || ! -d install/$package || $(cat "$STAMPS/$package" 2> /dev/null) != "${hash[$package]}" ]]; then
    changed+=("$package")
  fi
done
((${#changed[@]})) || exit 0

started=$SECONDS
say "colcon build: ${changed[*]}"
# A stamp is taken away first: an interrupted build must not pass for a finished one.
mkdir -p "$STAMPS"
for package in "${changed[@]}"; do rm -f "$STAMPS/$package"; done
workspace_colcon build --packages-select "${changed[@]}" \
  --cmake-args "-DPython3_EXECUTABLE=$VIRTUAL_ENV/bin/python" --no-warn-unused-cli
for package in "${changed[@]}"; do echo "${hash[$package]}" > "$STAMPS/$package"; done
say "the workspace is built ($((SECONDS - started)) s)"
