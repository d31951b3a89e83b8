// SPDX-License-Identifier: Apache-2.0
// The cpu device's kernel: a sparse or dense INT8 matrix times a batch of columns, in exact
// integers, requantised as the engine does it. Written apart from hls/ and sharing nothing with
// it: the two check each other.
//
// A block of up to 64 columns is transposed once, so that one weight meets a run of neighbouring
// activations. Two products are summed in 16 bits before they are widened. With the weights
// negated that is exact for every INT8 pair: -w lies in -127..128 and x in -128..127, so the sum
// of two products lies in -32768..32512.
//
// That is what all processors get. With AVX2 a sparse layer's weights are packed (sparse_avx2.hpp),
// and a dense layer takes its columns as they lie (dense_avx2.hpp).

#include <algorithm>
#include <atomic>
#include <cfloat>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

#include "pool.hpp"
#if defined(__AVX2__)
#include "bytes_avx2.hpp"
#include "dense_avx2.hpp"
#include "sparse_avx2.hpp"
struct bbs_packed : avx2::Packed {};
#else
struct bbs_packed {};
#endif

// 32-bit x86 without SSE computes in 80 bits, which would round twice.
static_assert(FLT_EVAL_METHOD == 0, "requantisation needs float operations that round to float");

namespace {

struct Layer {
  const int8_t* x;         // [columns][features]
  size_t columns;
  size_t features;
  const int8_t* weights;   // [rows][keeps]
  const int32_t* indices;  // [rows][keeps], the feature of each weight; null: 0, 1, 2...
  size_t rows;
  size_t keeps;
  const int32_t* bias;      // [rows]
  const float* multiplier;  // [rows], or null: no y
  int32_t zero_point;
  const int8_t* table;  // [256], entry q + 128 for the requantised value q
  int8_t* y;            // [columns][rows] or null
  int32_t* sums;        // [columns][rows] or null
  const bbs_packed* packed;  // the weights once more, for a kernel of this processor; or null
};

// Plain loops over arrays of 32 and more columns stay scalar under some compilers, ten times
// slower; vector types do not depend on a compiler's mood. The bytes are those of a register.
#if defined(__AVX512BW__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif

template <int kBytes>
struct Vector;
template <>
struct Vector<16> {
  typedef int16_t Narrow __attribute__((vector_size(16)));
  typedef int32_t Wide __attribute__((vector_size(16)));
  typedef uint32_t Bits __attribute__((vector_size(16)));
};
template <>
struct Vector<32> {
  typedef int16_t Narrow __attribute__((vector_size(32)));
  typedef int32_t Wide __attribute__((vector_size(32)));
  typedef uint32_t Bits __attribute__((vector_size(32)));
};
template <>
struct Vector<64> {
  typedef int16_t Narrow __attribute__((vector_size(64)));
  typedef int32_t Wide __attribute__((vector_size(64)));
  typedef uint32_t Bits __attribute__((vector_size(64)));
};

template <int kWidth>
constexpr int kVectorBytes = std::min(kRegisterBytes, 2 * kWidth);

constexpr size_t kMaxWidth = 64;  // columns of the widest block
constexpr size_t kTileRows = 32;  // rows whose results are written together

// One cache line: what blocks of activations are allocated in, so that no vector straddles two.
struct alignas(64) Line {
  int16_t x[32];
};

// Where column c of a block lies among its feature's values. Columns of the first half of a vector
// sit on even places and those of the second on odd ones: splitting a vector of 16-bit sums into
// its even and odd halves then gives columns in order.
template <int kWidth>
constexpr size_t place(size_t c) {
  constexpr size_t lanes = kVectorBytes<kWidth> / 2;
  const size_t lane = c % lanes;
  return c - lane + (lane < lanes / 2 ? 2 * lane : 2 * lane - lanes + 1);
}

// x as [feature][kWidth] for the columns first..first + count - 1. The others keep what the
// block held before, zeros at first: their results are computed and not stored.
template <int kWidth>
void transpose_block(const Layer& layer, size_t first, size_t count, int16_t* block) {
  constexpr size_t kRun = 32;  // features of a run: its part of the block stays in the L1 cache
  for (size_t k = 0; k < layer.features; k += kRun) {
    const size_t end = std::min(k + kRun, layer.features);
    for (size_t c = 0; c < count; ++c) {
      const int8_t* x = layer.x + (first + c) * layer.features;
      int16_t* to = block + place<kWidth>(c);
      for (size_t feature = k; feature < end; ++feature) to[feature * kWidth] = x[feature];
    }
  }
}

// sums[c] = bias + the row's weights times column c of the block.
template <int kWidth, bool kDense>
void row_sums(const Layer& layer, size_t row, const int16_t* block, int32_t* sums) {
  using Narrow = typename Vector<kVectorBytes<kWidth>>::Narrow;
  using Wide = typename Vector<kVectorBytes<kWidth>>::Wide;
  using Bits = typename Vector<kVectorBytes<kWidth>>::Bits;
  constexpr int kLanes = kVectorBytes<kWidth> / 2;
  constexpr int kVectors = kWidth / kLanes;
  const int8_t* weights = layer.weights + row * layer.keeps;
  const int32_t* indices = kDense ? nullptr : layer.indices + row * layer.keeps;
  Wide low[kVectors];
  Wide high[kVectors];
  for (int v = 0; v < kVectors; ++v) low[v] = high[v] = Wide{} + layer.bias[row];
  const auto activations = [&](size_t i) {
    return block + (kDense ? i : size_t(uint32_t(indices[i]))) * kWidth;
  };
  const auto add_pair = [&](const int16_t* x0, int w0, const int16_t* x1, int w1) {
    for (int v = 0; v < kVectors; ++v) {
      Narrow a;
      Narrow b;
      std::memcpy(&a, x0 + v * kLanes, sizeof a);
      std::memcpy(&b, x1 + v * kLanes, sizeof b);
      const Narrow sum = a * int16_t(-w0) + b * int16_t(-w1);
      low[v] -= Wide(Bits(sum) << 16) >> 16;
      high[v] -= Wide(sum) >> 16;
    }
  };
  size_t i = 0;
  for (; i + 1 < layer.keeps; i += 2) {
    add_pair(activations(i), weights[i], activations(i + 1), weights[i + 1]);
  }
  if (i < layer.keeps) add_pair(activations(i), weights[i], activations(i), 0);
  for (int v = 0; v < kVectors; ++v) {
    std::memcpy(sums + v * kLanes, &low[v], sizeof low[v]);
    std::memcpy(sums + v * kLanes + kLanes / 2, &high[v], sizeof high[v]);
  }
}

// q = saturate(round_half_even(float32(sum) * multiplier) + zero_point), before the table.
inline int8_t requantise(int32_t sum, float multiplier, int32_t zero_point) {
  // Past 512 any zero point saturates, so this bound changes no result; it keeps infinities from
  // the conversion, and the sum below exact.
  constexpr float kBound = 512.0f;
  // 1.5 * 2^23: floats near it are whole numbers, so adding it rounds, ties to even.
  constexpr float kRounder = 12582912.0f;
  float scaled = float(sum) * multiplier;
  scaled = scaled < -kBound ? -kBound : scaled;
  scaled = scaled > kBound ? kBound : scaled;
  const int32_t q = int32_t((scaled + kRounder) - kRounder) + zero_point;
  return int8_t(q < -128 ? -128 : q > 127 ? 127 : q);
}

// Requantises the results of `rows` rows from `row` on, [rows][kWidth], and writes those of the
// first `count` columns to where they belong: y and sums hold one column's rows side by side.
template <int kWidth>
void store_tile(const Layer& layer, size_t row, size_t rows, size_t first, size_t count,
                const int32_t* sums) {
  if (layer.sums != nullptr) {
    for (size_t c = 0; c < count; ++c) {
      int32_t* to = layer.sums + (first + c) * layer.rows + row;
      for (size_t r = 0; r < rows; ++r) to[r] = sums[r * kWidth + c];
    }
  }
  if (layer.y == nullptr) return;
  int8_t q[kTileRows * kWidth];
  for (size_t r = 0; r < rows; ++r) {
    const float multiplier = layer.multiplier[row + r];
    for (size_t c = 0; c < kWidth; ++c) {
      q[r * kWidth + c] = requantise(sums[r * kWidth + c], multiplier, layer.zero_point);
    }
  }
  for (size_t c = 0; c < count; ++c) {
    int8_t* to = layer.y + (first + c) * layer.rows + row;
    if (layer.table == nullptr) {
      for (size_t r = 0; r < rows; ++r) to[r] = q[r * kWidth + c];
    } else {
      for (size_t r = 0; r < rows; ++r) to[r] = layer.table[q[r * kWidth + c] + 128];
    }
  }
}

template <int kWidth, bool kDense>
void multiply_block(const Layer& layer, size_t first, size_t count, size_t row, size_t row_end,
                    const int16_t* block) {
  int32_t sums[kTileRows * kWidth];
  while (row < row_end) {
    const size_t rows = std::min(kTileRows, row_end - row);
    for (size_t r = 0; r < rows; ++r) {
      row_sums<kWidth, kDense>(layer, row + r, block, sums + r * kWidth);
    }
    store_tile<kWidth>(layer, row, rows, first, count, sums);
    row += rows;
  }
}

// The sum of weights[i] * x[i], or of weights[i] * x[indices[i]].
int32_t dense_product(const int8_t* weights, size_t count, const int8_t* x) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += int32_t{weights[i]} * x[i];
  return sum;
}
int32_t sparse_product(const int8_t* weights, const int32_t* indices, size_t count,
                       const int32_t* x) {
  int32_t sum = 0;
  for (size_t i = 0; i < count; ++i) sum += int32_t{weights[i]} * x[indices[i]];
  return sum;
}

// A few columns, each times the rows row..row_end - 1 as it lies: no transposition, and no lanes
// that work for nobody.
void multiply_columns(const Layer& layer, size_t row, size_t row_end) {
  std::vector<int32_t> wide;  // fetching 32-bit values one by one is faster than widening bytes
  for (size_t c = 0; c < layer.columns; ++c) {
    const int8_t* x = layer.x + c * layer.features;
    if (layer.indices != nullptr) wide.assign(x, x + layer.features);
    for (size_t r = row; r < row_end; ++r) {
      const size_t at = r * layer.keeps;
      const int32_t product =
          layer.indices == nullptr
              ? dense_product(layer.weights + at, layer.keeps, x)
              : sparse_product(layer.weights + at, layer.indices + at, layer.keeps, wide.data());
      const int32_t sum = layer.bias[r] + product;
      if (layer.sums != nullptr) layer.sums[c * layer.rows + r] = sum;
      if (layer.y == nullptr) continue;
      const int8_t q = requantise(sum, layer.multiplier[r], layer.zero_point);
      layer.y[c * layer.rows + r] = layer.table == nullptr ? q : layer.table[q + 128];
    }
  }
}

#if defined(__AVX2__)

// Adds the bias to the sums of up to kTileRows rows of one column, requantises and writes them.
void store_column(const Layer& layer, size_t column, size_t row, size_t rows, int32_t* sums) {
  const size_t at = column * layer.rows + row;
  for (size_t r = 0; r < rows; ++r) sums[r] += layer.bias[row + r];
  if (layer.sums != nullptr) std::copy(sums, sums + rows, layer.sums + at);
  if (layer.y == nullptr) return;
  int8_t* y = layer.y + at;
  const float* multiplier = layer.multiplier + row;
  size_t r = 0;
  for (; r + 8 <= rows; r += 8) {
    avx2::requantise8(sums + r, multiplier + r, layer.zero_point, y + r);
  }
  for (; r < rows; ++r) y[r] = requantise(sums[r], multiplier[r], layer.zero_point);
  if (layer.table == nullptr) return;
  for (r = 0; r < rows; ++r) y[r] = layer.table[y[r] + 128];
}

// As multiply_columns, from packed weights.
void multiply_columns(const Layer& layer, const avx2::Packed& packed, size_t row, size_t row_end) {
  std::vector<int8_t> x(packed.banks * avx2::kBankFeatures);  // whole banks, as the kernel reads
  int32_t sums[kTileRows];
  for (size_t c = 0; c < layer.columns; ++c) {
    const int8_t* from = layer.x + c * layer.features;
    std::copy(from, from + std::min(layer.features, x.size()), x.begin());
    for (size_t tile = row; tile < row_end; tile += kTileRows) {
      const size_t rows = std::min(kTileRows, row_end - tile);
      for (size_t r = 0; r < rows; r += avx2::kRows) {
        avx2::column_sums(packed, tile + r, x.data(), sums + r);
      }
      store_column(layer, c, tile, rows, sums);
    }
  }
}

// A dense layer's rows row..row_end - 1 times `count` columns. A tile's weights stay in the cache
// while all columns pass by; `block` has the columns' first `keeps` features in 16 bits, one column
// behind the other.
void run_dense_unit(const Layer& layer, size_t first, size_t count, size_t row, size_t row_end,
                    int16_t* block, bool fresh) {
  const size_t stride = avx2::padded(layer.keeps);
  if (fresh) {
    for (size_t c = 0; c < count; ++c) {
      avx2::widen(layer.x + (first + c) * layer.features, layer.keeps, block + c * stride);
    }
  }
  int32_t sums[2 * kTileRows];
  for (size_t tile = row; tile < row_end; tile += kTileRows) {
    const size_t rows = std::min(kTileRows, row_end - tile);
    for (size_t c = 0; c < count; c += 2) {
      const size_t columns = std::min<size_t>(2, count - c);
      for (size_t r = 0; r < rows; r += avx2::kDenseRows) {
        const int8_t* weights[avx2::kDenseRows];
        for (size_t i = 0; i < avx2::kDenseRows; ++i) {  // the last row again behind it
          weights[i] = layer.weights + (tile + std::min(r + i, rows - 1)) * layer.keeps;
        }
        const auto multiply = columns == 2 ? avx2::dense_sums<2> : avx2::dense_sums<1>;
        multiply(weights, layer.keeps, block + c * stride, sums + r, kTileRows);
      }
      for (size_t i = 0; i < columns; ++i) {
        store_column(layer, first + c + i, tile, rows, sums + i * kTileRows);
      }
    }
  }
}

// As transpose_block and multiply_block, from packed weights and a block [feature][32] of bytes.
void run_unit(const Layer& layer, const avx2::Packed& packed, size_t first, size_t count,
              size_t row, size_t row_end, int8_t* block, bool fresh) {
  constexpr size_t kWidth = avx2::kColumns;
  if (fresh) {
    const int8_t* x = layer.x + first * layer.features;
    avx2::transpose(x, count, layer.features, layer.features, block, kWidth);
  }
  int32_t sums[kTileRows * kWidth];
  int8_t q[kTileRows * kWidth];
  for (; row < row_end; row += kTileRows) {
    const size_t rows = std::min(kTileRows, row_end - row);
    for (size_t r = 0; r < rows; ++r) {
      avx2::block_sums(packed, row + r, layer.bias[row + r], block, sums + r * kWidth);
    }
    if (layer.sums != nullptr) {
      for (size_t c = 0; c < count; ++c) {
        int32_t* to = layer.sums + (first + c) * layer.rows + row;
        for (size_t r = 0; r < rows; ++r) to[r] = sums[r * kWidth + c];
      }
    }
    if (layer.y == nullptr) continue;
    for (size_t r = 0; r < rows; ++r) {
      int8_t* to = q + r * kWidth;
      avx2::requantise32(sums + r * kWidth, layer.multiplier[row + r], layer.zero_point, to);
      if (layer.table == nullptr) continue;
      for (size_t c = 0; c < kWidth; ++c) to[c] = layer.table[to[c] + 128];
    }
    int8_t* y = layer.y + first * layer.rows + row;
    avx2::transpose(q, rows, count, kWidth, y, layer.rows);
  }
}

#endif

#if defined(__AVX2__)
constexpr bool kDenseUnits = true;  // run_dense_unit is there
#else
constexpr bool kDenseUnits = false;
#endif

// Work for one thread at a time: some rows of one block of columns.
struct Plan {
  bool transposed;  // or widened; false: multiply_columns, and one block
  size_t width;     // columns of a block
  size_t blocks;
  size_t parts;  // of the rows of a block
  size_t part_rows;

  size_t units() const { return blocks * parts; }
};

size_t divide_up(size_t a, size_t b) { return (a + b - 1) / b; }

Plan make_plan(const Layer& layer, size_t threads) {
  // Up to here single columns are faster than one block: a dense row times a column is a vector
  // operation, while a sparse row's activations are fetched one by one.
  // A packed column costs a tenth of a packed block, which costs the same however few are in it.
  const size_t few = layer.packed != nullptr || layer.indices == nullptr ? 8 : 1;
  Plan plan;
  plan.transposed = layer.columns > few || (kDenseUnits && layer.indices == nullptr);
  plan.width = layer.packed != nullptr ? kMaxWidth / 2 : kMaxWidth;
  plan.blocks = plan.transposed ? divide_up(layer.columns, plan.width) : 1;
  // Several units for each thread, so that a thread that the system holds up delays no other.
  const size_t wanted = threads == 1 ? 1 : divide_up(4 * threads, plan.blocks);
  const size_t rows = std::max(divide_up(layer.rows, wanted), kTileRows);
  plan.part_rows = divide_up(rows, kTileRows) * kTileRows;
  plan.parts = divide_up(layer.rows, plan.part_rows);
  return plan;
}

template <int kWidth>
void run_unit(const Layer& layer, size_t first, size_t count, size_t row, size_t row_end,
              int16_t* block, bool fresh) {
  if (fresh) transpose_block<kWidth>(layer, first, count, block);
  if (layer.indices == nullptr) {
    multiply_block<kWidth, true>(layer, first, count, row, row_end, block);
  } else {
    multiply_block<kWidth, false>(layer, first, count, row, row_end, block);
  }
}

// Takes units until none is left. Throws std::bad_alloc.
void work(const Layer& layer, const Plan& plan, std::atomic<size_t>& next) {
  std::vector<Line> lines;
  size_t transposed = plan.blocks;  // the block that `lines` holds; none yet
  for (size_t unit = next++; unit < plan.units(); unit = next++) {
    const size_t row = unit % plan.parts * plan.part_rows;
    const size_t row_end = std::min(row + plan.part_rows, layer.rows);
    if (!plan.transposed) {
#if defined(__AVX2__)
      if (layer.packed != nullptr) {
        multiply_columns(layer, *layer.packed, row, row_end);
        continue;
      }
#endif
      multiply_columns(layer, row, row_end);
      continue;
    }
    const size_t first = unit / plan.parts * plan.width;
    const size_t count = std::min(plan.width, layer.columns - first);
    if (lines.empty()) {
      const size_t features = divide_up(layer.features, 16) * 16;  // padded, where it is widened
      lines.resize(divide_up(features * plan.width * sizeof(int16_t), sizeof(Line)));
    }
    const bool fresh = transposed != unit / plan.parts;
    transposed = unit / plan.parts;
    int16_t* block = lines.data()->x;
#if defined(__AVX2__)
    if (layer.indices == nullptr) {
      run_dense_unit(layer, first, count, row, row_end, block, fresh);
      continue;
    }
    if (layer.packed != nullptr) {
      auto* bytes = reinterpret_cast<int8_t*>(block);
      run_unit(layer, *layer.packed, first, count, row, row_end, bytes, fresh);
      continue;
    }
#endif
    if (count <= 8) run_unit<8>(layer, first, count, row, row_end, block, fresh);
    else if (count <= 16) run_unit<16>(layer, first, count, row, row_end, block, fresh);
    else if (count <= 32) run_unit<32>(layer, first, count, row, row_end, block, fresh);
    else run_unit<64>(layer, first, count, row, row_end, block, fresh);
  }
}

// Threads that are worth waking, which takes as long as some 60,000 products, and five times as
// many from packed weights.
size_t useful_threads(const Layer& layer, int threads) {
  const double products = double(layer.rows) * double(layer.keeps) * double(layer.columns);
  const double worth = layer.packed != nullptr ? 300e3 : 60e3;
  return size_t(std::clamp(products / worth, 1.0, double(std::max(threads, 1))));
}

}  // namespace

// The weights of a sparse layer as `bbs_cpu_linear` takes them beside the plain ones, to be freed by
// `bbs_cpu_free`; null where there is nothing to gain on this processor, or no memory. `features`
// is more than any index.
extern "C" bbs_packed* bbs_cpu_pack(size_t features, const int8_t* weights,
                                    const int32_t* indices, size_t rows, size_t keeps) {
#if defined(__AVX2__)
  if (features > avx2::kMaxFeatures) return nullptr;
  try {
    return new bbs_packed{avx2::pack(rows, keeps, features, weights, indices)};
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
#else
  static_cast<void>(features), static_cast<void>(weights), static_cast<void>(indices);
  static_cast<void>(rows), static_cast<void>(keeps);
  return nullptr;
#endif
}

extern "C" void bbs_cpu_free(bbs_packed* packed) { delete packed; }

// y = table[requantise(sums)], sums = bias + weights x; null pointers as in Layer. Every index
// lies in 0..features - 1, and bias + the sum of |weight| * 128 of a row below 2^31: the caller
// has checked. Returns 0, or 1 where memory ran out, and y and sums are then undefined.
extern "C" int bbs_cpu_linear(const int8_t* x, size_t columns, size_t features,
                              const int8_t* weights, const int32_t* indices, size_t rows,
                              size_t keeps, const int32_t* bias, const float* multiplier,
                              int32_t zero_point, const int8_t* table, int8_t* y, int32_t* sums,
                              const bbs_packed* packed, int threads) {
  if (columns == 0 || rows == 0) return 0;
  const Layer layer{x,    columns,    features,   weights, indices, rows, keeps,
                    bias, multiplier, zero_point, table,   y,       sums, packed};
  const size_t wanted = useful_threads(layer, threads);
  const Plan plan = make_plan(layer, wanted);
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  const auto body = [&] {
    try {
      work(layer, plan, next);
    } catch (const std::bad_alloc&) {
      failed = true;
    }
  };
  try {
    pool::run(std::min(wanted, plan.units()) - 1, body);
  } catch (const std::bad_alloc&) {
    return 1;
  }
  return failed ? 1 : 0;
}
