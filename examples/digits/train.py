# SPDX-License-Identifier: Apache-2.0
"""Train the digits network in plain numpy and write `digits.onnx` beside this script.

    python examples/digits/train.py

Digits of 8 x 8 pixels, a 64-256-256-10 network with Relu. Fine-tuning under fixed masks is

    weights, biases = from_onnx(path)
    masks = [bank_mask(w, bank_size, keep) for w in weights]
    train(weights, biases, x, y, masks, epochs=10)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from onnx import ModelProto

Float = NDArray[np.float32]
Labels = NDArray[np.int64]

SIZES = (64, 256, 256, 10)
MODEL = Path(__file__).with_name("digits.onnx")


def load_data() -> tuple[Float, Labels, Float, Labels]:
    """Pixels 0 to 1 as (N, 64) and labels (N,): 1,437 digits to train on, 360 to test on."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    x = (digits.data[order] / 16.0).astype(np.float32)
    y = digits.target[order].astype(np.int64)
    return x[360:], y[360:], x[:360], y[:360]


def new_network(seed: int = 0) -> tuple[list[Float], list[Float]]:
    """Random weights (M, K) and zero biases (M,) for every layer."""
    rng = np.random.default_rng(seed)
    shapes = list(zip(SIZES[1:], SIZES[:-1], strict=True))
    weights = [rng.normal(0, np.sqrt(2 / k), (m, k)).astype(np.float32) for m, k in shapes]
    return weights, [np.zeros(m, np.float32) for m, _ in shapes]


def forward(weights: list[Float], biases: list[Float], x: Float) -> list[Float]:
    """The input and every layer's output."""
    tensors = [x]
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        sums = tensors[-1] @ w.T + b
        tensors.append(sums if i == len(weights) - 1 else np.maximum(sums, 0))
    return tensors


def accuracy(weights: list[Float], biases: list[Float], x: Float, y: Labels) -> float:
    return float(np.mean(forward(weights, biases, x)[-1].argmax(axis=1) == y))


def train(
    weights: list[Float],
    biases: list[Float],
    x: Float,
    y: Labels,
    masks: list[NDArray[np.bool_]] | None = None,
    epochs: int = 30,
    seed: int = 0,
) -> tuple[list[Float], list[Float]]:
    """Adam on softmax cross-entropy; returns new weights and biases, zero where a mask is."""
    rng = np.random.default_rng(seed)
    layers = len(weights)
    parameters = [w.copy() for w in weights] + [b.copy() for b in biases]
    if masks:
        parameters[:layers] = [w * m for w, m in zip(weights, masks, strict=True)]
    mean = [np.zeros_like(p) for p in parameters]
    square = [np.zeros_like(p) for p in parameters]
    step = 0
    for _ in range(epochs):
        for batch in np.array_split(rng.permutation(len(x)), max(1, len(x) // 64)):
            step += 1
            gradients = _gradients(parameters[:layers], parameters[layers:], x[batch], y[batch])
            for i, gradient in enumerate(gradients):
                if masks and i < layers:
                    gradient = gradient * masks[i]
                mean[i] += 0.1 * (gradient - mean[i])
                square[i] += 0.001 * (gradient**2 - square[i])
                corrected = np.sqrt(square[i] / (1 - 0.999**step)) + 1e-8
                parameters[i] -= 1e-3 * mean[i] / (1 - 0.9**step) / corrected
    return parameters[:layers], parameters[layers:]


def _gradients(weights: list[Float], biases: list[Float], x: Float, y: Labels) -> list[Float]:
    tensors = forward(weights, biases, x)
    error = np.exp(tensors[-1] - tensors[-1].max(axis=1, keepdims=True))
    error /= error.sum(axis=1, keepdims=True)
    error[np.arange(len(y)), y] -= 1
    error /= len(y)
    gradients: list[Float] = []
    for i in reversed(range(len(weights))):
        gradients = [error.T @ tensors[i], error.sum(axis=0), *gradients]
        error = (error @ weights[i]) * (tensors[i] > 0)
    return gradients[0::2] + gradients[1::2]


def to_onnx(weights: list[Float], biases: list[Float]) -> ModelProto:
    """Gemm and Relu nodes; any batch."""
    from onnx import parser
    from onnx.numpy_helper import from_array

    body, name, last = "", "pixels", len(weights)
    for i in range(1, last + 1):
        sums = "scores" if i == last else f"sums{i}"
        body += f"{sums} = Gemm <transB = 1> ({name}, w{i}, b{i})\n"
        if i < last:
            name = f"hidden{i}"
            body += f"{name} = Relu({sums})\n"
    model: ModelProto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> digits '
        f"(float[N, {SIZES[0]}] pixels) => (float[N, {SIZES[-1]}] scores) {{ {body} }}"
    )
    for i, (w, b) in enumerate(zip(weights, biases, strict=True), start=1):
        model.graph.initializer.extend([from_array(w, f"w{i}"), from_array(b, f"b{i}")])
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def from_onnx(path: Any = MODEL) -> tuple[list[Float], list[Float]]:
    """Weights and biases of a file that `to_onnx` made."""
    import onnx

    tensors = [onnx.numpy_helper.to_array(t).copy() for t in onnx.load(path).graph.initializer]
    return tensors[0::2], tensors[1::2]


def main() -> None:
    x, y, x_test, y_test = load_data()
    weights, biases = train(*new_network(), x, y)
    MODEL.write_bytes(to_onnx(weights, biases).SerializeToString())
    print(f"{MODEL.name}: {accuracy(weights, biases, x_test, y_test):.1%} of 360 test digits")


if __name__ == "__main__":
    main()
