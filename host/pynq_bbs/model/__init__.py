# SPDX-License-Identifier: Apache-2.0
"""Station 1: what a model is, and how one is read from an ONNX file."""
