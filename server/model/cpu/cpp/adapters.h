// Low-rank adapters (LoRA): what the adapter of a token adds to the outputs of a layer's projections.
//
//     outputs += B (A inputs)        A: [rank, inputs], B: [outputs, rank], which its scale is multiplied into
//
// A is multiplied as weights are that are read row by row; B input after input in float32, in the tile that the
// projection itself has just summed. Both in an order that depends on the rank alone, so a token's result does not
// depend on the adapters of others.
#pragma once

#include "products.h"

// Mirrored by the ctypes structures in server/model/cpu/library.py.
extern "C" {
struct LowRank {  // of one projection; rank 0: the adapter leaves it as it is
    int64_t rank;
    const void *down, *up;  // A in rows; B in panels [outputs / 16, rank, 16], the last one filled up with zeros
};

struct AdapterLayer {
    LowRank parts[8];
};
}

namespace toolwire {

// Places in `AdapterLayer::parts`: up to four projections of one input (query, key and value; those of a recurrent
// state), the one that follows attention, and the MLP's.
enum Part { PROJECTED = 0, MIXED_OUTPUT = 4, MLP_GATE = 5, MLP_UP = 6, MLP_DOWN = 7 };
constexpr int AT_ONCE = 4;  // projections of one input

// The adapters of a step's tokens, at one layer.
template <class E> struct Adapters {
    const AdapterLayer* const* of_tokens;  // the first layer of each token's adapter, or null; null: none has one
    float* squeezed;                       // A inputs [AT_ONCE, tokens, stride]
    long tokens, stride, layer;

    Adapters at(long layer) const { return {of_tokens, squeezed, tokens, stride, layer}; }

    // Computes A inputs of `count` parts from `first` on, for inputs [tokens, size]; every thread of the parallel region
    // calls it.
    void squeeze(const Input<E>* inputs, long size, int first, int count) const {
        if (!of_tokens) return;
        for (long token = 0, end; token < tokens; token = end) {
            const AdapterLayer* own = of_tokens[token];
            for (end = token + 1; end < tokens && of_tokens[end] == own; end++) {}
            for (int part = first; own && part < first + count; part++)
                if (const LowRank& low = own[layer].parts[part]; low.rank)
                    multiply_rows(low, inputs, size, token, end, part - first);
        }
#pragma omp barrier
    }

    // A register of sums of one part's outputs from `column` on, with what the token's adapter adds; `place`: of the
    // part among those that were squeezed.
    Floats add(int part, int place, long token, long column, Floats sums) const {
        const AdapterLayer* own = of_tokens[token];
        if (!own || !own[layer].parts[part].rank) return sums;
        const LowRank& low = own[layer].parts[part];
        const float* numbers = squeezed + (place * tokens + token) * stride;
        const E* panel = (const E*)low.up + column / GROUP * GROUP * low.rank + column % GROUP;
        Floats totals[4] = {};  // one sum would wait for itself
        long k = 0;
        for (; k + 4 <= low.rank; k += 4)
            for (int i = 0; i < 4; i++) totals[i] = fma(all(numbers[k + i]), load(panel + (k + i) * GROUP), totals[i]);
        for (; k < low.rank; k++) totals[0] = fma(all(numbers[k]), load(panel + k * GROUP), totals[0]);
        return sums + ((totals[0] + totals[1]) + (totals[2] + totals[3]));
    }

  private:
    // A times the inputs of the tokens from `begin` to `end`.
    void multiply_rows(const LowRank& low, const Input<E>* inputs, long size, long begin, long end, int place) const {
        using Form = Rows<E>;
        const Form form{(const E*)low.down, size};
        const Operand<E> own{inputs + begin * size, nullptr};
        float* results = squeezed + (place * tokens + begin) * stride;
        const long row = stride, row_bytes = size * sizeof(Input<E>);
        product<Form>(end - begin, low.rank, row_bytes, [=](long token, int m, long column, int count) {
            float sums[Form::TOKENS][GROUP];
            multiply(form, own, token, m, column, count, sums);
            for (int i = 0; i < m; i++)
                std::memcpy(results + (token + i) * row + column, sums[i], count * sizeof(float));
        });
    }
};

// What a projection's sums become before they are used: `Unchanged`, or with what adapters add.
template <class E> struct Adapted {
    const Adapters<E>& adapters;
    int part, place = 0;

    Floats operator()(long token, long column, Floats sums) const {
        return adapters.of_tokens ? adapters.add(part, place, token, column, sums) : sums;
    }
};

}  // namespace toolwire
