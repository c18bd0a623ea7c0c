// AVX-512 with bfloat16 widened to float32 for its products; included behind the pragma of a set.
#pragma once

#include "avx512.h"

namespace toolwire {

constexpr long STRETCH = 1024;  // inputs of six tokens that stay in the first cache while sixteen rows are multiplied

// To nearest even; NaN stays NaN.
inline __m256i rounded(Floats values) {
    const __m512i bits = _mm512_castps_si512(values), one = _mm512_set1_epi32(1);
    __m512i even = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
    __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(even, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(1 << 22));
    up = _mm512_mask_mov_epi32(up, _mm512_cmp_ps_mask(values, values, _CMP_UNORD_Q), quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
}
inline void store(Bf16* at, Floats values) { _mm256_storeu_si256((__m256i*)at, rounded(values)); }
inline void store(Bf16* at, Floats values, int count) {
    _mm256_mask_storeu_epi16(at, first_lanes(count), rounded(values));
}

// 32 weights, as they are or in float32.
inline Floats even_of_pairs(const Bf16* at) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(at), 16));
}
inline Floats odd_of_pairs(const Bf16* at) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(at), _mm512_set1_epi32((int)0xffff0000)));
}
inline void split_pairs(const float* from, float* to) {
    const Ints even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const Floats low = load(from), high = load(from + LANES);
    store(to, _mm512_permutex2var_ps(low, even, high));
    store(to + LANES, _mm512_permutex2var_ps(low, _mm512_add_epi32(even, _mm512_set1_epi32(1)), high));
}

}  // namespace toolwire
