# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Sourced by the other scripts: where things are, which ROS 2 is used, and how a script speaks.

HEQIS_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$HEQIS_ROOT/.venv
export HEQIS_ROOT VENV

say() { printf '== %s\n' "$*"; }

die() {
  printf 'heqis: %s\n' "$*" >&2
  exit 1
}

# Print the name of the ROS 2 that this shell has sourced, or "wheels" when there is none.
# A virtual environment on AMENT_PREFIX_PATH is ours or another workspace's, not an installation.
ros_in_use() {
  local prefix
  if [[ -n ${ROS_DISTRO:-} ]]; then
    printf '%s\n' "$ROS_DISTRO"
    return
  fi
  while IFS= read -r -d : prefix; do
    if [[ -e $prefix/share/ament_index/resource_index/packages/rclpy && ! -e $prefix/pyvenv.cfg ]]; then
      printf 'ros2\n'
      return
    fi
  done <<< "${AMENT_PREFIX_PATH:-}:"
  printf 'wheels\n'
}

# colcon under the environment's Python, so that what it installs starts with that Python too. Its warnings are
# about the environment being a virtual one; COLCON_LOG_LEVEL=warning shows them.
workspace_colcon() {
  COLCON_LOG_LEVEL=${COLCON_LOG_LEVEL:-error} python -c 'import sys; from colcon_core.command import main; sys.exit(main())' "$@"
}
