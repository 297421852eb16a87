# SPDX-License-Identifier: Apache-2.0
"""What a bar, a feature, a frame, a link, a bundle and a signal are. No ROS, no torch."""
