// Integer products of AVX-512 (VNNI); included behind the pragma of a set.
#pragma once

#include "avx512.h"

namespace toolwire {

inline Ints dot_words(Ints sum, Ints a, Ints b) { return _mm512_dpwssd_epi32(sum, a, b); }
template <int WIDTH> struct ByteSums {
    static constexpr int WORDS = 8;
    static constexpr bool WIDENS = false, IS_SIGNED = false;

    static Ints add(Ints sum, Ints codes, Ints inputs) { return _mm512_dpbusd_epi32(sum, codes, inputs); }
    static Ints widened(Ints sum) { return sum; }
};

}  // namespace toolwire
