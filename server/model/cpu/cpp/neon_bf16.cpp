// Kernels for 64-bit ARM with products of bfloat16 and of bytes (Neoverse N2, V1 and V2: Graviton from the third generation on, Grace).

#include <sys/auxv.h>

extern "C" int toolwire_is_supported() {
    constexpr unsigned long HAS_BYTES = 1 << 20, HAS_BF16 = 1 << 14;  // HWCAP_ASIMDDP, HWCAP2_BF16
    return (getauxval(AT_HWCAP) & HAS_BYTES) != 0 && (getauxval(AT_HWCAP2) & HAS_BF16) != 0;
}

#pragma GCC target("arch=armv8.2-a+bf16+dotprod")

#include "neon.h"

namespace toolwire {

constexpr long STRETCH = 1L << 40;  // inputs that a tile multiplies before it takes the next rows: all

inline void store(Bf16* at, Floats values) { vst1_bf16((bfloat16_t*)at, vcvt_bf16_f32(values)); }
inline void store(Bf16* at, Floats values, int count) {
    const bfloat16x4_t bits = vcvt_bf16_f32(values);
    std::memcpy(at, &bits, count * sizeof(Bf16));
}

}  // namespace toolwire

#include "vec.h"

namespace toolwire {

// Multiplied in pairs; both operands stay bfloat16.
template <> struct Elements<Bf16> {
    using Input = Bf16;
    using Bits = uint16x8_t;
    static constexpr int PAIR = 2;
    static constexpr int STEP = 8;

    static Bits load(const Bf16* at) { return vld1q_u16(&at->bits); }
    static Bits everywhere(const Bf16* pair) {
        uint32_t bits;
        std::memcpy(&bits, pair, sizeof(bits));
        return vreinterpretq_u16_u32(vdupq_n_u32(bits));
    }
    static Floats dot(Floats sum, Bits a, Bits b) {
        return vbfdotq_f32(sum, vreinterpretq_bf16_u16(a), vreinterpretq_bf16_u16(b));
    }
    static Bits first_of_pairs(Bits values) {
        return vandq_u16(values, vreinterpretq_u16_u32(vdupq_n_u32(0xffff)));
    }
};

}  // namespace toolwire

#include "step.h"
