// Kernels for CPUs with AVX-512 alone (Intel from Skylake-SP on).

// Precedes the pragma, so that it is compiled for any x86-64 and may be called on any.
extern "C" int toolwire_is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
}

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma")

#include "avx512_widened.h"

namespace toolwire {

inline Ints dot_words(Ints sum, Ints a, Ints b) {
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(a, b));
    asm("" : "+v"(sum));  // as in avx2.cpp
    return sum;
}

// Sums of four products fit into sixteen bits as often as WORDS says.
template <int WIDTH> struct ByteSums {
    static constexpr int WORDS = WIDTH == 4 ? 8 : WIDTH == 5 ? 4 : WIDTH == 6 ? 2 : 1;
    static constexpr bool WIDENS = true, IS_SIGNED = WIDTH == 8;

    static Ints add(Ints sum, Ints codes, Ints inputs) {
        if constexpr (IS_SIGNED) {  // products of magnitudes with inputs of the other sign where codes are negative
            const __mmask64 negative = _mm512_movepi8_mask(codes);
            inputs = _mm512_mask_sub_epi8(inputs, negative, _mm512_setzero_si512(), inputs);
            codes = _mm512_abs_epi8(codes);
        }
        sum = _mm512_add_epi16(sum, _mm512_maddubs_epi16(codes, inputs));
        asm("" : "+v"(sum));  // as in avx2.cpp
        return sum;
    }
    static Ints widened(Ints sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }
};

}  // namespace toolwire

#include "split.h"
#include "step.h"
