# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
# Put the workspace into this shell:  . scripts/env.sh   (bash). Safe to source again.
# Afterwards `heqis`, `python` and the nodes' executables are those of the workspace.

# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

heqis_env() {
  if [[ ! -x $VENV/bin/python || ! -r $VENV/heqis-base ]]; then
    printf 'heqis: there is no environment in %s yet: run make setup\n' "$VENV" >&2
    return 1
  fi
  local built_with
  built_with=$(sed -n 's/^ros=//p' "$VENV/heqis-base")
  if [[ $built_with == wheels ]]; then
    # Nothing of another environment may shine through: its packages were built for another Python or ROS 2.
    unset PYTHONPATH PYTHONHOME COLCON_PREFIX_PATH ROS_DISTRO
    AMENT_PREFIX_PATH=$VENV
    CMAKE_PREFIX_PATH=$VENV
    export AMENT_PREFIX_PATH CMAKE_PREFIX_PATH
    # The wheels would start each Python a second time to set these; set here, each starts once.
    local library_path=$VENV/lib folder
    for folder in "$VENV"/lib/python3*/site-packages/ros_*.libs; do
      [[ -d $folder ]] && library_path=$library_path:$folder
    done
    export LD_LIBRARY_PATH=$library_path _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
  elif [[ $(ros_in_use) == wheels ]]; then
    printf 'heqis: this workspace was built with ROS 2 %s of this machine; source its setup.bash first, or run make setup to build with the ROS 2 wheels\n' \
      "$built_with" >&2
    return 1
  fi

  # The scripts sourced here read variables that may not be set.
  local nounset=${-//[^u]/}
  set +u
  # shellcheck source=/dev/null
  . "$VENV/bin/activate"
  if [[ -r $HEQIS_ROOT/install/local_setup.bash ]]; then
    # shellcheck source=/dev/null
    . "$HEQIS_ROOT/install/local_setup.bash"
  fi
  [[ -z $nounset ]] || set -u
  PATH=$HEQIS_ROOT/install/heqis_bringup/lib/heqis_bringup:$PATH

  # DDS stays on this machine unless the caller says otherwise. It takes UDP: shared memory leads to nowhere for a while
  # after a kill, and the profile keeps it out where the variable for that has no effect.
  export PATH
  export ROS_AUTOMATIC_DISCOVERY_RANGE=${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}
  export FASTDDS_BUILTIN_TRANSPORTS=${FASTDDS_BUILTIN_TRANSPORTS:-UDPv4}
  export FASTRTPS_DEFAULT_PROFILES_FILE=${FASTRTPS_DEFAULT_PROFILES_FILE:-$HEQIS_ROOT/config/fastdds.xml}
}

heqis_env
