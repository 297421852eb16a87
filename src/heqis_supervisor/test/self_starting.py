# SPDX-License-Identifier: Apache-2.0
"""The journal process without a supervisor: its nodes bring themselves up."""

from __future__ import annotations

import sys

from heqis_supervisor import journal_node

journal_node.RiskGateNode.AUTOSTART = True
journal_node.JournalNode.AUTOSTART = True

if __name__ == '__main__':
    sys.exit(journal_node.main())
