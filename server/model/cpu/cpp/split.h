// Products of bfloat16 weights that are widened by halves of pairs: a register of 32-bit lanes holds pairs of weights, of
// which a shift widens the first ones and a mask the second ones. Widening neighbours takes twice the instructions.
#pragma once

#include "products.h"

namespace toolwire {

// Of each register's weights the even ones, then the odd ones.
struct ByHalves {
    template <int PART> static Floats part(const Bf16* line) {
        const Bf16* pairs = line + PART / 2 * 2 * LANES;
        return PART % 2 ? odd_of_pairs(pairs) : even_of_pairs(pairs);
    }
};
template <class E> struct SplitRows : OrderedRows<E, ByHalves> {};

// Inputs are copied to the same order.
template <> struct Formats<Bf16> {
    using Long = SplitRows<Bf16>;
    static constexpr long SHORT = 512;
    static constexpr bool LAYS_OUT = true;

    static long elements(long tokens, long size) { return tokens * size; }
    static void lay_out(const float* rows, long tokens, long size, float* copy) {
        if (size <= SHORT) return;
#pragma omp for schedule(static) nowait
        for (long first = 0; first < tokens * size; first += 2 * LANES) split_pairs(rows + first, copy + first);
    }
};

}  // namespace toolwire
