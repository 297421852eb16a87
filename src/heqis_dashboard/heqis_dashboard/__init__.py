# SPDX-License-Identifier: Apache-2.0
"""The page of a running graph: candles, signals, latencies, health. One Dash node."""
