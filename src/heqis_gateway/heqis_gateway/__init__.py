# SPDX-License-Identifier: Apache-2.0
"""The data path of the gateway board: sources, features, factor encoder, ring and bridge."""
