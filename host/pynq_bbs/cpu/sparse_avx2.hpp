// SPDX-License-Identifier: Apache-2.0
// Sparse rows times INT8 columns with AVX2, whose only byte product, pmaddubsw, takes unsigned by
// signed bytes and saturates the sum of two products at 16 bits. It cannot saturate here: |w| is
// the unsigned factor, 0..128, x the signed one, -128..127, and two such products add up to
// -32768..32512. Where w is negative its sign goes elsewhere, in one of two ways.
//
// A few columns, `column_sums`: 64 features of x lie in four registers, and pshufb fetches the
// activations of four weights of eight rows at once. For a negative w,
//   w * x = |w| * -x = |w| * (~x + 1) = |w| * ~x + |w|,
// and ~x is in -128..127 as x is, which -x is not. The last |w| does not depend on x: `corrections`
// has it, by row.
//
// Many columns, `block_sums`: a row's weights are sorted by sign. The products of the negative ones
// are summed first, the sum is negated once, and those of the others are added to it.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

namespace avx2 {

constexpr size_t kBankFeatures = 64;  // what four registers hold, each 16 features twice
constexpr size_t kRows = 8;           // rows of one register of quads
constexpr size_t kQuad = 4;           // weights whose products pmaddubsw and pmaddwd add up
constexpr size_t kColumns = 32;       // of a block
// What `block_sums` keeps an index in.
constexpr size_t kMaxFeatures = 65536;

// A quad of each of eight rows, byte 4 * row + i.
struct RowQuads {
  // bits 0..3 the place in a register, 4..5 the register, 6 the weight's sign
  uint8_t places[32];
  uint8_t magnitudes[32];
};

// A quad of one row.
struct Quad {
  uint8_t magnitudes[4];
  uint16_t features[4];
};

struct Packed {
  size_t rows;
  size_t banks;  // runs of 64 features
  // for column_sums
  std::vector<RowQuads> row_quads;     // [rows / 8][bank], as many as the counts say
  std::vector<uint32_t> counts;        // [rows / 8][bank]
  std::vector<size_t> first;           // [rows / 8], in row_quads
  std::vector<int32_t> corrections;    // [rows], filled up to whole eights
  // for block_sums
  std::vector<Quad> quads;             // [row], its negative ones and then the others
  std::vector<size_t> negative_first;  // [rows + 1], in quads
  std::vector<size_t> positive_first;  // [rows]
};

inline uint8_t magnitude(int8_t weight) { return uint8_t(weight < 0 ? -weight : weight); }

inline void pack_row_quads(Packed& packed, size_t row, const int8_t* weights,
                           const int32_t* indices, size_t keeps) {
  const size_t count = std::min(kRows, packed.rows - row);
  std::vector<std::vector<size_t>> kept(packed.banks * kRows);  // nonzeros by bank and row
  for (size_t r = 0; r < count; ++r) {
    for (size_t i = r * keeps; i < (r + 1) * keeps; ++i) {
      if (weights[i] != 0) kept[size_t(indices[i]) / kBankFeatures * kRows + r].push_back(i);
    }
  }
  packed.first.push_back(packed.row_quads.size());
  for (size_t bank = 0; bank < packed.banks; ++bank) {
    size_t most = 0;
    for (size_t r = 0; r < kRows; ++r) most = std::max(most, kept[bank * kRows + r].size());
    const size_t quads = (most + kQuad - 1) / kQuad;
    packed.counts.push_back(uint32_t(quads));
    const size_t at = packed.row_quads.size();
    packed.row_quads.resize(at + quads, RowQuads{});
    for (size_t r = 0; r < kRows; ++r) {
      const std::vector<size_t>& own = kept[bank * kRows + r];
      for (size_t n = 0; n < own.size(); ++n) {
        const int8_t weight = weights[own[n]];
        const size_t byte = r * kQuad + n % kQuad;
        RowQuads& to = packed.row_quads[at + n / kQuad];
        to.places[byte] =
            uint8_t(size_t(indices[own[n]]) % kBankFeatures | (weight < 0 ? 64u : 0u));
        to.magnitudes[byte] = magnitude(weight);
        if (weight < 0) packed.corrections[row + r] += magnitude(weight);
      }
    }
  }
}

inline void pack_quads(Packed& packed, const int8_t* weights, const int32_t* indices,
                       size_t keeps) {
  for (const bool negative : {true, false}) {
    (negative ? packed.negative_first : packed.positive_first).push_back(packed.quads.size());
    size_t filled = 0;
    for (size_t i = 0; i < keeps; ++i) {
      if (weights[i] == 0 || (weights[i] < 0) != negative) continue;
      if (filled % kQuad == 0) packed.quads.push_back(Quad{});
      packed.quads.back().magnitudes[filled % kQuad] = magnitude(weights[i]);
      packed.quads.back().features[filled % kQuad] = uint16_t(indices[i]);
      ++filled;
    }
  }
}

// `weights` and `indices` are [rows][keeps], every index below `features`. Throws std::bad_alloc.
inline Packed pack(size_t rows, size_t keeps, size_t features, const int8_t* weights,
                   const int32_t* indices) {
  Packed packed{};
  packed.rows = rows;
  packed.banks = (features + kBankFeatures - 1) / kBankFeatures;
  packed.corrections.resize((rows + kRows - 1) / kRows * kRows);
  for (size_t row = 0; row < rows; row += kRows) {
    pack_row_quads(packed, row, weights + row * keeps, indices + row * keeps, keeps);
  }
  for (size_t row = 0; row < rows; ++row) {
    pack_quads(packed, weights + row * keeps, indices + row * keeps, keeps);
  }
  packed.negative_first.push_back(packed.quads.size());
  return packed;
}

// The activations that the places name, ~x in place of x for negative weights; `x` are the 64 of
// the bank.
inline __m256i fetch(const __m256i (&x)[4], __m256i places) {
  // pshufb looks at bits 0..3 and 7, blendv at bit 7: shifts bring the others there. What they
  // carry from a byte into its neighbour stays below bit 7.
  const __m256i bit4 = _mm256_slli_epi16(places, 3);
  const __m256i bit5 = _mm256_slli_epi16(places, 2);
  const __m256i bit6 = _mm256_slli_epi16(places, 1);
  const __m256i low = _mm256_blendv_epi8(_mm256_shuffle_epi8(x[0], places),
                                         _mm256_shuffle_epi8(x[1], places), bit4);
  const __m256i high = _mm256_blendv_epi8(_mm256_shuffle_epi8(x[2], places),
                                          _mm256_shuffle_epi8(x[3], places), bit4);
  const __m256i negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), bit6);
  return _mm256_xor_si256(_mm256_blendv_epi8(low, high, bit5), negative);
}

// sums[r] = weights[row + r] * x for eight rows, `row` a multiple of eight. `x` has whole banks.
inline void column_sums(const Packed& packed, size_t row, const int8_t* x, int32_t* sums) {
  const size_t block = row / kRows;
  const RowQuads* quads = packed.row_quads.data() + packed.first[block];
  const uint32_t* counts = packed.counts.data() + block * packed.banks;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(packed.corrections.data() + row));
  for (size_t bank = 0; bank < packed.banks; ++bank, x += kBankFeatures) {
    __m256i features[4];
    for (int i = 0; i < 4; ++i) {
      features[i] = _mm256_broadcastsi128_si256(
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(x + 16 * i)));
    }
    for (uint32_t n = 0; n < counts[bank]; ++n, ++quads) {
      const auto load = [](const uint8_t* bytes) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes));
      };
      const __m256i fetched = fetch(features, load(quads->places));
      const __m256i pairs = _mm256_maddubs_epi16(load(quads->magnitudes), fetched);
      total = _mm256_add_epi32(total, _mm256_madd_epi16(pairs, ones));
    }
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), total);
}

// sums[c] = bias + weights[row] * column c, of a block [feature][32].
inline void block_sums(const Packed& packed, size_t row, int32_t bias, const int8_t* block,
                       int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i total[4] = {};
  const auto add = [&](size_t first, size_t end) {
    for (const Quad *quad = packed.quads.data() + first, *last = packed.quads.data() + end;
         quad != last; ++quad) {
      const auto load = [&](int i) {
        return _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(block + quad->features[i] * kColumns));
      };
      int32_t bytes;
      std::memcpy(&bytes, quad->magnitudes, sizeof bytes);
      const __m256i weights = _mm256_set1_epi32(bytes);
      // The four activations of a column come to lie side by side.
      const __m256i a = load(0), b = load(1), c = load(2), d = load(3);
      const __m256i ab[2] = {_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)};
      const __m256i cd[2] = {_mm256_unpacklo_epi8(c, d), _mm256_unpackhi_epi8(c, d)};
      for (int half = 0; half < 2; ++half) {
        const __m256i low = _mm256_unpacklo_epi16(ab[half], cd[half]);
        const __m256i high = _mm256_unpackhi_epi16(ab[half], cd[half]);
        const auto products = [&](__m256i x) {
          return _mm256_madd_epi16(_mm256_maddubs_epi16(weights, x), ones);
        };
        total[2 * half] = _mm256_add_epi32(total[2 * half], products(low));
        total[2 * half + 1] = _mm256_add_epi32(total[2 * half + 1], products(high));
      }
    }
  };
  add(packed.negative_first[row], packed.positive_first[row]);
  for (__m256i& t : total) t = _mm256_sub_epi32(_mm256_set1_epi32(bias), t);
  add(packed.positive_first[row], packed.negative_first[row + 1]);
  // Unpacking works within halves of a register: total[i] has columns 4i..4i + 3 and, above them,
  // 4i + 16..4i + 19.
  const auto store = [&](size_t column, __m256i values) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + column), values);
  };
  store(0, _mm256_permute2x128_si256(total[0], total[1], 0x20));
  store(8, _mm256_permute2x128_si256(total[2], total[3], 0x20));
  store(16, _mm256_permute2x128_si256(total[0], total[1], 0x31));
  store(24, _mm256_permute2x128_si256(total[2], total[3], 0x31));
}

}  // namespace avx2
