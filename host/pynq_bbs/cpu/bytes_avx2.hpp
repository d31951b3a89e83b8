// SPDX-License-Identifier: Apache-2.0
// What stands before and behind the products, with AVX2: transposing bytes, and requantising.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

namespace avx2 {

// to[c][r] = from[r][c] of 16 rows and columns; strides in bytes.
inline void transpose16(const int8_t* from, size_t from_stride, int8_t* to, size_t to_stride) {
  __m128i rows[16];
  for (size_t r = 0; r < 16; ++r) {
    rows[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + r * from_stride));
  }
  // Interleaving the first half with the second turns the eight bits of (row, column) round by
  // one. After four rounds row and column have changed places.
  for (int round = 0; round < 4; ++round) {
    __m128i turned[16];
    for (int i = 0; i < 8; ++i) {
      turned[2 * i] = _mm_unpacklo_epi8(rows[i], rows[i + 8]);
      turned[2 * i + 1] = _mm_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    std::copy(turned, turned + 16, rows);
  }
  for (size_t c = 0; c < 16; ++c) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + c * to_stride), rows[c]);
  }
}

// to[c][r] = from[r][c]; strides in bytes.
inline void transpose(const int8_t* from, size_t rows, size_t columns, size_t from_stride,
                      int8_t* to, size_t to_stride) {
  for (size_t r = 0; r < rows; r += 16) {
    for (size_t c = 0; c < columns; c += 16) {
      const int8_t* part = from + r * from_stride + c;
      int8_t* to_part = to + c * to_stride + r;
      if (rows - r >= 16 && columns - c >= 16) {
        transpose16(part, from_stride, to_part, to_stride);
        continue;
      }
      for (size_t i = 0; i < std::min<size_t>(16, rows - r); ++i) {
        for (size_t j = 0; j < std::min<size_t>(16, columns - c); ++j) {
          to_part[j * to_stride + i] = part[i * from_stride + j];
        }
      }
    }
  }
}

// round_half_even(float32(sum) * multiplier) + zero_point, saturated at 512 and more, where INT8
// has long been. Rounded before it is converted, which would round as the thread happens to be set.
inline __m256i scaled(__m256i sums, __m256 multiplier, __m256i zero_point) {
  const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(sums), multiplier);
  const __m256 low = _mm256_max_ps(product, _mm256_set1_ps(-512.0f));
  const __m256 bound = _mm256_min_ps(low, _mm256_set1_ps(512.0f));
  const __m256 rounded = _mm256_round_ps(bound, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  return _mm256_add_epi32(_mm256_cvtps_epi32(rounded), zero_point);
}

// y[i] = saturate(scaled(sums[i])) for eight sums, each with its multiplier. Packing saturates.
inline void requantise8(const int32_t* sums, const float* multiplier, int32_t zero_point,
                        int8_t* y) {
  const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums));
  const __m256i q = scaled(values, _mm256_loadu_ps(multiplier), _mm256_set1_epi32(zero_point));
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(q), _mm256_extracti128_si256(q, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(y), _mm_packs_epi16(words, words));
}

// The same for 32 sums of one multiplier.
inline void requantise32(const int32_t* sums, float multiplier, int32_t zero_point, int8_t* y) {
  const auto part = [&](int i) {
    const __m256i values = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums + 8 * i));
    return scaled(values, _mm256_set1_ps(multiplier), _mm256_set1_epi32(zero_point));
  };
  const __m256i low = _mm256_packs_epi32(part(0), part(1));
  const __m256i high = _mm256_packs_epi32(part(2), part(3));
  const __m256i bytes = _mm256_packs_epi16(low, high);
  // Packing works within halves of a register: fours of bytes are 0 2 4 6 1 3 5 7.
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(y),
                      _mm256_permutevar8x32_epi32(bytes, order));
}

}  // namespace avx2
