# SPDX-License-Identifier: Apache-2.0
"""The subcommands of `heqis` that a workstation adds: one module each."""
