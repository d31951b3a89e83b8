// SPDX-License-Identifier: Apache-2.0
// Dense rows times columns with AVX2, as scalar products of 16-bit numbers: pmaddwd adds two
// products in 32 bits, which is exact for all of INT8.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace avx2 {

constexpr size_t kStep = 16;      // features of a register
constexpr size_t kDenseRows = 4;  // rows that share the activations that were fetched

// Values of a column that was widened.
inline size_t padded(size_t features) { return (features + kStep - 1) / kStep * kStep; }

// A column in 16 bits, zeros behind it.
inline void widen(const int8_t* x, size_t features, int16_t* to) {
  std::copy(x, x + features, to);
  std::fill(to + features, to + padded(features), int16_t{0});
}

inline __m256i widened(const int8_t* weights) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(weights)));
}

// sums[c * stride + r] = rows[r] * column c for four rows and one or two columns, which lie
// `padded(features)` values apart.
template <int kColumns>
void dense_sums(const int8_t* const (&rows)[kDenseRows], size_t features, const int16_t* x,
                int32_t* sums, size_t stride) {
  __m256i total[kColumns][kDenseRows] = {};
  const auto add = [&](const __m256i(&weights)[kDenseRows], size_t k) {
    for (int c = 0; c < kColumns; ++c) {
      const __m256i values = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(x + size_t(c) * padded(features) + k));
      for (size_t r = 0; r < kDenseRows; ++r) {
        total[c][r] = _mm256_add_epi32(total[c][r], _mm256_madd_epi16(weights[r], values));
      }
    }
  };
  size_t k = 0;
  for (; k + kStep <= features; k += kStep) {
    add({widened(rows[0] + k), widened(rows[1] + k), widened(rows[2] + k), widened(rows[3] + k)},
        k);
  }
  if (k < features) {
    int8_t rest[kDenseRows][kStep] = {};
    for (size_t r = 0; r < kDenseRows; ++r) std::memcpy(rest[r], rows[r] + k, features - k);
    add({widened(rest[0]), widened(rest[1]), widened(rest[2]), widened(rest[3])}, k);
  }
  for (int c = 0; c < kColumns; ++c) {
    const __m256i four = _mm256_hadd_epi32(_mm256_hadd_epi32(total[c][0], total[c][1]),
                                           _mm256_hadd_epi32(total[c][2], total[c][3]));
    _mm_storeu_si128(
        reinterpret_cast<__m128i*>(sums + size_t(c) * stride),
        _mm_add_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1)));
  }
}

}  // namespace avx2
