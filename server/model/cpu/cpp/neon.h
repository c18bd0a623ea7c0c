// Registers of 64-bit ARM and operations on them; included behind the pragma of a set.
#pragma once

#include <arm_neon.h>

#include "base.h"

namespace toolwire {

using Floats = float32x4_t;
using Ints = int32x4_t;
using Mask = uint32x4_t;

constexpr int LANES = 4;
constexpr int ROW_TOKENS = 6;    // 6 x 4 sums, 4 rows and one input of 32 registers
constexpr int PANEL_TOKENS = 6;  // 6 x 4 sums, 4 registers of weights and one input
constexpr int QUERIES = 12;      // 12 x 2 sums, 2 registers of keys or values and one query
constexpr int rows_at_once(int) { return 4; }

inline Floats all(float value) { return vdupq_n_f32(value); }
inline Floats load(const float* at) { return vld1q_f32(at); }
inline Floats load(const Bf16* at) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(&at->bits), 16)); }
inline Floats load(const float* at, int count) {
    float numbers[LANES] = {};
    std::memcpy(numbers, at, count * sizeof(float));
    return load(numbers);
}
inline Floats load(const int8_t* at) {
    int32_t bits;
    std::memcpy(&bits, at, sizeof bits);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(bits))))));
}
inline Floats load_half(const uint16_t* at) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(at))); }
inline Ints ids_from(int first) {
    const int lanes[LANES] = {0, 1, 2, 3};
    return vaddq_s32(vdupq_n_s32(first), vld1q_s32(lanes));
}
inline Mask first_lanes(int count) { return vcltq_s32(ids_from(0), vdupq_n_s32(count)); }

inline void store(float* at, Floats values) { vst1q_f32(at, values); }
inline void store(float* at, Floats values, int count) { std::memcpy(at, &values, count * sizeof(float)); }
inline void store(int* at, Ints values) { vst1q_s32(at, values); }

inline Floats fma(Floats a, Floats b, Floats sum) { return vfmaq_f32(sum, a, b); }
inline Floats fnma(Floats a, Floats b, Floats sum) { return vfmsq_f32(sum, a, b); }
inline Ints dot_words(Ints sum, Ints a, Ints b) {
    const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
    const Ints low = vmull_s16(vget_low_s16(x), vget_low_s16(y));
    sum = vaddq_s32(sum, vpaddq_s32(low, vmull_high_s16(x, y)));
    asm("" : "+w"(sum));  // as in avx2.cpp
    return sum;
}
template <int WIDTH> struct ByteSums {
    static constexpr int WORDS = 8;
    static constexpr bool WIDENS = false, IS_SIGNED = true;

    static Ints add(Ints sum, Ints codes, Ints inputs) {
        const int8x16_t x = vreinterpretq_s8_s32(codes), y = vreinterpretq_s8_s32(inputs);
#ifdef __ARM_FEATURE_DOTPROD
        return vdotq_s32(sum, x, y);
#else
        const int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y));
        sum = vpadalq_s16(sum, vpaddq_s16(low, vmull_high_s8(x, y)));  // two products fit into sixteen bits
        asm("" : "+w"(sum));  // as in avx2.cpp
        return sum;
#endif
    }
    static Ints widened(Ints sum) { return sum; }
};
inline Floats max(Floats a, Floats b) { return vmaxq_f32(a, b); }  // NaN if one is
inline Floats min(Floats a, Floats b) { return vminq_f32(a, b); }
inline Floats nearest(Floats values) { return vrndnq_f32(values); }
inline float sum_of(Floats values) { return vaddvq_f32(values); }
inline float max_of(Floats values) { return vmaxvq_f32(values); }

// value * 2^power, for powers of normal numbers; 0 where x < low.
inline Floats scale_unless_below(Floats low, Floats x, Floats value, Floats power) {
    const Ints biased = vaddq_s32(vcvtnq_s32_f32(power), vdupq_n_s32(127));
    const Floats scaled = vmulq_f32(value, vreinterpretq_f32_s32(vshlq_n_s32(biased, 23)));
    return vbslq_f32(vcltq_f32(x, low), vdupq_n_f32(0.0f), scaled);
}

inline Mask greater(Mask own, Floats a, Floats b) { return vandq_u32(own, vcgtq_f32(a, b)); }
inline Floats select(Mask mask, Floats a, Floats b) { return vbslq_f32(mask, a, b); }
inline Ints select(Mask mask, Ints a, Ints b) { return vbslq_s32(mask, a, b); }

// Whether one of these lanes is NaN or infinite.
inline bool is_broken(Mask own, Floats values) {
    const Mask finite = vcltq_f32(vabsq_f32(values), all(INFINITY));
    return vmaxvq_u32(vbicq_u32(own, finite)) != 0;
}

// Stores the horizontal sums of four registers.
inline void store_totals(float* at, const Floats (&sums)[4]) {
    store(at, vpaddq_f32(vpaddq_f32(sums[0], sums[1]), vpaddq_f32(sums[2], sums[3])));
}

}  // namespace toolwire
