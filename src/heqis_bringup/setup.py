# SPDX-License-Identifier: Apache-2.0
"""Install heqis_bringup with colcon or pip."""

import os
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'heqis_bringup'
# In a symlinked build this file is a link in the build folder: resolve() finds the source again.
ROOT = Path(__file__).resolve().parents[2]


def files_of(folder: str) -> list[tuple[str, list[str]]]:
    """Return the data files of a folder of the workspace, relative to the current folder."""
    grouped: dict[str, list[str]] = {}
    for file in sorted(ROOT.joinpath(folder).rglob('*')):
        if file.is_file():
            target = f'share/{PACKAGE}/{file.parent.relative_to(ROOT)}'
            grouped.setdefault(target, []).append(os.path.relpath(file))
    return list(grouped.items())


setup(
    name=PACKAGE,
    version='0.1.0',
    description='Launch files, parameter files and the heqis command',
    license='Apache-2.0',
    maintainer='HEQIS maintainers',
    maintainer_email='maintainers@heqis.example',
    python_requires='>=3.10',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        *files_of('config'),
        *files_of('launch'),
        *files_of('systemd'),
    ],
    install_requires=[
        'heqis_core',
        'msgspec>=0.18.6',
        'numpy>=1.26',
        'psutil>=5.9',
        'PyYAML>=5.4',
        'pyzmq>=26.4',
        'rich>=13',
    ],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'heqis = heqis_bringup.cli:main',
        ],
        'heqis.commands': [
            'batch = heqis_bringup.batch:register',
            'chaos = heqis_bringup.chaos.command:register',
            'demo = heqis_bringup.demo:register',
            'doctor = heqis_bringup.doctor:register',
            'keys = heqis_bringup.keys:register',
            'kill-switch = heqis_bringup.kill_switch:register',
            'up = heqis_bringup.up:register',
        ],
        'heqis.bundle': [
            'swap = heqis_bringup.bundle_swap:register',
        ],
    },
)
