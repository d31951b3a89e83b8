# SPDX-License-Identifier: Apache-2.0
"""The cpu device's arithmetic: a linear layer in integers, by a kernel of its own.

`linear.cpp` shares no source with the engine, so that comparing the two means something. It is
compiled at the first use, for the processor that it runs on. A sparse layer's weights are packed
for that processor when the layer first runs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import cffi
import numpy as np
from numpy.typing import NDArray

from ..errors import InputError, ToolchainError
from ..toolchain import shared_library

_DECLARATION = """
typedef struct bbs_packed bbs_packed;
bbs_packed *bbs_cpu_pack(size_t features, const int8_t *weights, const int32_t *indices,
                         size_t rows, size_t keeps);
void bbs_cpu_free(bbs_packed *packed);
int bbs_cpu_linear(const int8_t *x, size_t columns, size_t features, const int8_t *weights,
                   const int32_t *indices, size_t rows, size_t keeps, const int32_t *bias,
                   const float *multiplier, int32_t zero_point, const int8_t *table, int8_t *y,
                   int32_t *sums, const bbs_packed *packed, int threads);
"""


@dataclass(frozen=True, eq=False)
class LinearOp:
    """`y = table[saturate(round_half_even(float32(sums) * multiplier) + zero_point) + 128]`,
    where `sums = bias + weights @ x` and `weights` has `values[m, i]` at `[m, columns[m, i]]`.

    The arrays are kept as they are (copied only where they are not contiguous); do not change
    them afterwards.

    Raises:
        InputError: an array of the wrong shape or dtype, a negative column, a multiplier that is
            not finite, a zero point outside -128..127, a table or zero point without a multiplier,
            or a row whose sums could overflow INT32.
    """

    values: NDArray[np.int8]  #: (M, nonzeros of a row)
    columns: NDArray[np.int32] | None  #: same shape: the feature of each value; None: dense
    bias: NDArray[np.int32]  #: (M,), with the input's zero point folded in
    multiplier: NDArray[np.float32] | None = None  #: (M,); None: there are only sums
    zero_point: int = 0
    table: NDArray[np.int8] | None = None  #: (256,), entry q + 128 for q

    #: features that `x` must have: exactly these if dense, else at least these
    features: int = field(init=False)

    def __post_init__(self) -> None:
        values = _checked("values", self.values, np.int8, (None, None))
        rows = values.shape[0]
        bias = _checked("bias", self.bias, np.int32, (rows,))
        self._keep(values=values, bias=bias)
        if self.columns is not None:
            self._keep(columns=_checked("columns", self.columns, np.int32, values.shape))
        if self.multiplier is not None:
            self._keep(multiplier=_checked("multiplier", self.multiplier, np.float32, (rows,)))
        if self.table is not None:
            self._keep(table=_checked("table", self.table, np.int8, (256,)))
        _check_requantisation(self)
        _check_sums(values, bias)
        self._keep(features=_features_used(self))

    def _keep(self, **fields: object) -> None:
        """Sets fields, which a frozen dataclass allows to itself only."""
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    @property
    def rows(self) -> int:
        """M, output features."""
        return int(self.values.shape[0])

    @cached_property
    def packed(self) -> Any:
        """The weights for the kernel of this processor, a null pointer where there is none."""
        ffi, library = _library()
        if self.columns is None:
            return ffi.NULL
        values = ffi.from_buffer("int8_t[]", self.values)
        columns = ffi.from_buffer("int32_t[]", self.columns)
        packed = library.bbs_cpu_pack(self.features, values, columns, *self.values.shape)
        return ffi.gc(packed, library.bbs_cpu_free) if packed else packed

    def check_features(self, features: int) -> None:
        """Raises InputError unless columns of `features` values fit this layer."""
        if self.columns is None and features != self.features:
            raise InputError(
                f"x has {features} features, this dense layer takes {self.features}. "
                "Hand in x as (samples, features)."
            )
        if features < self.features:
            raise InputError(
                f"x has {features} features, the layer's columns reach up to {self.features - 1}. "
                "Hand in x as (samples, features), or correct the columns."
            )


def linear(
    op: LinearOp, x: NDArray[np.int8], *, threads: int = 0, want_sums: bool = False
) -> tuple[NDArray[np.int8] | None, NDArray[np.int32] | None]:
    """Run `op` on `x`, (N, K) INT8, any N.

    `threads` is the most threads to use, 0 for what OMP_NUM_THREADS says, or without it for as
    many as this process may run on; the integers are the same with any number. They are started
    once and stay, asleep, until the process ends. The GIL is released while the kernel runs.

    Returns:
        (N, M) INT8, None where `op` has no multiplier, and (N, M) INT32 sums, bias included: None
        unless `want_sums`, or where they are all there is.

    Raises:
        InputError: wrong shape or dtype of `x`, or a negative `threads`.
        ToolchainError: at the first use, if the kernel cannot be compiled.
        MemoryError: no memory for the transposed input.
    """
    x = _checked("x", x, np.int8, (None, None))
    op.check_features(x.shape[1])
    if threads < 0:
        raise InputError(
            f"threads is {threads}. Give the number of threads, or 0 for all processors."
        )
    shape = (x.shape[0], op.rows)
    y = None if op.multiplier is None else np.empty(shape, np.int8)
    sums = np.empty(shape, np.int32) if want_sums or y is None else None
    ffi, library = _library()

    def pointer(array: NDArray[Any] | None, kind: str) -> Any:
        return ffi.NULL if array is None else ffi.from_buffer(kind, array)

    failed = library.bbs_cpu_linear(
        pointer(x, "int8_t[]"),
        *x.shape,
        pointer(op.values, "int8_t[]"),
        pointer(op.columns, "int32_t[]"),
        *op.values.shape,
        pointer(op.bias, "int32_t[]"),
        pointer(op.multiplier, "float[]"),
        op.zero_point,
        pointer(op.table, "int8_t[]"),
        pointer(y, "int8_t[]"),
        pointer(sums, "int32_t[]"),
        op.packed,
        threads or _default_threads(),
    )
    if failed:
        raise MemoryError(f"no memory to transpose columns of {x.shape[1]} features")
    return y, sums


def _checked(
    name: str, array: NDArray[Any], dtype: type[np.generic], shape: tuple[int | None, ...]
) -> NDArray[Any]:
    """`array`, contiguous, if it has this dtype and shape (None: any length)."""
    lengths = ", ".join("any" if n is None else str(n) for n in shape)
    want = f"{np.dtype(dtype).name} of shape ({lengths})"
    if not isinstance(array, np.ndarray):
        raise InputError(f"{name} is a {type(array).__name__}. Hand in a numpy array, {want}.")
    fits = array.ndim == len(shape) and all(
        n is None or n == given for n, given in zip(shape, array.shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        raise InputError(f"{name} is {array.dtype} of shape {array.shape}, wanted {want}.")
    return np.ascontiguousarray(array)


def _check_requantisation(op: LinearOp) -> None:
    if not -128 <= op.zero_point <= 127:
        raise InputError(f"zero_point is {op.zero_point}, wanted -128 to 127.")
    if op.multiplier is None:
        if op.table is not None or op.zero_point != 0:
            raise InputError(
                "there is a table or a zero point, but no multiplier, so sums are all there is. "
                "Give a multiplier, or leave the table and the zero point out."
            )
        return
    bad = np.flatnonzero(~np.isfinite(op.multiplier))
    if bad.size:
        raise InputError(
            f"the multiplier of row {bad[0]} is {op.multiplier[bad[0]]}, wanted a finite number. "
            "Check the scales that it is made of."
        )


def _check_sums(values: NDArray[np.int8], bias: NDArray[np.int32]) -> None:
    """Raises InputError if some input could overflow a row's INT32 sum."""
    limit = 2**31 - 1
    highest = int(np.abs(bias.astype(np.int64)).max(initial=0))
    if highest + values.shape[1] * 128 * 128 <= limit:
        return
    bound = np.abs(values.astype(np.int64)).sum(axis=1) * 128 + np.abs(bias.astype(np.int64))
    bad = np.flatnonzero(bound > limit)
    if bad.size:
        raise InputError(
            f"the sum of row {bad[0]} can reach {bound[bad[0]]}, more than INT32 holds ({limit}). "
            "Use fewer features in a layer, or a smaller bias."
        )


def _features_used(op: LinearOp) -> int:
    """Features that `x` must have: exactly these if `op` is dense, else at least these."""
    if op.columns is None:
        return int(op.values.shape[1])
    lowest = int(op.columns.min(initial=0))
    if lowest < 0:
        raise InputError(f"columns holds {lowest}, wanted indices of features, 0 and up.")
    return int(op.columns.max(initial=-1)) + 1


@cache
def _library() -> tuple[Any, Any]:
    source = Path(__file__).resolve().with_name("linear.cpp")
    names = ("pool", "bytes_avx2", "dense_avx2", "sparse_avx2")
    headers = [source.with_name(f"{name}.hpp") for name in names]
    path = shared_library("cpu", [source], depends=headers, flags=["-pthread"])
    ffi = cffi.FFI()
    ffi.cdef(_DECLARATION)
    try:
        return ffi, ffi.dlopen(str(path))
    except OSError as error:
        raise ToolchainError(
            f"cannot load {path}: {error}. Remove the file to have it built again; if its "
            "directory is on a file system mounted noexec, name another one in BBS_CACHE."
        ) from None


def _default_threads() -> int:
    """What OMP_NUM_THREADS says, else the processors that this process may run on."""
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
