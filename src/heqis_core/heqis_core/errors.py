# SPDX-License-Identifier: Apache-2.0
"""The errors of HEQIS: one family, so that a node or a command catches exactly what it can answer.

Each message says what was wrong (file, line, field, value, what was expected) and what to do next.
"""


class HeqisError(Exception):
    """Root of every error that HEQIS raises on purpose."""


class ConfigError(HeqisError):
    """A parameter, launch or rule file holds something that cannot be used."""


class DataError(HeqisError):
    """A data file or feed is no market data at all (a bad row is counted, not raised)."""


class BundleError(HeqisError):
    """A model bundle is incomplete, altered, or does not fit what it is asked to run on."""


class EngineError(HeqisError):
    """An inference engine cannot load or run a model."""


class WireError(HeqisError):
    """Bytes from the link are not a message that this version understands."""


class LinkError(HeqisError):
    """A socket of the link cannot be opened or used."""


class ResetError(HeqisError):
    """A board cannot be reset in hardware, or the line that resets it cannot be let go."""


class JournalError(HeqisError):
    """The decision journal cannot be opened, read or written."""
