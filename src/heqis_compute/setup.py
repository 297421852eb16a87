# SPDX-License-Identifier: Apache-2.0
"""Install heqis_compute with colcon or pip."""

from setuptools import find_packages, setup

PACKAGE = 'heqis_compute'

setup(
    name=PACKAGE,
    version='0.1.0',
    description='The compute board of HEQIS: windows, engine, strategy and decisions',
    license='Apache-2.0',
    maintainer='HEQIS maintainers',
    maintainer_email='maintainers@heqis.example',
    python_requires='>=3.10',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    install_requires=['heqis_core', 'heqis_ros', 'numpy>=1.26'],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'compute = heqis_compute.compute_node:main',
        ],
        'heqis.commands': [
            'engines = heqis_compute.engines.command:register',
        ],
    },
)
