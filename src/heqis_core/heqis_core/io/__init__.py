# SPDX-License-Identifier: Apache-2.0
"""What touches the world (files, sockets, engines): one module each, imported when used."""
