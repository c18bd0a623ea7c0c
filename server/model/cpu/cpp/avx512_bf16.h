// Products of bfloat16 in pairs (AVX-512 BF16); included behind the pragma of a set.
#pragma once

#include "avx512_products.h"

namespace toolwire {

constexpr long STRETCH = 1L << 40;  // inputs that a tile multiplies before it takes the next rows: all

inline void store(Bf16* at, Floats values) {
    _mm256_storeu_si256((__m256i*)at, (__m256i)_mm512_cvtneps_pbh(values));
}
inline void store(Bf16* at, Floats values, int count) {
    _mm256_mask_storeu_epi16(at, first_lanes(count), (__m256i)_mm512_cvtneps_pbh(values));
}

}  // namespace toolwire

#include "vec.h"

namespace toolwire {

// Multiplied in pairs; both operands stay bfloat16.
template <> struct Elements<Bf16> {
    using Input = Bf16;
    using Bits = __m512i;
    static constexpr int PAIR = 2;
    static constexpr int STEP = 32;

    static Bits load(const Bf16* at) { return _mm512_loadu_si512(at); }
    static Bits everywhere(const Bf16* pair) {
        int32_t bits;
        std::memcpy(&bits, pair, sizeof(bits));
        return _mm512_set1_epi32(bits);
    }
    static Floats dot(Floats sum, Bits a, Bits b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
    static Bits first_of_pairs(Bits values) { return _mm512_and_si512(values, _mm512_set1_epi32(0xffff)); }
};

}  // namespace toolwire
