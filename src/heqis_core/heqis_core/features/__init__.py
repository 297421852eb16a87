# SPDX-License-Identifier: Apache-2.0
"""Indicators: which there are (`spec`), their arithmetic (`kernels`), their state (`state`)."""
