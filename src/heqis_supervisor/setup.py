# SPDX-License-Identifier: Apache-2.0
"""Install heqis_supervisor with colcon or pip."""

from setuptools import find_packages, setup

PACKAGE = 'heqis_supervisor'

setup(
    name=PACKAGE,
    version='0.1.0',
    description='The control path of HEQIS: watchdog, supervisor, agents, risk gate and journal',
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
    install_requires=[
        'heqis_core',
        'heqis_ros',
        'msgspec>=0.18.6',
        'numpy>=1.26',
        'PyYAML>=5.4',
        'pyzmq>=25',
    ],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'agent = heqis_supervisor.agent_node:main',
            'journal = heqis_supervisor.journal_node:main',
            'supervisor = heqis_supervisor.supervisor_node:main',
        ],
    },
)
