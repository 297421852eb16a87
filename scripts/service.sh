#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Run a command in the environment of the workspace, as a service does:  service.sh heqis up --runner gateway
# The machine's ROS 2 comes first where there is one (HEQIS_ROS_SETUP names another file). The command takes the place
# of this shell, so that signals reach it and systemd hears it.
set -e
setup=${HEQIS_ROS_SETUP:-/opt/ros/jazzy/setup.bash}
if [[ -r $setup ]]; then
  # shellcheck source=/dev/null
  . "$setup"
fi
# shellcheck source=scripts/env.sh
. "$(dirname "${BASH_SOURCE[0]}")/env.sh"
exec "$@"
