# SPDX-License-Identifier: Apache-2.0
"""Install heqis_dashboard with colcon or pip."""

from setuptools import find_packages, setup

PACKAGE = 'heqis_dashboard'

setup(
    name=PACKAGE,
    version='0.1.0',
    description='The page of HEQIS: candles, signals, latencies and health of a running graph',
    license='Apache-2.0',
    maintainer='HEQIS maintainers',
    maintainer_email='maintainers@heqis.example',
    python_requires='>=3.10',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed', 'assets/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    install_requires=[
        'dash>=4.4,<5',
        'fastapi',
        'heqis_core',
        'heqis_ros',
        'numpy>=1.26',
        'plotly',
        'starlette',
        'uvicorn',
        'websockets',
    ],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'dashboard = heqis_dashboard.dashboard_node:main',
        ],
    },
)
