#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# ROS 2, then the workspace where it is built, then the command itself, so that signals reach it.
set -e
# shellcheck source=/dev/null
. /opt/ros/jazzy/setup.bash
if [[ -r scripts/env.sh && -r .venv/heqis-base ]]; then
  # shellcheck source=scripts/env.sh
  . scripts/env.sh
fi
exec "$@"
