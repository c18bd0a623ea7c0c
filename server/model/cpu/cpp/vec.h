// Vector layer that products, norms and attention are written in.
//
// A file for each instruction set (`avx2.cpp`, `avx512.cpp`, `avx512_bf16.cpp`) defines before it includes this one:
//
//     Floats, Ints, Mask    registers of LANES float32, int32 and of what selects lanes; + - * / are the compiler's own
//     all, load, store, fma, ...    operations on them. load widens bfloat16 and bytes, store rounds to bfloat16, to
//                                   nearest even; with a count, they touch the first lanes alone; load_half widens float16
//     dot_words                     adds the products of pairs of 16-bit integers to the lanes of a sum
//     ByteSums<WIDTH>               sums of products of four codes of this width in a lane with signed bytes: `add`, and
//                                   after WORDS of them `widened`, to int32 (where it WIDENS: else it does nothing).
//                                   Where it IS_SIGNED, codes are signed bytes, those of eight bits less 128.
//     QUERIES, ROW_TOKENS, PANEL_TOKENS, rows_at_once, STRETCH    sizes of tiles, which depend on the number of registers
//
// Each set is a library of its own, so that the linker takes no inline function of one for another.
#pragma once

#include "base.h"

namespace toolwire {

constexpr int GROUP = 16;  // outputs that a tile of a product has at most; a multiple of LANES

// Elements multiplied as float32, into which bfloat16 is widened.
template <class E> struct Widened {
    using Input = float;  // what is multiplied with weights, keys and values of type E
    using Bits = Floats;  // a register of elements
    static constexpr int PAIR = 1;      // elements in a lane
    static constexpr int STEP = LANES;  // elements in a register

    template <class T> static Bits load(const T* at) { return toolwire::load(at); }
    static Bits everywhere(const float* input) { return all(*input); }
    static Floats dot(Floats sum, Bits a, Bits b) { return fma(a, b, sum); }
    static Bits first_of_pairs(Bits values) { return values; }
};

// How elements of a type are multiplied; a set with bfloat16 products specializes it.
template <class E> struct Elements : Widened<E> {};

// e^x to 2 ulp (Cephes' polynomial); 0 below -87.
inline Floats exponential(Floats x) {
    const Floats low = all(-87.0f), high = all(88.0f);
    Floats held = min(high, max(low, x));  // NaN stays NaN
    Floats power = nearest(held * all(1.44269504088896341f));
    Floats rest = fnma(power, all(0.693359375f), held);
    rest = fnma(power, all(-2.12194440e-4f), rest);
    Floats sum = all(1.9875691500e-4f);
    sum = fma(sum, rest, all(1.3981999507e-3f));
    sum = fma(sum, rest, all(8.3334519073e-3f));
    sum = fma(sum, rest, all(4.1665795894e-2f));
    sum = fma(sum, rest, all(1.6666665459e-1f));
    sum = fma(sum, rest, all(5.0000001201e-1f));
    sum = fma(sum, rest * rest, rest + all(1.0f));
    return scale_unless_below(low, x, sum, power);
}

inline Floats sigmoid(Floats x) { return all(1.0f) / (all(1.0f) + exponential(Floats{} - x)); }
inline Floats silu(Floats x) { return x / (all(1.0f) + exponential(Floats{} - x)); }

// Maximum and its id in each lane so far; the lowest id of equal ones.
struct Peaks {
    Floats values;
    Ints ids;

    void see(Floats numbers, long first, Mask own) {
        Mask above = greater(own, numbers, values);
        values = select(above, numbers, values);
        ids = select(above, ids_from((int)first), ids);
    }
};

}  // namespace toolwire
