#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Bring the workspace up to date: .venv with the pinned packages, then the colcon build. Does only what changed.
#   PYTHON=python3.12 scripts/setup.sh                       chooses the interpreter
#   HEQIS_ROLES='build runtime dashboard board-rk3568' scripts/setup.sh   chooses the files of requirements/ (a board)
set -euo pipefail
# shellcheck source=scripts/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$HEQIS_ROOT"

# One set-up at a time in one workspace.
exec 9< Makefile
flock 9

ROS=$(ros_in_use)
read -r -a ROLES <<< "${HEQIS_ROLES:-build runtime training dashboard development}"
if [[ $ROS == wheels ]]; then
  ROLES=(ros "${ROLES[@]}")
fi

# Python 3.10 serves only a machine whose ROS 2 (Humble) brings it.
supported_python() {
  "$1" - "$ROS" <<< 'import sys
newest, oldest = (3, 12), (3, 11) if sys.argv[1] == "wheels" else (3, 10)
sys.exit(not oldest <= sys.version_info[:2] <= newest)' 2> /dev/null
}

find_python() {
  local candidate
  if [[ -n ${PYTHON:-} ]]; then
    supported_python "$PYTHON" || die "PYTHON=$PYTHON is not Python 3.11 or 3.12"
    command -v "$PYTHON"
    return
  fi
  # An installation of ROS 2 works with the machine's own python3 alone.
  local candidates=(python3.11 python3.12 python3)
  [[ $ROS == wheels ]] || candidates=(/usr/bin/python3 python3)
  for candidate in "${candidates[@]}"; do
    if command -v "$candidate" > /dev/null && supported_python "$candidate"; then
      command -v "$candidate"
      return
    fi
  done
  return 1
}

version_at_least() { [[ $(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1) == "$1" ]]; }

# Name everything that is missing at once, each with its Debian package.
check_machine() {
  local missing=() version
  if ! python=$(find_python); then
    missing+=('Python 3.11 or 3.12 (python3.11)')
  else
    "$python" -c 'import ensurepip, venv' 2> /dev/null || missing+=('the venv module of Python (python3-venv)')
    "$python" -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))' ||
      missing+=('the headers of Python, Python.h (python3-dev)')
  fi
  command -v make > /dev/null || missing+=('make (make)')
  if command -v cmake > /dev/null; then
    version=$(cmake --version | sed -n '1s/[^0-9]*//p')
    version_at_least 3.21 "$version" || missing+=("CMake 3.21 or newer, found $version (cmake)")
  else
    missing+=('CMake 3.21 or newer (cmake)')
  fi
  command -v "${CXX:-c++}" > /dev/null || command -v g++ > /dev/null || missing+=('a C++ compiler (g++)')
  if [[ $ROS == wheels && $(uname -m) != x86_64 ]]; then
    missing+=("ROS 2: its wheels exist for x86-64 only, this is $(uname -m); install ROS 2 Jazzy and source its setup.bash (ros-jazzy-ros-base)")
  fi
  if ((${#missing[@]})); then
    {
      echo 'heqis: this machine lacks (Debian package in brackets):'
      printf '  - %s\n' "${missing[@]}"
    } >&2
    exit 1
  fi
}

# What makes a virtual environment another one: where it lies, its ROS 2, its Python.
base_identity() { printf 'root=%s\nros=%s\n' "$HEQIS_ROOT" "$ROS"; }

base_is_current() {
  [[ -x $VENV/bin/python && -r $VENV/heqis-base ]] || return 1
  [[ $(< "$VENV/heqis-base") == "$(base_identity)" ]] || return 1
  [[ -z ${PYTHON:-} ]] || [[ $("$VENV/bin/python" -c 'import sys; print(*sys.version_info[:3])') == \
    $("$PYTHON" -c 'import sys; print(*sys.version_info[:3])') ]]
}

requirements_hash() {
  {
    base_identity
    cd requirements
    cat constraints.txt numpy1.txt "${ROLES[@]/%/.txt}"
  } | sha256sum | cut -d ' ' -f 1
}

create_venv() {
  local options=()
  [[ $ROS == wheels ]] || options=(--system-site-packages)
  say "Python environment in .venv ($("$python" -V), ROS 2: $ROS)"
  # What was built with another environment holds its paths.
  rm -rf "$VENV" build install
  env -u PYTHONPATH -u PYTHONHOME "$python" -m venv ${options[@]+"${options[@]}"} "$VENV"
}

# Copy the pins into .venv; where the ROS 2 of this machine was built with numpy 1.x, with the stand-ins for it.
pins_for_machine() {
  local pins=$VENV/heqis-requirements pin name file
  rm -rf "$pins" && mkdir "$pins"
  cp requirements/*.txt "$pins"
  if [[ $ROS != wheels ]] && "$VENV/bin/python" -c 'import numpy, sys; sys.exit(numpy.__version__ >= "2")' 2> /dev/null; then
    while read -r pin; do
      name=${pin%%==*}
      for file in "$pins"/*.txt; do
        if grep -q "^$name==" "$file" || [[ $file == */constraints.txt ]]; then
          sed -i "/^$name==/d" "$file"
          echo "$pin" >> "$file"
        fi
      done
    done < <(grep '==' requirements/numpy1.txt)
  fi
  printf '%s\n' "$pins"
}

install_requirements() {
  local pins role step=0
  pins=$(pins_for_machine)
  for role in "${ROLES[@]}"; do
    step=$((step + 1))
    say "packages $step/${#ROLES[@]}: $role"
    install_pinned -c "$pins/constraints.txt" -r "$pins/$role.txt"
  done
}

# On a terminal pip draws its progress; elsewhere only the lines that say something new are kept.
install_pinned() {
  local command=("$VENV/bin/python" -m pip install --disable-pip-version-check --no-compile)
  if [[ -t 1 ]]; then
    "${command[@]}" "$@"
  else
    "${command[@]}" "$@" | sed -u '/^Requirement already satisfied/d'
  fi
}

wanted=$(requirements_hash)
if ! base_is_current || [[ $(cat "$VENV/heqis-stamp" 2> /dev/null) != "$wanted" ]]; then
  started=$SECONDS
  check_machine
  base_is_current || create_venv
  base_identity > "$VENV/heqis-base"
  install_requirements
  echo "$wanted" > "$VENV/heqis-stamp"
  say "packages are in place ($((SECONDS - started)) s)"
fi

exec scripts/build.sh
