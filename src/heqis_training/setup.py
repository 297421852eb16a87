# SPDX-License-Identifier: Apache-2.0
"""Install heqis_training with colcon or pip."""

from setuptools import find_packages, setup

PACKAGE = 'heqis_training'

setup(
    name=PACKAGE,
    version='0.1.0',
    description='The workstation of HEQIS: data sets, models, training and bundles',
    license='Apache-2.0',
    maintainer='HEQIS maintainers',
    maintainer_email='maintainers@heqis.example',
    python_requires='>=3.11',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={PACKAGE: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
    ],
    install_requires=[
        'heqis_core[files,onnx,tushare]',
        'filelock>=3.12',
        'matplotlib>=3.8',
        'msgspec>=0.18',
        'numpy>=1.26',
        'onnx>=1.16',
        'pyyaml>=6',
        'rich>=13',
        'safetensors>=0.4',
        'scikit-learn>=1.4',
        'tensorboard>=2.15',
        'threadpoolctl>=3.1',
        'torch>=2.4',
    ],
    extras_require={'test': ['pytest']},
    zip_safe=False,
    entry_points={
        'heqis.commands': [
            'convert = heqis_training.commands.convert:register',
            'evaluate = heqis_training.commands.evaluate:register',
            'export = heqis_training.commands.export:register',
            'fetch = heqis_training.fetch:register',
            'train = heqis_training.commands.train:register',
        ],
    },
)
