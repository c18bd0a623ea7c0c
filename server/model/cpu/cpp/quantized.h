// Matrix products of tokens with weights of few bits in groups, laid out as in quantization/packed_weight.py.
//
// Inputs are rounded to integers of sixteen bits with a scale for each block of 32: finer than bfloat16, whose numbers
// have eight bits. Products and their sums within a block are integers and exact; those of the blocks are added in
// float32 in the order of the inputs. Thus an output is the same whatever the number of tokens.
#pragma once

#include <omp.h>

#include <type_traits>
#include <vector>

#include "vec.h"

extern "C" {
struct Quantized {  // mirrored by the ctypes structure in server/model/cpu/library.py
    int64_t width;  // bits of a code
    int64_t inputs, outputs;
    int64_t group, offset, scale_type, super_group;  // groups of a super-group
    const void* codes;
    const void *scales, *minimums;              // minimums or null
    const void *super_scales, *super_minimums;  // with scales of int8
};
}

namespace toolwire {

constexpr int BLOCK = 32;             // inputs
constexpr int PAIRS = BLOCK / 2;      // of inputs in a block
constexpr int PARTS = GROUP / LANES;  // registers of a panel's outputs
constexpr int DIRECT_TOKENS = 4;      // tokens that share codes as they are unpacked
constexpr int FEW_TOKENS = 8;         // more tokens are multiplied with codes that were unpacked before
constexpr int STRETCH_BLOCKS = 16;    // blocks that are unpacked at a time and stay in the first cache
constexpr int STRIP_TOKENS = 96;      // tokens that a thread computes at a time, at most
constexpr long STRIP_BYTES = 384 << 10;  // of their inputs, which stay in a core's own cache
constexpr long MOST_PANELS = 4;          // that a thread computes at a time
enum ScaleType { FLOAT16, FLOAT32, INT8 };

typedef uint16_t Words __attribute__((vector_size(4 * LANES)));  // a pair of codes or inputs for each lane
typedef int32_t Wide __attribute__((vector_size(4 * LANES)));
typedef int16_t Narrow __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef float Numbers __attribute__((vector_size(4 * LANES)));

// The description of quantized weights, where a pointer to weights is marked by its lowest bit; else null.
inline const Quantized* as_quantized(const void* weights) {
    return (intptr_t)weights & 1 ? (const Quantized*)((intptr_t)weights - 1) : nullptr;
}

template <class V> inline V read(const void* at) {
    V values;
    std::memcpy(&values, at, sizeof(V));
    return values;
}

// Inputs [tokens, size] as integers, with the scale of each block, and the sum of each half of one times that scale.
struct Rounded {
    int16_t* words;
    float *scales, *sums;
    long size;

    static long bytes(long tokens, long size) { return tokens * (size * 2 + size / BLOCK * 12); }
    Rounded(void* at, long tokens, long size)
        : words((int16_t*)at), scales((float*)(words + tokens * size)), sums(scales + tokens * (size / BLOCK)),
          size(size) {}

    template <class I> void round(const I* inputs, long tokens) const {
        for (long block = 0; block < tokens * size / BLOCK; block++) round_block(inputs + block * BLOCK, block);
    }

  private:
    template <class I> void round_block(const I* inputs, long block) const {
        Floats values[BLOCK / LANES], greatest = Floats{};
        bool broken = false;
        for (int part = 0; part < BLOCK / LANES; part++) {
            values[part] = load(inputs + part * LANES);
            greatest = max(greatest, max(values[part], Floats{} - values[part]));
            broken |= is_broken(first_lanes(LANES), values[part]);
        }
        const float most = max_of(greatest), least = 1e-30f;  // whose reciprocal is finite
        const bool empty = broken || !(most > least);
        const float scale = broken ? NAN : empty ? 0.0f : most / 32767.0f;
        const Floats inverse = all(empty ? 0.0f : 32767.0f / most);
        scales[block] = scale;
        Floats sum[2] = {};
        for (int part = 0; part < BLOCK / LANES; part++) {
            const Floats whole = empty ? Floats{} : nearest(values[part] * inverse);
            const Narrow own = __builtin_convertvector(__builtin_convertvector((Numbers)whole, Wide), Narrow);
            std::memcpy(words + block * BLOCK + part * LANES, &own, sizeof own);
            sum[part * LANES / GROUP] = sum[part * LANES / GROUP] + whole;
        }
        for (int half = 0; half < 2; half++) sums[2 * block + half] = sum_of(sum[half]) * scale;
    }
};

// Scales and shifts of a panel's groups: weight = scale * code + shift.
class PanelScales {
  public:
    PanelScales(const Quantized& weights, long panel)
        : weights(weights), groups(weights.inputs / weights.group), panel(panel) {}

    Floats scale(long group, int part) const { return number(weights.scales, weights.super_scales, group, part); }
    Floats shift(long group, int part, Floats scale) const {
        if (!weights.minimums) return scale * all(-(float)weights.offset);
        return Floats{} - number(weights.minimums, weights.super_minimums, group, part);
    }

  private:
    const Quantized& weights;
    const long groups, panel;

    Floats number(const void* numbers, const void* supers, long group, int part) const {
        const long at = (panel * groups + group) * GROUP + part * LANES;
        switch (weights.scale_type) {
        case FLOAT16: return load_half((const uint16_t*)numbers + at);
        case FLOAT32: return load((const float*)numbers + at);
        default:
            const long above = panel * (groups / weights.super_group) + group / weights.super_group;
            const Wide wide = __builtin_convertvector(read<Bytes>((const int8_t*)numbers + at), Wide);
            const Floats each = (Floats)__builtin_convertvector(wide, Numbers);
            return each * load((const float*)supers + above * GROUP + part * LANES);
        }
    }
};

// A panel's codes, unpacked pair by pair.
template <int WIDTH> class Packed {
  public:
    static constexpr long BLOCK_BYTES = 64 * WIDTH;

    Packed(const Quantized& weights, long panel)
        : scales(weights, panel), group(weights.group), blocks(weights.inputs / BLOCK),
          codes((const uint8_t*)weights.codes + panel * blocks * BLOCK_BYTES) {}

    const uint8_t* block(long index) const { return codes + index * BLOCK_BYTES; }

    // The codes of a pair of inputs for the outputs of a part; `pair` is constant where this is inlined.
    [[gnu::always_inline]] static inline Words pair(const uint8_t* block, int pair, int part) {
        if constexpr (WIDTH == 8) return bits<8>(block, pair, part);
        Words low = bits<4>(block, pair, part);
        if constexpr (WIDTH == 5) return low | bits<1>(block + 256, pair, part) << 4;
        if constexpr (WIDTH == 6) return low | bits<2>(block + 256, pair, part) << 4;
        return low;
    }

    template <int HALVES> Floats scale(long block, int half, int part) const {
        return scales.scale(group_of<HALVES>(block, half), part);
    }
    template <int HALVES> Floats shift(long block, int half, int part, Floats scale) const {
        return scales.shift(group_of<HALVES>(block, half), part, scale);
    }
    static void prefetch(const uint8_t* block) {
        for (long line = 0; line < BLOCK_BYTES; line += 64) __builtin_prefetch(block + 2048 + line, 0, 2);
    }

  private:
    const PanelScales scales;
    const long group, blocks;
    const uint8_t* codes;

    template <int HALVES> long group_of(long block, int half) const {
        return HALVES == 2 ? 2 * block + half : block * BLOCK / group;
    }
    template <int BITS> [[gnu::always_inline]] static inline Words bits(const uint8_t* at, int pair, int part) {
        constexpr int EACH = 16 / BITS;  // pairs in a word
        const Words words = read<Words>(at + pair / EACH * 64 + part * sizeof(Words)) >> (pair % EACH * BITS);
        return pair % EACH == EACH - 1 ? words : words & (uint16_t)((1 << BITS) - 1);
    }
};

// Some blocks of a panel, unpacked for many tokens.
class Unpacked {
  public:
    template <int WIDTH, int HALVES> void unpack(const Packed<WIDTH>& packed, long begin, long end) {
        first = begin;
        for (long index = begin; index < end; index++) {
            const uint8_t* from = packed.block(index);
            packed.prefetch(from);
            uint8_t* to = words + (index - begin) * BLOCK_BYTES;
#pragma GCC unroll 16
            for (int pair = 0; pair < PAIRS; pair++)
                for (int part = 0; part < PARTS; part++) {
                    const Words own = packed.pair(from, pair, part);
                    std::memcpy(to + (pair * PARTS + part) * sizeof(Words), &own, sizeof own);
                }
            for (int half = 0; half < HALVES; half++)
                for (int part = 0; part < PARTS; part++) {
                    const Floats own = packed.template scale<HALVES>(index, half, part);
                    store(place(scales, index, half, part), own);
                    store(place(shifts, index, half, part), packed.template shift<HALVES>(index, half, part, own));
                }
        }
    }

    const uint8_t* block(long index) const { return words + (index - first) * BLOCK_BYTES; }
    [[gnu::always_inline]] static inline Words pair(const uint8_t* block, int pair, int part) {
        return read<Words>(block + (pair * PARTS + part) * sizeof(Words));
    }
    template <int HALVES> Floats scale(long block, int half, int part) const {
        return load(place(scales, block, half, part));
    }
    template <int HALVES> Floats shift(long block, int half, int part, Floats) const {
        return load(place(shifts, block, half, part));
    }
    static void prefetch(const uint8_t*) {}

  private:
    static constexpr long BLOCK_BYTES = BLOCK * GROUP * 2;

    alignas(64) uint8_t words[STRETCH_BLOCKS * BLOCK_BYTES];
    alignas(64) float scales[STRETCH_BLOCKS * 2 * GROUP], shifts[STRETCH_BLOCKS * 2 * GROUP];
    long first;

    template <class F> auto place(F* at, long block, int half, int part) const {
        return &at[((block - first) * 2 + half) * GROUP + part * LANES];
    }
};

// Adds the products of M tokens with blocks [begin, end) of a panel to `totals`.
template <int M, int HALVES, class Codes>
inline void add_blocks(const Codes& codes, const Rounded& inputs, long token, long begin, long end,
                       float (*totals)[GROUP]) {
    const long blocks = inputs.size / BLOCK;
    Floats total[M][PARTS];
    for (int m = 0; m < M; m++)
        for (int part = 0; part < PARTS; part++) total[m][part] = load(totals[m] + part * LANES);
    for (long block = begin; block < end; block++) {
        const uint8_t* own = codes.block(block);
        codes.prefetch(own);
        const int16_t* words = inputs.words + token * inputs.size + block * BLOCK;
#pragma GCC unroll 2
        for (int half = 0; half < HALVES; half++) {
            Ints sum[M][PARTS];
            for (int m = 0; m < M; m++)
                for (int part = 0; part < PARTS; part++) sum[m][part] = Ints{};
#pragma GCC unroll 16
            for (int pair = half * (PAIRS / HALVES); pair < (half + 1) * (PAIRS / HALVES); pair++) {
                Words weight[PARTS];
                for (int part = 0; part < PARTS; part++) weight[part] = codes.pair(own, pair, part);
                for (int m = 0; m < M; m++) {
                    const Words input = (Words)(Wide{} + read<int32_t>(words + m * inputs.size + 2 * pair));
                    for (int part = 0; part < PARTS; part++)
                        sum[m][part] = dot_words(sum[m][part], (Ints)input, (Ints)weight[part]);
                }
            }
            for (int part = 0; part < PARTS; part++) {
                const Floats scale = codes.template scale<HALVES>(block, half, part);
                const Floats shift = codes.template shift<HALVES>(block, half, part, scale);
                for (int m = 0; m < M; m++) {
                    const long at = (token + m) * blocks + block;
                    const float* sums = inputs.sums + 2 * at;
                    const Floats whole = (Floats)__builtin_convertvector((Wide)sum[m][part], Numbers);
                    total[m][part] = fma(scale, whole * all(inputs.scales[at]), total[m][part]);
                    total[m][part] = fma(shift, all(HALVES == 2 ? sums[half] : sums[0] + sums[1]), total[m][part]);
                }
            }
        }
    }
    for (int m = 0; m < M; m++)
        for (int part = 0; part < PARTS; part++) store(totals[m] + part * LANES, total[m][part]);
}

// `count` tokens, at most M, as `add_blocks`.
template <int M, int HALVES, class Codes>
inline void add_tokens(int count, const Codes& codes, const Rounded& inputs, long token, long begin, long end,
                       float (*totals)[GROUP]) {
    if constexpr (M > 1)
        if (count < M) return add_tokens<M - 1, HALVES>(count, codes, inputs, token, begin, end, totals);
    add_blocks<M, HALVES>(codes, inputs, token, begin, end, totals);
}

// All tokens of a strip in tiles of at most M, of nearly the same size.
template <int M, int HALVES, class Codes>
inline void add_strip(const Codes& codes, const Rounded& inputs, long tokens, long begin, long end,
                      float (*totals)[GROUP]) {
    for (long tiles = (tokens + M - 1) / M, done = 0; tiles > 0; tiles--) {
        const int count = (int)((tokens - done + tiles - 1) / tiles);
        add_tokens<M, HALVES>(count, codes, inputs, done, begin, end, totals + done);
        done += count;
    }
}

// totals [tokens, GROUP] = inputs times a panel.
template <int WIDTH, int HALVES>
void multiply_panel(const Quantized& weights, long panel, const Rounded& inputs, long tokens, float (*totals)[GROUP]) {
    const Packed<WIDTH> packed(weights, panel);
    const long blocks = inputs.size / BLOCK;
    std::memset(totals, 0, tokens * sizeof(*totals));
    if (tokens <= FEW_TOKENS) return add_strip<DIRECT_TOKENS, HALVES>(packed, inputs, tokens, 0, blocks, totals);
    Unpacked unpacked;
    for (long begin = 0; begin < blocks; begin += STRETCH_BLOCKS) {
        const long end = at_most(begin + STRETCH_BLOCKS, blocks);
        unpacked.unpack<WIDTH, HALVES>(packed, begin, end);
        add_strip<PANEL_TOKENS, HALVES>(unpacked, inputs, tokens, begin, end, totals);
    }
}

// act(width, halves): both as types of constants.
template <class Act> inline void with_form(const Quantized& weights, Act act) {
    auto with = [&](auto halves) {
        switch (weights.width) {
        case 4: return act(std::integral_constant<int, 4>{}, halves);
        case 5: return act(std::integral_constant<int, 5>{}, halves);
        case 6: return act(std::integral_constant<int, 6>{}, halves);
        default: return act(std::integral_constant<int, 8>{}, halves);
        }
    };
    weights.group == GROUP ? with(std::integral_constant<int, 2>{}) : with(std::integral_constant<int, 1>{});
}

inline void multiply_panel(const Quantized& weights, long panel, const Rounded& inputs, long tokens,
                           float (*totals)[GROUP]) {
    with_form(weights, [&](auto width, auto halves) {
        multiply_panel<decltype(width)::value, decltype(halves)::value>(weights, panel, inputs, tokens, totals);
    });
}

// The weights of one output in float32.
template <int WIDTH, int HALVES> void read_output(const Quantized& weights, long output, float* row) {
    const Packed<WIDTH> packed(weights, output / GROUP);
    const int part = (int)(output % GROUP) / LANES, lane = (int)(output % GROUP) % LANES;
    for (long block = 0; block < weights.inputs / BLOCK; block++)
        for (int half = 0; half < HALVES; half++) {
            const Floats scale = packed.template scale<HALVES>(block, half, part);
            const Floats shift = packed.template shift<HALVES>(block, half, part, scale);
            for (int pair = half * (PAIRS / HALVES); pair < (half + 1) * (PAIRS / HALVES); pair++) {
                const Words codes = packed.pair(packed.block(block), pair, part);
                for (int i = 0; i < 2; i++)
                    row[block * BLOCK + 2 * pair + i] = std::fma(scale[lane], (float)codes[2 * lane + i], shift[lane]);
            }
        }
}

inline void read_output(const Quantized& weights, long output, float* row) {
    with_form(weights, [&](auto width, auto halves) {
        read_output<decltype(width)::value, decltype(halves)::value>(weights, output, row);
    });
}

// Splits a product with weights of this shape into strips of tokens by panels, distributed over the threads of the
// calling parallel region, which needs a barrier afterwards. `use(panel, rounded, token, tokens, outputs)` computes one;
// `rounded` holds the inputs of these tokens, which every thread rounds for itself.
template <class I, class Use>
inline void by_panels(const I* inputs, long tokens, const Quantized& shape, Use use) {
    const long size = shape.inputs;
    const long strip = at_most(STRIP_TOKENS, rounded_up(1 + STRIP_BYTES / (size * 2), 2 * PANEL_TOKENS));
    const long strips = (tokens + strip - 1) / strip, panels = (shape.outputs + GROUP - 1) / GROUP;
    const long width = at_most(panels / (4 * omp_get_num_threads()) + 1, MOST_PANELS);
    const long columns = (panels + width - 1) / width;
    thread_local std::vector<char> memory;
    const unsigned long needed = Rounded::bytes(at_most(strip, tokens), size);
    if (memory.size() < needed) memory.resize(needed);
    const Rounded rounded(memory.data(), at_most(strip, tokens), size);
    long held = -1;  // the strip that is rounded
#pragma omp for schedule(dynamic, 1) nowait
    for (long item = 0; item < strips * columns; item++) {
        const long token = item / columns * strip, count = at_most(strip, tokens - token);
        if (held != token) rounded.round(inputs + token * size, count);
        held = token;
        const long left = item % columns * width;
        for (long panel = left; panel < at_most(left + width, panels); panel++)
            use(panel, rounded, token, count, (int)at_most(GROUP, shape.outputs - panel * GROUP));
    }
}

// inputs times weights, distributed as by `by_panels`; `keep(token, column, count, sums)` gets a register at a time.
template <class I, class Keep>
void project_quantized(const I* inputs, long tokens, const Quantized& weights, Keep keep) {
    auto use = [=, &weights](long panel, const Rounded& rounded, long token, long count, int width) {
        float totals[STRIP_TOKENS][GROUP];
        multiply_panel(weights, panel, rounded, count, totals);
        for (long i = 0; i < count; i++)
            for (int first = 0; first < width; first += LANES)
                keep(token + i, panel * GROUP + first, (int)at_most(LANES, width - first), load(totals[i] + first));
    };
    by_panels(inputs, tokens, weights, use);
}

// The same of two weights of one shape; `keep(token, column, count, sums, other_sums)`.
template <class I, class Keep>
void project_both(const I* inputs, long tokens, const Quantized& one, const Quantized& other, Keep keep) {
    auto use = [=, &one, &other](long panel, const Rounded& rounded, long token, long count, int width) {
        float totals[STRIP_TOKENS][GROUP], others[STRIP_TOKENS][GROUP];
        multiply_panel(one, panel, rounded, count, totals);
        multiply_panel(other, panel, rounded, count, others);
        for (long i = 0; i < count; i++)
            for (int first = 0; first < width; first += LANES)
                keep(token + i, panel * GROUP + first, (int)at_most(LANES, width - first), load(totals[i] + first),
                     load(others[i] + first));
    };
    by_panels(inputs, tokens, one, use);
}

}  // namespace toolwire
