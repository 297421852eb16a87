# SPDX-License-Identifier: Apache-2.0
"""Install heqis_core with colcon or pip."""

from setuptools import find_packages, setup

PACKAGE = 'heqis_core'

setup(
    name=PACKAGE,
    version='0.1.0',
    description='What a bar, a feature, a frame, a link, a bundle and a signal are in HEQIS',
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
    install_requires=['msgspec>=0.18.6', 'numba>=0.61', 'numpy>=1.26'],
    extras_require={
        'files': ['pandas>=2.2', 'pyarrow>=15', 'rich>=13'],
        'link': ['pyzmq>=26.4'],
        'modbus': ['pymodbus>=3.16,<4', 'pyserial>=3.5', 'pyyaml>=6'],
        'onnx': ['onnxruntime>=1.18'],
        'signing': ['cryptography>=3.4'],
        'test': ['pytest'],
        'tushare': ['requests>=2.31', 'six>=1.16', 'tushare>=1.4.21', 'urllib3>=2.1'],
    },
    zip_safe=False,
    entry_points={
        'heqis.commands': [
            'bundle = heqis_core.commands.bundle:register',
            'data = heqis_core.commands.data:register',
            'features = heqis_core.commands.features:register',
            'journal = heqis_core.commands.journal:register',
        ],
    },
)
