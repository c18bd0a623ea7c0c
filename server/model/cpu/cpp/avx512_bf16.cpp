// Kernels for CPUs with AVX-512 and its bfloat16 products (AMD from Zen 4 on, Intel from Cooper Lake on).
#ifdef __x86_64__

// Precedes the pragma, so that it is compiled for any x86-64 and may be called on any.
extern "C" int toolwire_is_supported() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("fma");
}

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")

#include "avx512.h"

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

#include "step.h"

#else
extern "C" int toolwire_is_supported() { return 0; }
#endif
