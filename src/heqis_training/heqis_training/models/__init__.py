# SPDX-License-Identifier: Apache-2.0
"""The networks: one module each. How they are trained and exported lives beside this package."""
