# SPDX-License-Identifier: Apache-2.0
"""The workstation: data sets, models, training and the export of bundles. No ROS."""
