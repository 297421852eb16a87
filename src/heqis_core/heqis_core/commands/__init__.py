# SPDX-License-Identifier: Apache-2.0
"""The `heqis` subcommands that need nothing beyond heqis_core: each module has a `register`."""
