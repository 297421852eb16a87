# SPDX-License-Identifier: Apache-2.0
"""What runs the factor encoder on the gateway board, and how it is chosen."""
