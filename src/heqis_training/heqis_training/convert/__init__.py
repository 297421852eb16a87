# SPDX-License-Identifier: Apache-2.0
"""From a bundle's canonical ONNX files to what the boards' engines run, each with its gates."""
