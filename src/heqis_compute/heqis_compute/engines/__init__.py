# SPDX-License-Identifier: Apache-2.0
"""Engines of the compute board beside ONNX Runtime: TensorRT, the CUDA under it, the probe."""
