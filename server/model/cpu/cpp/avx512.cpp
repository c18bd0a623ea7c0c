// Kernels for CPUs with AVX-512 without bfloat16 products (Intel from Skylake-SP on).

// Precedes the pragma, so that it is compiled for any x86-64 and may be called on any.
extern "C" int toolwire_is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

#include "avx512.h"

namespace toolwire {

constexpr long STRETCH = 1024;  // inputs of six tokens that stay in the first cache while sixteen rows are multiplied

inline Ints dot_words(Ints sum, Ints a, Ints b) { return _mm512_add_epi32(sum, _mm512_madd_epi16(a, b)); }

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

}  // namespace toolwire

#include "step.h"
