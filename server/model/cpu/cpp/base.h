// What needs no vectors: a bfloat16 number, and sizes.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace toolwire {

struct Bf16 {
    uint16_t bits;
};

inline long at_most(long a, long b) { return a < b ? a : b; }

// Rounds up to a multiple of `unit`.
constexpr long rounded_up(long size, long unit) { return (size + unit - 1) / unit * unit; }

}  // namespace toolwire
