# SPDX-License-Identifier: Apache-2.0
"""The fault bench: real graphs, real faults, and what came of each."""
