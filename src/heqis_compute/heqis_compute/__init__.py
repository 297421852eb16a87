# SPDX-License-Identifier: Apache-2.0
"""The compute board: windows, inference engine, strategy and the decisions of each frame."""
