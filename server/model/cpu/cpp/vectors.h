// Vector registers of bfloat16 or float32 elements and operations on them.
#pragma once

// Must precede all code: this file and those that include it need a CPU that `toolwire_is_supported` accepts.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace toolwire {

using Bits = __m512i;
using Floats = __m512;

constexpr int LANES = 16;  // float32 in a register

struct Bf16 {
    uint16_t bits;
};

template <class E> struct Elements;

template <> struct Elements<float> {
    static constexpr int PAIR = 1;
    static constexpr int STEP = 16;  // elements in a register

    static Bits load(const float* at) { return _mm512_castps_si512(_mm512_loadu_ps(at)); }
    static Floats dot(Floats sum, Bits a, Bits b) {
        return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum);
    }
    static Floats floats(const float* at) { return _mm512_loadu_ps(at); }
    static void store(float* at, Floats values) { _mm512_storeu_ps(at, values); }
    static void store(float* at, Floats values, int count) {
        _mm512_mask_storeu_ps(at, (__mmask16)((1u << count) - 1), values);
    }
    static Bits first_of_pairs(Bits values) { return values; }  // a pair is one element
};

template <> struct Elements<Bf16> {
    static constexpr int PAIR = 2;
    static constexpr int STEP = 32;

    static Bits load(const Bf16* at) { return _mm512_loadu_si512(at); }
    static Floats dot(Floats sum, Bits a, Bits b) { return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b); }
    static Floats floats(const Bf16* at) {
        __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)at));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static void store(Bf16* at, Floats values) {
        _mm256_storeu_si256((__m256i*)at, (__m256i)_mm512_cvtneps_pbh(values));
    }
    static void store(Bf16* at, Floats values, int count) {
        _mm256_mask_storeu_epi16(at, (__mmask16)((1u << count) - 1), (__m256i)_mm512_cvtneps_pbh(values));
    }
    static Bits first_of_pairs(Bits values) { return _mm512_and_si512(values, _mm512_set1_epi32(0xffff)); }
};

template <class E> Bits everywhere(const E* pair) {
    int32_t bits;
    std::memcpy(&bits, pair, sizeof(bits));
    return _mm512_set1_epi32(bits);
}

// e^x to 2 ulp (Cephes' polynomial); 0 below -87.
inline Floats exponential(Floats x) {
    const Floats low = _mm512_set1_ps(-87.0f), high = _mm512_set1_ps(88.0f);
    __mmask16 counts = _mm512_cmp_ps_mask(x, low, _CMP_NLT_UQ);  // NaN passes and stays NaN
    Floats held = _mm512_min_ps(high, _mm512_max_ps(low, x));
    Floats power = _mm512_roundscale_ps(_mm512_mul_ps(held, _mm512_set1_ps(1.44269504088896341f)), 0);
    Floats rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(0.693359375f), held);
    rest = _mm512_fnmadd_ps(power, _mm512_set1_ps(-2.12194440e-4f), rest);
    Floats sum = _mm512_set1_ps(1.9875691500e-4f);
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.3981999507e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(8.3334519073e-3f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(4.1665795894e-2f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(1.6666665459e-1f));
    sum = _mm512_fmadd_ps(sum, rest, _mm512_set1_ps(5.0000001201e-1f));
    sum = _mm512_fmadd_ps(sum, _mm512_mul_ps(rest, rest), _mm512_add_ps(rest, _mm512_set1_ps(1.0f)));
    return _mm512_maskz_scalef_ps(counts, sum, power);
}

inline long at_most(long a, long b) { return a < b ? a : b; }

// Rounds up to a multiple of `unit`.
inline long rounded_up(long size, long unit) { return (size + unit - 1) / unit * unit; }

}  // namespace toolwire
