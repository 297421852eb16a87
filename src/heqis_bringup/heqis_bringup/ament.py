# SPDX-License-Identifier: Apache-2.0
"""Find packages, share folders and executables in the ament index, as `ros2 run` does."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from heqis_core.errors import ConfigError


def find_prefix(package: str, environ: Mapping[str, str] | None = None) -> Path:
    """Return the install prefix of a ROS package; raise ConfigError if the index lacks it."""
    environ = os.environ if environ is None else environ
    prefixes = [path for path in environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if path]
    for prefix in prefixes:
        if Path(prefix, 'share/ament_index/resource_index/packages', package).exists():
            return Path(prefix)
    if not prefixes:
        raise ConfigError(
            f'package {package!r} cannot be looked up, AMENT_PREFIX_PATH is empty; '
            'build the workspace and source install/setup.bash'
        )
    raise ConfigError(
        f'package {package!r} is in none of the {len(prefixes)} prefixes of AMENT_PREFIX_PATH; '
        'build it with colcon and source install/setup.bash again'
    )


def find_share(package: str, environ: Mapping[str, str] | None = None) -> Path:
    """Return the share folder of a ROS package; raise ConfigError if the package is not there."""
    return find_prefix(package, environ) / 'share' / package


def find_executable(
    package: str, executable: str, environ: Mapping[str, str] | None = None
) -> Path:
    """Return `<prefix>/lib/<package>/<executable>`; raise ConfigError if there is none."""
    folder = find_prefix(package, environ) / 'lib' / package
    path = folder / executable
    if path.is_file() and os.access(path, os.X_OK):
        return path
    programs = sorted(item.name for item in folder.iterdir()) if folder.is_dir() else []
    known = ', '.join(programs) or 'none'
    raise ConfigError(
        f'package {package!r} has no executable {executable!r}; {folder} has {known}'
    )
