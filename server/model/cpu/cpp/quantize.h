// Quantization of plain weights: the range of each group, its codes, and their layout (quantization/packed_weight.py).
#pragma once

#include "quantized.h"

namespace toolwire {

constexpr int FITTED = 32;       // weights of a group whose range is fitted
constexpr float MOST_CODE = 15;  // in four bits
constexpr float SHRUNK[] = {1.0f, 0.95f, 0.9f, 0.85f, 0.8f, 0.7f};  // candidates for a range, as shares of the whole

typedef uint8_t Octets __attribute__((vector_size(LANES)));

struct Fit {
    float scale, minimum;  // weight = scale * code - minimum
};

// The range that loses least, in the sum of squares, each candidate corrected by least squares.
template <class E> inline Fit fit_group(const E* weights) {
    constexpr int PARTS = FITTED / LANES;
    Floats values[PARTS], highest = all(-INFINITY), lowest = all(-INFINITY), total = Floats{};
    for (int part = 0; part < PARTS; part++) {
        values[part] = load(weights + part * LANES);
        highest = max(highest, values[part]);
        lowest = max(lowest, Floats{} - values[part]);
        total = total + values[part];
    }
    const float high = max_of(highest), low = -max_of(lowest), middle = (low + high) / 2, half = (high - low) / 2;
    const float sum = sum_of(total);
    Fit best = {0.0f, sum - sum == 0 ? -middle : sum};  // what is not finite stays so
    if (!(half > 0.0f)) return best;
    const float mean = sum / FITTED - middle;
    float least = INFINITY;
    for (const float shrunk : SHRUNK) {
        const Floats inverse = all(MOST_CODE / 2 / (half * shrunk));
        Floats codes[PARTS], sum_codes = Floats{}, sum_squares = Floats{}, sum_products = Floats{};
        for (int part = 0; part < PARTS; part++) {
            const Floats centred = values[part] - all(middle);
            codes[part] = min(all(MOST_CODE), max(Floats{}, nearest(fma(centred, inverse, all(MOST_CODE / 2)))));
            sum_codes = sum_codes + codes[part];
            sum_squares = fma(codes[part], codes[part], sum_squares);
            sum_products = fma(codes[part], centred, sum_products);
        }
        const float mean_code = sum_of(sum_codes) / FITTED;
        const float spread = sum_of(sum_squares) - FITTED * mean_code * mean_code;
        if (!(spread > 0.0f)) continue;
        const float scale = (sum_of(sum_products) - FITTED * mean_code * mean) / spread;
        const float minimum = mean_code * scale - mean - middle;
        Floats lost = Floats{};
        for (int part = 0; part < PARTS; part++) {
            const Floats off = fma(codes[part], all(scale), Floats{} - all(minimum)) - values[part];
            lost = fma(off, off, lost);
        }
        const float own = sum_of(lost);
        if (own < least) {
            least = own;
            best = {scale, minimum};
        }
    }
    return best;
}

template <class E> void fit_groups(const E* weights, long groups, float* scales, float* minimums, long threads) {
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (long group = 0; group < groups; group++) {
        const Fit found = fit_group(weights + group * FITTED);
        scales[group] = found.scale;
        minimums[group] = found.minimum;
    }
}

// codes = weight * inverse + shift of its group, to nearest, within [lowest, greatest]; `size` is a multiple of LANES.
template <class E>
void round_groups(const E* weights, long groups, long size, const float* inverses, const float* shifts, float lowest,
                  float greatest, uint8_t* codes, long threads) {
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (long group = 0; group < groups; group++)
        for (long i = group * size; i < (group + 1) * size; i += LANES) {
            const Floats exact = fma(load(weights + i), all(inverses[group]), all(shifts[group]));
            const Floats whole = min(all(greatest), max(all(lowest), nearest(exact)));
            const Octets own = __builtin_convertvector(__builtin_convertvector((Numbers)whole, Wide), Octets);
            std::memcpy(codes + i, &own, sizeof own);
        }
}

// Writes `bits` of each code, from `shift` on, of a panel's block: 32 inputs of `outputs` rows (at most 16).
inline void pack_block(const uint8_t* codes, long inputs, int outputs, int bits, int shift, uint8_t* bytes) {
    const int in_byte = 8 / bits, mask = (1 << bits) - 1;
    for (int step = 0; step < bits; step++)
        for (int output = 0; output < GROUP; output++)
            for (int byte = 0; byte < 4; byte++) {
                int packed = 0;
                for (int place = 0; place < in_byte && output < outputs; place++) {
                    const int input = (step * in_byte + place) * 4 + byte;
                    packed |= (codes[output * inputs + input] >> shift & mask) << (bits * place);
                }
                *bytes++ = (uint8_t)packed;
            }
}

}  // namespace toolwire

extern "C" {

// rows [count, inputs]: the weights of these outputs in float32.
void toolwire_read(const Quantized* weights, const int64_t* outputs, int64_t count, float* rows, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads((int)(count < 64 ? 1 : threads))
    for (long i = 0; i < count; i++) toolwire::read_output(*weights, outputs[i], rows + i * weights->inputs);
}

// Ranges of groups of 32 weights, for codes of four bits.
void toolwire_fit(int64_t is_bf16, const void* weights, int64_t groups, float* scales, float* minimums,
                  int64_t threads) {
    is_bf16 ? toolwire::fit_groups((const toolwire::Bf16*)weights, groups, scales, minimums, threads)
            : toolwire::fit_groups((const float*)weights, groups, scales, minimums, threads);
}

// Codes of groups of `size` weights; `bounds` are the least and the greatest code.
void toolwire_round(int64_t is_bf16, const void* weights, int64_t groups, int64_t size, const float* inverses,
                    const float* shifts, const float* bounds, uint8_t* codes, int64_t threads) {
    using namespace toolwire;
    is_bf16 ? round_groups((const Bf16*)weights, groups, size, inverses, shifts, bounds[0], bounds[1], codes, threads)
            : round_groups((const float*)weights, groups, size, inverses, shifts, bounds[0], bounds[1], codes, threads);
}

// Codes [outputs, inputs] in `width` bits each, in panels of sixteen outputs and blocks of 32 inputs.
void toolwire_pack(const uint8_t* codes, int64_t outputs, int64_t inputs, int64_t width, uint8_t* words,
                   int64_t threads) {
    const long blocks = inputs / 32, panels = (outputs + toolwire::GROUP - 1) / toolwire::GROUP;
    const int low = width == 8 ? 8 : 4, high = (int)width - low;
#pragma omp parallel for schedule(static) num_threads((int)threads)
    for (long panel = 0; panel < panels; panel++)
        for (long block = 0; block < blocks; block++) {
            const uint8_t* from = codes + panel * toolwire::GROUP * inputs + block * 32;
            uint8_t* to = words + (panel * blocks + block) * 64 * width;
            const int own = (int)toolwire::at_most(toolwire::GROUP, outputs - panel * toolwire::GROUP);
            toolwire::pack_block(from, inputs, own, low, 0, to);
            if (high > 0) toolwire::pack_block(from, inputs, own, high, low, to + 64 * low);
        }
}
}
