# SPDX-License-Identifier: Apache-2.0
"""The `heqis` command and its sub-commands; launch and parameter files are installed from here."""
