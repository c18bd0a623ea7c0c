// Kernels for CPUs with AVX2, FMA and F16C (Intel from Haswell on, AMD from Zen on).


// Precedes the pragma, so that it is compiled for any x86-64 and may be called on any.
extern "C" int toolwire_is_supported() {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#pragma GCC target("avx2,fma,f16c")

#include <immintrin.h>

#include "base.h"

namespace toolwire {

using Floats = __m256;
using Ints = __m256i;
using Mask = __m256i;  // all bits of a lane, or none

constexpr int LANES = 8;
constexpr int ROW_TOKENS = 6;    // 6 x 2 sums, 2 rows and one input use 15 of 16 registers
constexpr int PANEL_TOKENS = 6;  // 6 x 2 sums, 2 registers of weights and one input
constexpr int QUERIES = 6;       // 6 x 2 sums, 2 registers of keys or values and one query
constexpr long STRETCH = 1024;   // inputs of six tokens that stay in the first cache while sixteen rows are multiplied
constexpr int rows_at_once(int tokens) { return tokens <= 2 ? 4 : 2; }  // few sums would wait for each other

inline Floats all(float value) { return _mm256_set1_ps(value); }
inline Floats load(const float* at) { return _mm256_loadu_ps(at); }
inline Floats load(const Bf16* at) {
    __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)at));
    return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
inline Floats load(const int8_t* at) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)at)));
}
inline Floats load_half(const uint16_t* at) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)at)); }
inline Ints ids_from(int first) {
    return _mm256_add_epi32(_mm256_set1_epi32(first), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Mask first_lanes(int count) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), ids_from(0)); }
inline Floats load(const float* at, int count) { return _mm256_maskload_ps(at, first_lanes(count)); }

// To nearest even; NaN stays NaN.
inline __m128i rounded(Floats values) {
    const __m256i bits = _mm256_castps_si256(values), one = _mm256_set1_epi32(1);
    __m256i even = _mm256_and_si256(_mm256_srli_epi32(bits, 16), one);
    __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(even, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(1 << 22));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(values, values, _CMP_UNORD_Q));
    up = _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, is_nan), 16);
    return _mm_packus_epi32(_mm256_castsi256_si128(up), _mm256_extracti128_si256(up, 1));
}
inline void store(float* at, Floats values) { _mm256_storeu_ps(at, values); }
inline void store(float* at, Floats values, int count) { _mm256_maskstore_ps(at, first_lanes(count), values); }
inline void store(Bf16* at, Floats values) { _mm_storeu_si128((__m128i*)at, rounded(values)); }
inline void store(Bf16* at, Floats values, int count) {
    const __m128i bits = rounded(values);
    std::memcpy(at, &bits, count * sizeof(Bf16));
}
inline void store(int* at, Ints values) { _mm256_storeu_si256((__m256i*)at, values); }

inline Floats fma(Floats a, Floats b, Floats sum) { return _mm256_fmadd_ps(a, b, sum); }
inline Floats fnma(Floats a, Floats b, Floats sum) { return _mm256_fnmadd_ps(a, b, sum); }
inline Ints dot_words(Ints sum, Ints a, Ints b) {
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
    asm("" : "+x"(sum));  // keeps additions in order: else products wait for them in memory, which takes twice as long
    return sum;
}
// Sums of four products fit into sixteen bits as often as WORDS says.
template <int WIDTH> struct ByteSums {
    static constexpr int WORDS = WIDTH == 4 ? 8 : WIDTH == 5 ? 4 : WIDTH == 6 ? 2 : 1;
    static constexpr bool WIDENS = true, IS_SIGNED = WIDTH == 8;

    static Ints add(Ints sum, Ints codes, Ints inputs) {
        if constexpr (IS_SIGNED) {  // products of magnitudes with inputs of the other sign where codes are negative
            inputs = _mm256_sign_epi8(inputs, codes);
            codes = _mm256_abs_epi8(codes);
        }
        sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(codes, inputs));
        asm("" : "+x"(sum));
        return sum;
    }
    static Ints widened(Ints sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
};
inline Floats max(Floats a, Floats b) { return _mm256_max_ps(a, b); }  // b if one is NaN
inline Floats min(Floats a, Floats b) { return _mm256_min_ps(a, b); }
inline Floats nearest(Floats values) { return _mm256_round_ps(values, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

inline float sum_of(Floats values) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}
inline float max_of(Floats values) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(values), _mm256_extractf128_ps(values, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}

// value * 2^power, for powers of normal numbers; 0 where x < low.
inline Floats scale_unless_below(Floats low, Floats x, Floats value, Floats power) {
    const Ints biased = _mm256_add_epi32(_mm256_cvtps_epi32(power), _mm256_set1_epi32(127));
    const Floats factor = _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
    return _mm256_and_ps(value * factor, _mm256_cmp_ps(x, low, _CMP_NLT_UQ));
}

inline Mask greater(Mask own, Floats a, Floats b) {
    return _mm256_and_si256(own, _mm256_castps_si256(_mm256_cmp_ps(a, b, _CMP_GT_OQ)));
}
inline Floats select(Mask mask, Floats a, Floats b) { return _mm256_blendv_ps(b, a, _mm256_castsi256_ps(mask)); }
inline Ints select(Mask mask, Ints a, Ints b) { return _mm256_blendv_epi8(b, a, mask); }

// Whether one of these lanes is NaN or infinite.
inline bool is_broken(Mask own, Floats values) {
    const Floats size = _mm256_andnot_ps(all(-0.0f), values);
    const Floats broken = _mm256_cmp_ps(size, all(INFINITY), _CMP_NLT_UQ);
    return !_mm256_testz_si256(own, _mm256_castps_si256(broken));
}

// Stores the horizontal sums of four or two registers, each summed in the same order.
inline void store_totals(float* at, const Floats (&sums)[4]) {
    Floats quarters = _mm256_hadd_ps(_mm256_hadd_ps(sums[0], sums[1]), _mm256_hadd_ps(sums[2], sums[3]));
    _mm_storeu_ps(at, _mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1)));
}
inline void store_totals(float* at, const Floats (&sums)[2]) {
    Floats halves = _mm256_hadd_ps(sums[0], sums[1]);
    Floats quarters = _mm256_hadd_ps(halves, halves);
    __m128 both = _mm_add_ps(_mm256_castps256_ps128(quarters), _mm256_extractf128_ps(quarters, 1));
    std::memcpy(at, &both, 2 * sizeof(float));
}

// Sixteen weights, as they are or in float32.
inline Floats even_of_pairs(const Bf16* at) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_loadu_si256((const __m256i*)at), 16));
}
inline Floats odd_of_pairs(const Bf16* at) {
    const __m256i high = _mm256_set1_epi32((int)0xffff0000);
    return _mm256_castsi256_ps(_mm256_and_si256(_mm256_loadu_si256((const __m256i*)at), high));
}
inline void split_pairs(const float* from, float* to) {
    for (int i = 0; i < LANES; i++) {
        to[i] = from[2 * i];
        to[LANES + i] = from[2 * i + 1];
    }
}

}  // namespace toolwire

#include "split.h"
#include "step.h"
