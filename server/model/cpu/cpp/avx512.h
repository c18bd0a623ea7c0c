// Registers of AVX-512 and operations on them; included behind the pragma of a set.
#pragma once

#include <immintrin.h>

#include "base.h"

namespace toolwire {

using Floats = __m512;
using Ints = __m512i;
using Mask = __mmask16;

constexpr int LANES = 16;
constexpr int ROW_TOKENS = 6;    // 6 x 4 sums, 4 rows and one input use all registers
constexpr int PANEL_TOKENS = 8;
constexpr int QUERIES = 12;      // 12 x 2 sums, 2 registers of keys or values and one query use all registers
constexpr int rows_at_once(int) { return 4; }

inline Floats all(float value) { return _mm512_set1_ps(value); }
inline Floats load(const float* at) { return _mm512_loadu_ps(at); }
inline Floats load(const Bf16* at) {
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline Floats load(const int8_t* at) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)at)));
}
inline Floats load_half(const uint16_t* at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at)); }
inline Mask first_lanes(int count) { return (Mask)((1u << count) - 1); }
inline Floats load(const float* at, int count) { return _mm512_maskz_loadu_ps(first_lanes(count), at); }
inline void store(float* at, Floats values) { _mm512_storeu_ps(at, values); }
inline void store(float* at, Floats values, int count) { _mm512_mask_storeu_ps(at, first_lanes(count), values); }
inline void store(int* at, Ints values) { _mm512_storeu_si512(at, values); }

inline Floats fma(Floats a, Floats b, Floats sum) { return _mm512_fmadd_ps(a, b, sum); }
inline Floats fnma(Floats a, Floats b, Floats sum) { return _mm512_fnmadd_ps(a, b, sum); }
inline Floats max(Floats a, Floats b) { return _mm512_max_ps(a, b); }  // b if one is NaN
inline Floats min(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats nearest(Floats values) { return _mm512_roundscale_ps(values, 0); }
inline float sum_of(Floats values) { return _mm512_reduce_add_ps(values); }
inline float max_of(Floats values) { return _mm512_reduce_max_ps(values); }

// value * 2^power; 0 where x < low.
inline Floats scale_unless_below(Floats low, Floats x, Floats value, Floats power) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ), value, power);
}

inline Mask greater(Mask own, Floats a, Floats b) { return _mm512_mask_cmp_ps_mask(own, a, b, _CMP_GT_OQ); }
inline Floats select(Mask mask, Floats a, Floats b) { return _mm512_mask_mov_ps(b, mask, a); }
inline Ints select(Mask mask, Ints a, Ints b) { return _mm512_mask_mov_epi32(b, mask, a); }
inline Ints ids_from(int first) {
    const Ints lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_add_epi32(_mm512_set1_epi32(first), lanes);
}

// Whether one of these lanes is NaN or infinite.
inline bool is_broken(Mask own, Floats values) {
    constexpr int NO_NUMBER = 0x01 | 0x08 | 0x10 | 0x80;  // quiet NaN, infinity, minus infinity, signalling NaN
    return _mm512_mask_fpclass_ps_mask(own, values, NO_NUMBER) != 0;
}

// Stores the horizontal sums of four registers.
inline void store_totals(float* at, const Floats (&sums)[4]) {
    Floats ab = _mm512_add_ps(_mm512_unpacklo_ps(sums[0], sums[1]), _mm512_unpackhi_ps(sums[0], sums[1]));
    Floats cd = _mm512_add_ps(_mm512_unpacklo_ps(sums[2], sums[3]), _mm512_unpackhi_ps(sums[2], sums[3]));
    Floats low = (Floats)_mm512_unpacklo_pd((__m512d)ab, (__m512d)cd);
    Floats high = (Floats)_mm512_unpackhi_pd((__m512d)ab, (__m512d)cd);
    Floats all = _mm512_add_ps(low, high);
    __m256 half = _mm256_add_ps(_mm512_castps512_ps256(all), _mm512_extractf32x8_ps(all, 1));
    _mm_storeu_ps(at, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
}

}  // namespace toolwire
