# SPDX-License-Identifier: Apache-2.0
"""The control path: watchdog policy, supervisor, agents of the boards, risk gate and journal."""
