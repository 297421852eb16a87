# SPDX-License-Identifier: Apache-2.0
"""Hard reset of a board: its rules, when it is due, what is remembered of it, and who does it."""
