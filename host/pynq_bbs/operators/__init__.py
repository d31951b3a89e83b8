# SPDX-License-Identifier: Apache-2.0
"""ONNX operators in numpy: what the host runs between the engine's programs, on boards too."""
