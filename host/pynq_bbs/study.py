# SPDX-License-Identifier: Apache-2.0
"""What a model's own weights lose in each sparsity pattern, without training, and what it saves."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .accelerator import Accelerator
from .bench.measure import Candidate, interleave
from .boards import DEFAULT_BOARD, load_board
from .builds import load_build
from .choices import choose
from .compiler import compile as compile_model
from .compress.activations import batches
from .compress.borders import float_output
from .compress.observe import Calibration
from .compress.patterns import Banks, Blocks, Pattern, mask_of, parse_pattern
from .errors import InputError
from .model.graph import Float, Layer, Model
from .model.onnx_import import load_onnx
from .pack.cycles import RUN_CYCLES, Memory, run_cycles
from .pack.plan import make_plan
from .pack.program import Program

DENSE = "dense"

#: Part of a study's key: other measurements of the same are of another study.
_VERSION = 1

Labels = NDArray[np.int64]


class DoesNotFitError(InputError):
    """A pattern fits none of the layers."""


@dataclass(frozen=True)
class Run:
    """A pattern (`compress.patterns.FORMS`, or "dense") and the share of weights it removes."""

    pattern: str
    sparsity: float


@dataclass(frozen=True)
class Row:
    """What a run gave.

    Attributes:
        pattern, asked: the run.
        sparsity: share of zeros in the layers that are pruned, as masked.
        right: share of samples whose largest output is the label; without labels, is that of the
            dense float model.
        cycles, modelled_ms: of the engine for one sample.
        cpu_ms, dense_cpu_ms: measured on the cpu device for one sample, medians of turns that the
            run and the dense program took one after the other.
        weight_bytes: of weights and indices as packed.
        left_dense: layers that the pattern does not fit, which stay dense in this run.
    """

    pattern: str
    asked: float
    sparsity: float
    right: float
    cycles: float
    modelled_ms: float
    cpu_ms: float
    dense_cpu_ms: float
    weight_bytes: int
    left_dense: str = ""

    @property
    def run(self) -> Run:
        return Run(self.pattern, self.asked)


def runs_of(
    patterns: Sequence[str], sparsities: Sequence[float]
) -> tuple[list[Run], dict[Run, str]]:
    """The runs of all patterns at all sparsities, and why some of them cannot be.

    Raises:
        InputError: an unknown pattern, or a sparsity outside of 0 to 1, both left out.
    """
    runs, impossible = list[Run](), dict[Run, str]()
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise InputError(f"sparsity is {sparsity}, must be more than 0 and less than 1.")
    for pattern in dict.fromkeys(patterns):
        if pattern == DENSE:
            runs.append(Run(DENSE, 0.0))
            continue
        _check_form(pattern)
        for sparsity in dict.fromkeys(sparsities):
            run = Run(pattern, sparsity)
            try:
                parse_pattern(pattern, sparsity)
                runs.append(run)
            except InputError as error:
                impossible[run] = str(error)
    return runs, impossible


class Study:
    """A float model with the data it is judged by. Nothing in it is random."""

    def __init__(
        self,
        model: str | Path,
        calibration: Any,
        inputs: Any = None,
        labels: Any = None,
        *,
        weight_bits: int = 8,
        method: str = "minmax",
        build: str | None = None,
        board: str = DEFAULT_BOARD,
        threads: int = 0,
        seconds: float = 1.0,
    ) -> None:
        """
        Args:
            model: path of a float ONNX file with one output, of one value for each class.
            calibration: (N, *shape), or a dict of such arrays by input name.
            inputs: the samples that runs are judged by, in the same form; None: `calibration`.
            labels: integers (N,), the class of each of the `inputs`; None: what the dense float
                model says of it.
            weight_bits, method, build, board: as for `compile`.
            threads: most threads of the cpu device, 0 for all processors.
            seconds: for which the cpu time of a run is measured.

        Raises:
            ModelError, UnsupportedModelError: the file cannot be read, or is not one program.
            InputError: a model or data other than stated above.
            BuildError: unknown build or board.
        """
        if seconds <= 0:
            raise InputError(f"seconds is {seconds}, must be more than 0.")
        self.board = load_board(board)
        self.build = load_build(build or self.board.build)
        self.model = _classifier(model)
        self.calibration = calibration
        self.inputs = calibration if inputs is None else inputs
        self.samples = sum(len(next(iter(x.values()))) for x in batches(self.model, self.inputs))
        self.labels = None if labels is None else self._checked(labels)
        self._options: dict[str, Any] = {"weight_bits": weight_bits, "method": method}
        self._threads, self._seconds = threads, seconds
        self._bytes = Path(model).read_bytes()

    @cached_property
    def key(self) -> str:
        """A hash of all that a run's results depend on."""
        memory = Memory.of(self.board)
        facts = (_VERSION, self.build, self.board.name, memory, self._options, self._threads)
        found = sha256(repr(facts).encode())
        found.update(self._bytes)
        layers = [la for la in self.model.layers if isinstance(la, Layer)]
        # Weights may lie in files beside the model's.
        arrays: list[Any] = [array for la in layers for array in (la.weights, la.bias)]
        for data in (self.calibration, self.inputs):
            arrays += [data[n] for n in sorted(data)] if isinstance(data, Mapping) else [data]
        for array in (*arrays, *([] if self.labels is None else [self.labels])):
            found.update(f"{array.dtype} {array.shape}".encode())
            found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    @cached_property
    def pruned_layers(self) -> list[str]:
        """The layers that lose weights: those that `compile` prunes by default."""
        chosen = choose(self.model, self.build, sparsity=0.5)
        return [name for name, choice in chosen.items() if choice.sparsity > 0]

    def measure(self, run: Run) -> Row:
        """Mask, quantise, pack and evaluate.

        Raises:
            DoesNotFitError: the pattern fits no layer; the message says why of each.
            InputError, DeviceMemoryError: what `compile` refuses.
        """
        model, sparsity, left = self._masked(run)
        program = self._dense if run.pattern == DENSE else self._compiled(model)
        memory = Memory.of(self.board)
        plan = make_plan(program, 1, memory)
        costs = run_cycles(plan.commands, self.build, memory)
        cycles = float(RUN_CYCLES + plan.runs * sum(cost.total for cost in costs))
        cpu_ms, dense_ms = self._timed(program)
        return Row(
            run.pattern, run.sparsity, sparsity, self._right(program), cycles,
            1e3 * cycles / memory.clock_hz, cpu_ms, dense_ms, program.weight_bytes,
            "; ".join(" ".join(name.split()) for name in left),
        )  # fmt: skip

    @cached_property
    def _dense(self) -> Program:
        return self._compiled(self.model)

    @cached_property
    def _wanted(self) -> Labels:
        """The class of every sample."""
        if self.labels is not None:
            return self.labels
        floats = Calibration(self.model)
        return np.concatenate([_classes(floats.see(x), self.model)
                               for x in batches(self.model, self.inputs)])  # fmt: skip

    def _checked(self, labels: Any) -> Labels:
        given = np.asarray(labels)
        if given.dtype.kind not in "iu" or given.size != self.samples or len(given) != given.size:
            raise InputError(
                f"labels are {given.dtype} {given.shape}, must be integers ({self.samples},): one "
                "for each of the inputs"
            )
        classes = int(np.prod(self.model.outputs[0].shape))
        if given.min() < 0 or given.max() >= classes:
            raise InputError(
                f"labels are {given.min()} to {given.max()}, must be 0 to {classes - 1}: the model "
                f"has {classes} classes"
            )
        return given.reshape(-1).astype(np.int64)

    def _masked(self, run: Run) -> tuple[Model, float, list[str]]:
        """The model with its zeros, their share of the pruned layers' weights, and the layers that
        stay dense because the pattern does not fit them."""
        if run.pattern == DENSE:
            return self.model, 0.0, []
        pattern = parse_pattern(run.pattern, run.sparsity)
        layers, left, removed, total = list[Any](), dict[str, str](), 0, 0
        for layer in self.model.layers:
            if isinstance(layer, Layer) and layer.name in self.pruned_layers:
                total += layer.weights.size
                try:
                    mask = _mask(pattern, layer.weights)
                    removed += int(np.count_nonzero(~mask))
                    layer = replace(layer, weights=np.where(mask, layer.weights, np.float32(0)))
                except InputError as error:
                    left[layer.name] = str(error)
            layers.append(layer)
        if len(left) == len(self.pruned_layers):
            raise DoesNotFitError(
                "fits no layer: " + ("; ".join(f"{n}: {why}" for n, why in left.items()) or "none")
            )
        return replace(self.model, layers=layers), removed / total, list(left)

    def _compiled(self, model: Model) -> Program:
        # The zeros are found, and packed in the banks that cover them.
        program = compile_model(
            model, calibration=self.calibration, build=self.build, board=self.board.name,
            **self._options,
        )  # fmt: skip
        assert isinstance(program, Program)
        return program

    def _right(self, program: Program) -> float:
        with Accelerator(program, "cpu", threads=self._threads) as accelerator:
            parts = [accelerator.run(x) for x in _pieces(self.inputs, accelerator.step)]
        found = np.concatenate([part.reshape(len(part), -1).argmax(axis=1) for part in parts])
        return float(np.mean(found == self._wanted))

    def _timed(self, program: Program) -> tuple[float, float]:
        """Milliseconds of the program and of the dense one."""
        one = next(_pieces(self.inputs, 1))
        with (
            Accelerator(self._dense, "cpu", threads=self._threads) as dense,
            Accelerator(program, "cpu", threads=self._threads) as own,
        ):
            # The dense run is timed against itself, as all others are.
            turns = interleave(
                [
                    Candidate("own", lambda _: own.run(one)),
                    Candidate("dense", lambda _: dense.run(one)),
                ],
                self._seconds,
            )
        return 1e3 * turns["own"].summary().median, 1e3 * turns["dense"].summary().median


def _check_form(pattern: str) -> None:
    """Refuses what is a pattern at no sparsity."""
    if found := re.fullmatch(r"(\d+):(\d+)", pattern):
        keep, size = (int(number) for number in found.groups())
        Banks(size, keep)
    else:
        parse_pattern(pattern, 0.0)


def _classifier(path: str | Path) -> Model:
    model = load_onnx(path)
    if not isinstance(model, Model):
        raise InputError(
            f"model {model.name!r} is quantised already: patterns are chosen by the float weights "
            "that it was made from; give that model"
        )
    if len(model.layers) > sum(isinstance(la, Layer) for la in model.layers) or any(
        spec.steps > 1 for spec in model.inputs
    ):
        raise InputError(
            f"model {model.name!r} works on sequences, which `study` does not take; compare the "
            "accuracy of compiled models instead"
        )
    if len(model.outputs) != 1 or np.prod(model.outputs[0].shape) < 2:
        raise InputError(
            f"model {model.name!r} has the outputs "
            f"{', '.join(f'{o.name} {o.shape}' for o in model.outputs)}; `study` takes classifiers:"
            " one output, of two classes or more"
        )
    return model


def _mask(pattern: Pattern, weights: Float) -> NDArray[np.bool_]:
    """InputError where the pattern does not fit the weights."""
    rows, features = len(weights), weights[0].size
    if isinstance(pattern, Banks) and pattern.size > weights.shape[1]:
        raise InputError(f"its rows of {weights.shape[1]} are shorter than a bank")
    if isinstance(pattern, Blocks) and (pattern.rows > rows or pattern.columns > features):
        raise InputError(f"its weights, {rows} x {features}, are smaller than a block")
    mask = mask_of(pattern, weights)
    if not mask.any():
        raise InputError("nothing would be left of it")
    return mask


def _classes(tensors: Mapping[str, Float], model: Model) -> Labels:
    (output,) = model.outputs
    values = float_output(output, tensors[output.tensor])
    classes: Labels = values.reshape(len(values), -1).argmax(axis=1)
    return classes


def _pieces(x: Any, step: int) -> Iterator[Any]:
    """Samples of an array, or of a dict of arrays, at most `step` at a time."""
    total = len(next(iter(x.values())) if isinstance(x, Mapping) else x)
    for start in range(0, total, step):
        piece = slice(start, start + step)
        yield {n: a[piece] for n, a in x.items()} if isinstance(x, Mapping) else x[piece]
