# SPDX-License-Identifier: Apache-2.0
"""The cpu device's integers are those of the formula, in numpy and in 64 bits."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pynq_bbs import toolchain
from pynq_bbs.cpu import linear as cpu
from pynq_bbs.cpu.linear import LinearOp, linear
from pynq_bbs.errors import InputError, ToolchainError

Result = tuple[NDArray[np.int8] | None, NDArray[np.int32] | None]


def oracle(op: LinearOp, x: NDArray[np.int8]) -> Result:
    """(y, sums) of `op`, by numpy alone: 64-bit sums, one float32 multiply, rint."""
    weights = np.zeros((op.rows, x.shape[1]), np.int64)
    if op.columns is None:
        weights[:] = op.values
    else:
        np.add.at(weights, (np.arange(op.rows)[:, None], op.columns), op.values)
    sums = x.astype(np.int64) @ weights.T + op.bias
    assert np.abs(sums).max(initial=0) < 2**31
    if op.multiplier is None:
        return None, sums.astype(np.int32)
    with np.errstate(over="ignore"):
        scaled = np.rint(sums.astype(np.float32) * op.multiplier)
    q = np.clip(scaled.astype(np.float64) + op.zero_point, -128, 127).astype(np.int64)
    y = q if op.table is None else op.table[q + 128]
    return y.astype(np.int8), sums.astype(np.int32)


def check(op: LinearOp, x: NDArray[np.int8], threads: int = 1) -> None:
    want_y, want_sums = oracle(op, x)
    y, sums = linear(op, x, threads=threads, want_sums=True)
    np.testing.assert_array_equal(sums, want_sums)
    assert sums is not None and sums.dtype == np.int32
    if op.multiplier is None:
        assert y is None
        return
    np.testing.assert_array_equal(y, want_y)
    assert y is not None and y.dtype == np.int8
    alone, none = linear(op, x, threads=threads)
    np.testing.assert_array_equal(alone, want_y)
    assert none is None


#: how multipliers are drawn: around the useful scale, powers of two (whose products tie), extremes
SCALES = ("useful", "ties", "tiny", "huge", "negative")


def multipliers(scale: str, rows: int, keeps: int, rng: np.random.Generator) -> NDArray[np.float32]:
    if scale == "ties":
        return (0.5 ** rng.integers(1, 14, rows)).astype(np.float32)
    if scale == "tiny":
        return (10.0 ** rng.uniform(-45, -8, rows)).astype(np.float32)
    if scale == "huge":
        return (10.0 ** rng.uniform(0, 38.5, rows)).astype(np.float32)
    sign = -1 if scale == "negative" else 1
    useful: NDArray[np.float64] = sign * rng.uniform(0.2, 2.0, rows) / (64 * np.sqrt(max(keeps, 1)))
    return useful.astype(np.float32)


@st.composite
def layers(draw: st.DrawFn) -> tuple[LinearOp, NDArray[np.int8]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    columns = draw(st.sampled_from([0, 1, 2, 3, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 130]))
    rows = draw(st.integers(0, 70))
    features = draw(st.integers(1, 150))
    dense = draw(st.booleans())
    keeps = features if dense else draw(st.integers(0, features))
    lowest = draw(st.sampled_from([-128, -127, -1]))
    values = rng.integers(lowest, 128, (rows, keeps)).astype(np.int8)
    x = rng.integers(-128, 128, (columns, features)).astype(np.int8)
    if draw(st.booleans()):  # all at the far ends, where 16 bits are narrowest
        values = np.where(values < 0, np.int8(lowest), np.int8(127))
        x = np.where(x < 0, np.int8(-128), np.int8(127))
    indices = rng.random((rows, features)).argsort(axis=1)[:, :keeps].astype(np.int32)
    reach = draw(st.sampled_from([0, 1000, 2**31 - 1 - keeps * 128 * 128]))
    scale = draw(st.sampled_from([None, *SCALES]))
    op = LinearOp(
        values,
        None if dense else indices,
        rng.integers(-reach, reach + 1, rows).astype(np.int32),
        None if scale is None else multipliers(scale, rows, keeps, rng),
        0 if scale is None else draw(st.sampled_from([0, 3, -128, 127])),
        rng.integers(-128, 128, 256).astype(np.int8) if scale and draw(st.booleans()) else None,
    )
    return op, x


@settings(max_examples=800, deadline=None)
@given(layers(), st.sampled_from([1, 2, 5]))
def test_random_layers(layer: tuple[LinearOp, NDArray[np.int8]], threads: int) -> None:
    check(*layer, threads=threads)


def large_layer(columns: int, keeps: int = 65) -> tuple[LinearOp, NDArray[np.int8]]:
    """Enough work for several threads, in sizes that no block divides."""
    rng = np.random.default_rng(columns)
    rows, features = 1003, 517
    indices = rng.random((rows, features)).argsort(axis=1)[:, :keeps].astype(np.int32)
    op = LinearOp(
        rng.integers(-128, 128, (rows, keeps)).astype(np.int8),
        indices if keeps < features else None,
        rng.integers(-9999, 9999, rows).astype(np.int32),
        rng.uniform(1e-4, 1e-2, rows).astype(np.float32),
        -7,
    )
    return op, rng.integers(-128, 128, (columns, features)).astype(np.int8)


@pytest.mark.parametrize("columns", [1, 7, 31, 32, 33, 64, 257])
@pytest.mark.parametrize("keeps", [65, 517])
def test_any_number_of_threads_gives_the_same_integers(columns: int, keeps: int) -> None:
    op, x = large_layer(columns, keeps)
    want_y, want_sums = oracle(op, x)
    for threads in (0, 1, 2, 3, 16):
        y, sums = linear(op, x, threads=threads, want_sums=True)
        np.testing.assert_array_equal(sums, want_sums)
        np.testing.assert_array_equal(y, want_y)


def test_every_half_rounds_to_even() -> None:
    bias = np.arange(-300, 301, dtype=np.int32)
    op = LinearOp(np.zeros((601, 0), np.int8), None, bias, np.full(601, 0.5, np.float32))
    for columns in (1, 9):  # a column at a time, and a block
        y, _ = linear(op, np.zeros((columns, 0), np.int8))
        assert y is not None
        wanted = [max(-128, min(127, round(b / 2))) for b in bias.tolist()]
        assert y.tolist() == [wanted] * columns
    assert round(0.5) == 0 and round(1.5) == 2  # Python's round is half to even too


def check_sums(sums: NDArray[np.int32], multiplier: NDArray[np.float32]) -> None:
    """Requantises these very sums, by the column and in a block."""
    op = LinearOp(np.zeros((sums.size, 5), np.int8), None, sums, multiplier, 1)
    for columns in (1, 40):
        check(op, np.zeros((columns, 5), np.int8))


def test_neighbours_of_a_half() -> None:
    half = np.float32(0.5)
    beside = [np.nextafter(half, np.float32(0)), half, np.nextafter(half, np.float32(1))]
    check_sums(np.repeat(np.arange(-9, 10, dtype=np.int32), 3), np.array(beside * 19, np.float32))


def test_sums_and_products_are_rounded_to_float32() -> None:
    rng = np.random.default_rng(5)
    found: list[tuple[NDArray[np.int32], NDArray[np.float32]]] = []
    for _ in range(20):
        sums = rng.integers(-(2**31) + 2**17, 2**31 - 2**17, 500_000).astype(np.int32)
        multiplier = rng.uniform(0, 130 / 2**31, sums.size).astype(np.float32)
        product = sums * multiplier.astype(np.float64)
        right = np.rint(sums.astype(np.float32) * multiplier)
        # the few sums that tell the definition from one that rounds less often
        tell = (np.rint(product) != right) | (np.rint(product.astype(np.float32)) != right)
        found.append((sums[tell], multiplier[tell]))
    sums, multiplier = (np.concatenate(part) for part in zip(*found, strict=True))
    assert sums.size >= 10
    check_sums(sums, multiplier)


@pytest.mark.parametrize("columns", [1, 3, 9, 20, 64])
@pytest.mark.parametrize("sparse", [False, True])
def test_products_of_minus_128_do_not_saturate(columns: int, sparse: bool) -> None:
    indices = np.tile(np.arange(33, dtype=np.int32), (40, 1)) if sparse else None
    op = LinearOp(np.full((40, 33), -128, np.int8), indices, np.zeros(40, np.int32))
    _, sums = linear(op, np.full((columns, 33), -128, np.int8))
    assert sums is not None
    assert (sums == 33 * 128 * 128).all()


def test_columns_may_repeat_and_x_may_have_more_features() -> None:
    columns = np.array([[2, 2, 2], [0, 1, 0]], np.int32)
    op = LinearOp(np.array([[1, 2, 3], [4, 5, 6]], np.int8), columns, np.zeros(2, np.int32))
    assert op.features == 3
    for count in (1, 5):
        check(op, np.arange(count * 4, dtype=np.int8).reshape(count, 4))


def test_strided_arrays_are_read_right() -> None:
    op, x = large_layer(40)
    strided = LinearOp(
        np.asfortranarray(op.values), op.columns, op.bias[::-1], op.multiplier, op.zero_point
    )
    check(strided, x[::-2])
    check(op, np.asfortranarray(x))


def test_an_empty_batch_is_empty() -> None:
    op, x = large_layer(4)
    y, sums = linear(op, x[:0], want_sums=True)
    assert y is not None and y.shape == (0, op.rows)
    assert sums is not None and sums.shape == (0, op.rows)


def test_python_threads_run_at_once() -> None:
    op, x = large_layer(65)
    want, _ = oracle(op, x)
    results: list[Any] = [None] * 4

    def run(i: int) -> None:
        results[i] = linear(op, x, threads=2)[0]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for result in results:
        np.testing.assert_array_equal(result, want)


def processes_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads as Linux does")
def test_threads_stay_and_are_no_more_than_asked_for() -> None:
    op, x = large_layer(257)
    linear(op, x, threads=4)
    before = processes_threads()
    for threads in (2, 4, 3, 4):
        for _ in range(5):
            linear(op, x, threads=threads)
    assert 4 <= processes_threads() == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_has_threads_of_its_own() -> None:
    op, x = large_layer(65)
    want, _ = oracle(op, x)
    np.testing.assert_array_equal(linear(op, x, threads=3)[0], want)
    others = threading.Event()

    def keep_busy() -> None:  # so that some fork finds the pool's lock held
        while not others.is_set():
            linear(op, x, threads=3)

    busy = threading.Thread(target=keep_busy)
    busy.start()
    try:
        for _ in range(5):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # forking beside threads
                child = os.fork()
            if child == 0:
                signal.alarm(20)  # ends a child that hangs
                same = False
                try:
                    same = all(np.array_equal(linear(op, x, threads=3)[0], want) for _ in "ab")
                finally:
                    os._exit(0 if same else 1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        others.set()
        busy.join()
    np.testing.assert_array_equal(linear(op, x, threads=3)[0], want)


@pytest.mark.parametrize("asked", ["3", "2,4", "", "0", "many"])
def test_threads_by_default_are_those_of_openmp(
    asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    processors = cpu._default_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert cpu._default_threads() == {"3": 3, "2,4": 2}.get(asked, processors)


# --- what is refused ---

GOOD: dict[str, Any] = {
    "values": np.ones((2, 3), np.int8),
    "columns": np.array([[0, 1, 2], [3, 4, 5]], np.int32),
    "bias": np.zeros(2, np.int32),
    "multiplier": np.ones(2, np.float32),
    "zero_point": 0,
    "table": np.zeros(256, np.int8),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [[1]]}, "values is a list"),
        ({"values": np.ones((2, 3), np.uint8)}, r"values is uint8 .* wanted int8"),
        ({"values": np.ones(3, np.int8)}, r"shape \(3,\), wanted int8 of shape \(any, any\)"),
        ({"columns": np.zeros((2, 2), np.int32)}, r"columns is .* wanted int32 of shape \(2, 3\)"),
        ({"columns": np.zeros((2, 3), np.int64)}, "columns is int64"),
        ({"columns": np.full((2, 3), -1, np.int32)}, "columns holds -1"),
        ({"bias": np.zeros(3, np.int32)}, r"bias is int32 of shape \(3,\)"),
        ({"bias": np.zeros(2)}, "bias is float64"),
        ({"bias": np.full(2, -(2**31), np.int32)}, "row 0 can reach 2147484032"),
        ({"multiplier": np.ones(2)}, "multiplier is float64"),
        ({"multiplier": np.array([1, np.nan], np.float32)}, "multiplier of row 1 is nan"),
        ({"multiplier": np.array([np.inf, 1], np.float32)}, "multiplier of row 0 is inf"),
        ({"multiplier": None}, "no multiplier"),
        ({"multiplier": None, "table": None, "zero_point": 1}, "no multiplier"),
        ({"zero_point": 128}, "zero_point is 128"),
        ({"zero_point": -129}, "zero_point is -129"),
        ({"table": np.zeros(255, np.int8)}, r"table is int8 of shape \(255,\)"),
        ({"table": np.zeros(256, np.uint8)}, "table is uint8"),
    ],
)
def test_wrong_layers_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LinearOp(**{**GOOD, **change})


def test_rows_that_could_overflow_are_refused_and_those_next_to_them_run() -> None:
    values = np.full((1, 4), -128, np.int8)
    bias = np.array([2**31 - 1 - 4 * 128 * 128], np.int32)
    check(LinearOp(values, None, bias), np.full((9, 4), -128, np.int8))
    with pytest.raises(InputError, match="row 0 can reach 2147483648, more than INT32 holds"):
        LinearOp(values, None, bias + 1)


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((1, 5), np.int8), {}, "x has 5 features, the layer's columns reach up to 5"),
        (np.zeros((1, 6), np.uint8), {}, "x is uint8"),
        (np.zeros(6, np.int8), {}, r"x is int8 of shape \(6,\)"),
        (np.zeros((1, 6), np.int8), {"threads": -1}, "threads is -1"),
    ],
)
def test_wrong_inputs_are_refused(x: NDArray[Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        linear(LinearOp(**GOOD), x, **options)


def test_a_dense_layer_takes_exactly_its_features() -> None:
    op = LinearOp(GOOD["values"], None, GOOD["bias"])
    for features in (2, 4):
        with pytest.raises(InputError, match=f"x has {features} .* dense layer takes 3"):
            linear(op, np.zeros((1, features), np.int8))


def test_a_library_that_does_not_load_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damaged = tmp_path / "cpu.so"
    damaged.write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "shared_library", lambda *a, **k: damaged)
    cpu._library.cache_clear()
    try:
        with pytest.raises(ToolchainError, match=r"cannot load .*cpu\.so"):
            linear(LinearOp(**GOOD), np.zeros((1, 6), np.int8))
    finally:
        cpu._library.cache_clear()


# --- the kernel compiled in other ways, checked by a program of its own ---

SELF_CHECK = r"""
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <thread>
#include <vector>

extern "C" int bbs_cpu_linear(const int8_t*, size_t, size_t, const int8_t*, const int32_t*, size_t,
                              size_t, const int32_t*, const float*, int32_t, const int8_t*, int8_t*,
                              int32_t*, const struct bbs_packed*, int);
extern "C" bbs_packed* bbs_cpu_pack(size_t, const int8_t*, const int32_t*, size_t, size_t);
extern "C" void bbs_cpu_free(bbs_packed*);

static std::mt19937 rng(1);
static int draw(int low, int high) { return int(low + int64_t(rng()) % (int64_t{high} - low + 1)); }

// The heap holds each array exactly, so that a sanitizer sees one element too far.
static bool agrees(size_t n, size_t k, size_t m, size_t keeps, bool dense, bool map, int threads) {
  std::vector<int8_t> x(n * k), w(m * keeps), table(256), y(n * m);
  std::vector<int32_t> columns(m * keeps), bias(m), sums(n * m);
  std::vector<float> multiplier(m);
  const int low = draw(0, 1) ? -128 : 126;
  for (auto& v : x) v = int8_t(low == 126 ? -128 : draw(-128, 127));
  for (auto& v : w) v = int8_t(draw(0, 3) ? draw(-128, 127) : -128);
  for (auto& v : table) v = int8_t(draw(-128, 127));
  for (auto& v : columns) v = draw(0, int(k) - 1);
  for (auto& v : bias) v = draw(0, 1) ? draw(-500, 500) : draw(-2000000000, 2000000000);
  for (auto& v : multiplier) v = draw(0, 5) ? std::ldexp(1.0f, -draw(0, 20)) : 3e38f;
  const int zero_point = draw(-128, 127);
  bbs_packed* packed =
      dense || draw(0, 1) ? nullptr : bbs_cpu_pack(k, w.data(), columns.data(), m, keeps);
  const int failed =
      bbs_cpu_linear(x.data(), n, k, w.data(), dense ? nullptr : columns.data(), m, keeps,
                     bias.data(), multiplier.data(), zero_point, map ? table.data() : nullptr,
                     y.data(), sums.data(), packed, threads);
  bbs_cpu_free(packed);
  if (failed) return false;
  for (size_t c = 0; c < n; ++c) {
    for (size_t r = 0; r < m; ++r) {
      int64_t sum = bias[r];
      for (size_t i = 0; i < keeps; ++i) {
        const size_t feature = dense ? i : size_t(columns[r * keeps + i]);
        sum += int64_t{w[r * keeps + i]} * x[c * k + feature];
      }
      if (sum != sums[c * m + r]) return false;
      const float scaled = std::nearbyint(float(int32_t(sum)) * multiplier[r]);
      const double q = std::fmin(127.0, std::fmax(-128.0, double(scaled) + zero_point));
      if (y[c * m + r] != (map ? table[size_t(q + 128)] : int8_t(q))) return false;
    }
  }
  return true;
}

// Several callers share the threads.
static bool callers_agree() {
  const size_t n = 70, k = 60, m = 300;
  const std::vector<int8_t> x(n * k, -3), w(m * k, 7);
  const std::vector<int32_t> bias(m, 5);
  std::atomic<int> right{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller) {
    callers.emplace_back([&, caller] {
      for (int round = 0; round < 10; ++round) {
        std::vector<int32_t> sums(n * m);
        bbs_cpu_linear(x.data(), n, k, w.data(), nullptr, m, k, bias.data(), nullptr, 0, nullptr,
                       nullptr, sums.data(), nullptr, 1 + (caller + round) % 4);
        right += sums == std::vector<int32_t>(n * m, 5 - 21 * int(k));
      }
    });
  }
  for (auto& caller : callers) caller.join();
  return right == 40;
}

int main() {
  const size_t batches[] = {0, 1, 2, 8, 9, 16, 17, 31, 32, 33, 63, 64, 65, 129};
  int layers = 0;
  for (size_t n : batches) {
    for (int dense = 0; dense < 2; ++dense) {
      for (int round = 0; round < 12; ++round) {
        const size_t k = size_t(draw(1, 150));
        const size_t m = size_t(round == 0 ? 300 : draw(0, 45));
        const size_t keeps = dense ? k : size_t(draw(0, int(k)));
        if (!agrees(n, k, m, keeps, dense, round % 2, draw(1, 3))) {
          std::printf("n %zu k %zu m %zu keeps %zu dense %d differs\n", n, k, m, keeps, dense);
          return 1;
        }
        ++layers;
      }
    }
  }
  std::printf("%d layers agree\n", layers);
  return callers_agree() ? 0 : 1;
}
"""
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}


def compile_self_check(directory: Path, flags: list[str]) -> Path:
    """The program made of SELF_CHECK and the kernel, the latter without a warning."""
    main = directory / "main.cpp"
    main.write_text(SELF_CHECK)
    kernel = Path(cpu.__file__).with_name("linear.cpp")
    program = directory / "self_check"
    base = [*toolchain.find_compiler(), "-std=c++17", "-ffp-contract=off", "-pthread", *flags]
    for source in (kernel, main):
        extra = WARNINGS if source == kernel else []
        command = [*base, *extra, "-c", str(source), "-o", f"{directory / source.stem}.o"]
        subprocess.run(command, check=True, timeout=120)
    objects = [str(directory / "linear.o"), str(directory / "main.o")]
    subprocess.run([*base, *objects, "-o", str(program)], check=True, timeout=120)
    return program


def run_self_check(program: Path) -> None:
    result = subprocess.run(
        [str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout == "336 layers agree\n"


def supported(directory: Path, flags: list[str]) -> bool:
    """Whether the compiler takes these flags and what it makes with them runs here."""
    source, program = directory / "probe.cpp", directory / "probe"
    source.write_text("int main() { return 0; }\n")
    command = [*toolchain.find_compiler(), *flags, str(source), "-o", str(program)]
    if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode != 0:
        return False
    return subprocess.run([str(program)], capture_output=True, check=False).returncode == 0


def skip_under_zig() -> None:
    if "ziglang" in toolchain.find_compiler():
        pytest.skip("zig builds its C++ library for every set of options, a minute each")


@pytest.mark.slow
@pytest.mark.parametrize("processor", [[], ["-march=native"]], ids=["any", "this"])
@pytest.mark.parametrize("sanitizer", sorted(SANITIZERS))
def test_sanitizers_find_nothing(sanitizer: str, processor: list[str], tmp_path: Path) -> None:
    flags = [*SANITIZERS[sanitizer], *processor, "-O1", "-g"]
    skip_under_zig()
    if not supported(tmp_path, flags):
        pytest.skip(f"this compiler has no {sanitizer} sanitizer that runs here")
    run_self_check(compile_self_check(tmp_path, flags))


@pytest.mark.parametrize("level", ["x86-64", "x86-64-v3", "x86-64-v4"])
def test_every_register_width_gives_the_same_integers(level: str, tmp_path: Path) -> None:
    if platform.machine().lower() not in ("x86_64", "amd64"):
        pytest.skip("these instruction set levels are those of x86-64")
    skip_under_zig()
    needs = {"x86-64": "sse2", "x86-64-v3": "avx2", "x86-64-v4": "avx512bw"}[level]
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or needs not in cpuinfo.read_text():
        pytest.skip(f"this processor has no {needs}")
    flags = [f"-march={level}", "-O3"]
    if not supported(tmp_path, flags):
        pytest.skip(f"this compiler does not know {level}")
    run_self_check(compile_self_check(tmp_path, flags))
