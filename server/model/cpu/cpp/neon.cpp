// Kernels for 64-bit ARM without bfloat16 products.

extern "C" int toolwire_is_supported() { return 1; }

#include "neon.h"

namespace toolwire {

constexpr long STRETCH = 1024;   // inputs of six tokens that stay in the first cache while sixteen rows are multiplied

// To nearest even; NaN stays NaN.
inline uint16x4_t rounded(Floats values) {
    const uint32x4_t bits = vreinterpretq_u32_f32(values);
    const uint32x4_t even = vandq_u32(vshrq_n_u32(bits, 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(bits, vaddq_u32(even, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(bits, vdupq_n_u32(1 << 22));
    return vshrn_n_u32(vbslq_u32(vceqq_f32(values, values), up, quiet), 16);
}
inline void store(Bf16* at, Floats values) { vst1_u16(&at->bits, rounded(values)); }
inline void store(Bf16* at, Floats values, int count) {
    const uint16x4_t bits = rounded(values);
    std::memcpy(at, &bits, count * sizeof(Bf16));
}

}  // namespace toolwire

#include "step.h"
