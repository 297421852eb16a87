# SPDX-License-Identifier: Apache-2.0
"""Features: `kinds`, a `spec` of them, their arithmetic (`kernels`, `cross`), their `state`."""
