// Matrix products of tokens with weights of few bits in groups, laid out as in quantization/packed_weight.py.
//
// Inputs are rounded to integers of sixteen bits with a scale for each span of 256: of a span's greatest they differ by
// 2^-16 at most, numbers of bfloat16 by 2^-9 of themselves. Products and their sums within a block are integers and
// exact; those of blocks are added in float32 in the order of the inputs. Thus an output is the same whatever the
// number of tokens.
#pragma once

#include <omp.h>

#include <type_traits>
#include <vector>

#include "scales.h"

namespace toolwire {

constexpr int PAIRS = BLOCK / 2;                   // of inputs in a block
constexpr int TILE_TOKENS = PANEL_TOKENS;          // that are multiplied at a time, at most
constexpr int DIRECT_TILES = LANES == 16 ? 3 : 1;  // more tiles are multiplied with codes that were unpacked before
constexpr int STRIP_TOKENS = 96;                   // tokens that a thread computes at a time, at most
constexpr long STRIP_BYTES = 384 << 10;            // of their inputs, which stay in a core's own cache
constexpr long MOST_PANELS = 16;                   // that a thread computes at a time, a multiple of TOGETHER

typedef uint16_t Words __attribute__((vector_size(4 * LANES)));  // a pair of codes or inputs for each lane
typedef int32_t Wide __attribute__((vector_size(4 * LANES)));
typedef int16_t Narrow __attribute__((vector_size(2 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef float Numbers __attribute__((vector_size(4 * LANES)));

template <class V> inline V read(const void* at) {
    V values;
    std::memcpy(&values, at, sizeof(V));
    return values;
}

// Inputs of some tokens as integers, with the scale of each span of blocks, and the sums of each block.
// Tokens are in tiles of one size, the last one filled up with zeros. Within a block, a pair of inputs of all tokens of
// a tile is followed by the next pair, so that every token's is found at a distance known to the compiler.
class Rounded {
  public:
    long size;
    int tiles, each;  // tokens of a tile

    static long bytes(long tokens, long size) {
        return padded(tokens) * (size * 2 + blocks(size) * 20 + spans(size) * 4);
    }
    Rounded(void* at, long tokens, long size)
        : size(size), words((int32_t*)at), sums(words + padded(tokens) * blocks(size) * PAIRS),
          float_sums((float*)(sums + padded(tokens) * blocks(size) * 2)),
          scales(float_sums + padded(tokens) * blocks(size) * 3) {}

    template <class I> void round(const I* inputs, long tokens) {
        tiles = (int)tiles_of(tokens);
        each = (int)((tokens + tiles - 1) / tiles);
        for (long token = 0; token < (long)tiles * each; token++)
            for (long span = 0; span < spans(size); span++)
                round_span(token < tokens ? inputs + token * size : nullptr, token / each, token % each, span);
    }

    // A tile's numbers from a block or span on.
    const int32_t* words_of(long tile, long block) const { return words + before(tile, block) * PAIRS; }
    const int32_t* sums_of(long tile, long block) const { return sums + before(tile, block) * 2; }
    const float* float_sums_of(long tile, long block) const { return float_sums + before(tile, block) * 3; }
    const float* scales_of(long tile, long span) const { return scales + (tile * spans(size) + span) * each; }

  private:
    int32_t* words;     // [tiles, blocks, PAIRS, each]
    int32_t* sums;      // [tiles, blocks, 2, each], of halves of a block
    float* float_sums;  // [tiles, blocks, 3, each], the same and that of the block
    float* scales;      // [tiles, spans, each]

    static long blocks(long size) { return size / BLOCK; }
    static long spans(long size) { return (blocks(size) + SPAN_BLOCKS - 1) / SPAN_BLOCKS; }
    // Blocks of tokens that lie before a tile's block.
    long before(long tile, long block) const { return (tile * blocks(size) + block) * each; }
    static long tiles_of(long tokens) { return (tokens + TILE_TOKENS - 1) / TILE_TOKENS; }
    static long padded(long tokens) { return rounded_up(tokens, tiles_of(tokens)); }

    // Inputs of a token, or zeros.
    template <class I> void round_span(const I* inputs, long tile, long place, long span) const {
        const long begin = span * SPAN_BLOCKS, end = at_most(begin + SPAN_BLOCKS, blocks(size));
        Floats greatest = Floats{};
        bool broken = false;
        if (inputs)
            for (long i = begin * BLOCK; i < end * BLOCK; i += LANES) {
                const Floats values = load(inputs + i);
                greatest = max(greatest, max(values, Floats{} - values));
                broken |= is_broken(first_lanes(LANES), values);
            }
        const float most = max_of(greatest), least = 1e-30f;  // whose reciprocal is finite
        const bool empty = broken || !(most > least);
        ((float*)scales_of(tile, span))[place] = broken ? NAN : empty ? 0.0f : most / 32767.0f;
        const Floats inverse = all(empty ? 0.0f : 32767.0f / most);
        for (long block = begin; block < end; block++)
            round_block(empty ? nullptr : inputs + block * BLOCK, inverse, before(tile, block), place);
    }

    template <class I> void round_block(const I* inputs, Floats inverse, long before, long place) const {
        Floats sum[2] = {};
        for (int part = 0; part < BLOCK / LANES; part++) {
            const Floats whole = inputs ? nearest(load(inputs + part * LANES) * inverse) : Floats{};
            const Narrow own = __builtin_convertvector(__builtin_convertvector((Numbers)whole, Wide), Narrow);
            int32_t pairs[LANES / 2];
            std::memcpy(pairs, &own, sizeof own);
            int32_t* to = words + before * PAIRS + part * (LANES / 2) * each + place;
            for (int i = 0; i < LANES / 2; i++) to[i * each] = pairs[i];
            sum[part * LANES / GROUP] = sum[part * LANES / GROUP] + whole;
        }
        const float halves[] = {sum_of(sum[0]), sum_of(sum[1])};  // exact
        for (int half = 0; half < 2; half++) {
            sums[before * 2 + half * each + place] = (int32_t)halves[half];
            float_sums[before * 3 + half * each + place] = halves[half];
        }
        float_sums[before * 3 + 2 * each + place] = halves[0] + halves[1];
    }
};

// The codes of adjacent panels, unpacked pair by pair; parts are those of the first panel, then of the next.
template <int WIDTH> class Packed {
  public:
    static constexpr long BLOCK_BYTES = 64 * WIDTH;
    static constexpr bool HAS_NIBBLES = WIDTH == 4;  // four pairs in a word
    static constexpr bool HAS_OFFSET = true;

    Packed(const Quantized& weights, PanelPair panels)
        : across(panels.across * (weights.inputs / BLOCK) * BLOCK_BYTES),
          codes((const uint8_t*)weights.codes + panels.first * (weights.inputs / BLOCK) * BLOCK_BYTES) {}

    const uint8_t* block(long index) const { return codes + index * BLOCK_BYTES; }

    // The codes of a pair of inputs for the outputs of a part; `pair` is constant where this is inlined.
    [[gnu::always_inline]] inline Words pair(const uint8_t* block, int pair, int part) const {
        block += part / PARTS * across, part %= PARTS;
        if constexpr (WIDTH == 8) return bits<8>(block, pair, part);
        Words low = bits<4>(block, pair, part);
        if constexpr (WIDTH == 5) return low | bits<1>(block + 256, pair, part) << 4;
        if constexpr (WIDTH == 6) return low | bits<2>(block + 256, pair, part) << 4;
        return low;
    }

    // The same of one panel's nibbles where they lie in their words, which saves shifts: times 1, 16, 256 and 1 of four
    // pairs.
    [[gnu::always_inline]] static inline Words nibbles(const uint8_t* block, int pair, int part) {
        const Words words = read<Words>(block + pair / 4 * 64 + part * sizeof(Words));
        return pair % 4 == 3 ? words >> 12 : words & (uint16_t)(15 << (pair % 4 * 4));
    }

    template <int W> void prefetch(const uint8_t* block) const {
        for (int w = 0; w < W; w++)
            for (long line = 0; line < BLOCK_BYTES; line += 64)
                __builtin_prefetch(block + w * across + 4096 + line, 0, 3);
    }

  private:
    const long across;  // bytes from a panel to the next
    const uint8_t* codes;

    template <int BITS> [[gnu::always_inline]] static inline Words bits(const uint8_t* at, int pair, int part) {
        constexpr int EACH = 16 / BITS;  // pairs in a word
        const Words words = read<Words>(at + pair / EACH * 64 + part * sizeof(Words)) >> (pair % EACH * BITS);
        return pair % EACH == EACH - 1 ? words : words & (uint16_t)((1 << BITS) - 1);
    }
};

// Some blocks of W panels, unpacked for many tokens, less their offset.
template <int W> class Unpacked {
  public:
    static constexpr bool HAS_NIBBLES = false, HAS_OFFSET = false;

    template <int WIDTH> void unpack(const Packed<WIDTH>& packed, int32_t offset, long begin, long end) {
        const Words shift = Words{} + (uint16_t)offset;
        first = begin;
        for (long index = begin; index < end; index++) {
            const uint8_t* from = packed.block(index);
            packed.template prefetch<W>(from);
            uint8_t* to = words + (index - begin) * BLOCK_BYTES;
#pragma GCC unroll 16
            for (int pair = 0; pair < PAIRS; pair++)
                for (int part = 0; part < W * PARTS; part++) {
                    const Words own = packed.pair(from, pair, part) - shift;
                    std::memcpy(to + (pair * W * PARTS + part) * sizeof(Words), &own, sizeof own);
                }
        }
    }

    const uint8_t* block(long index) const { return words + (index - first) * BLOCK_BYTES; }
    [[gnu::always_inline]] static inline Words pair(const uint8_t* block, int pair, int part) {
        return read<Words>(block + (pair * W * PARTS + part) * sizeof(Words));
    }
    template <int> static void prefetch(const uint8_t*) {}

  private:
    static constexpr long BLOCK_BYTES = W * BLOCK * GROUP * 2;

    alignas(64) uint8_t words[STRETCH_BLOCKS * BLOCK_BYTES];
    long first;
};

// Adds the products of a tile of M tokens with blocks [begin, end) of W panels to `totals`; `scale` is at the first.
template <int M, int W, int HALVES, class Codes, class Scales>
[[gnu::noinline]] void add_blocks(const Codes& codes, Scales scale, const Rounded& inputs, long tile, long begin,
                                  long end, float (*totals)[W * GROUP]) {
    // Few tokens have several sums for each output, so that one addition does not wait for the last one. One token has
    // one for each of the places of nibbles, which are not shifted but their sums.
    constexpr bool IN_PLACE = Codes::HAS_NIBBLES && M == 1 && W == 1;
    constexpr int OWN = W * PARTS, SUMS = IN_PLACE ? 4 : M * OWN < 4 ? 4 / (M * OWN) : 1;
    const int32_t *words = inputs.words_of(tile, begin), *sums = inputs.sums_of(tile, begin);
    const float *float_sums = inputs.float_sums_of(tile, begin);
    const float *input_scales = inputs.scales_of(tile, begin / SPAN_BLOCKS);
    for (long block = begin; block < end;) {
        Floats total[M][OWN] = {};  // of this span
        for (const long last = at_most(end, block + SPAN_BLOCKS); block < last; block++) {
            const uint8_t* own = codes.block(block);
            codes.template prefetch<W>(own);
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; half++) {
                Ints sum[SUMS][M][OWN] = {};
                if constexpr (Codes::HAS_OFFSET)
                    for (int m = 0; m < M; m++) {
                        const int32_t input_sum = HALVES == 2 ? sums[half * M + m] : sums[m] + sums[M + m];
                        for (int part = 0; part < OWN; part++)
                            sum[0][m][part] = (Ints)(Wide{} - input_sum * scale.offset());
                    }
#pragma GCC unroll 16
                for (int i = 0; i < PAIRS / HALVES; i++) {
                    const int pair = half * (PAIRS / HALVES) + i;
                    Words weight[OWN];
                    for (int part = 0; part < OWN; part++)
                        if constexpr (IN_PLACE) weight[part] = codes.nibbles(own, pair, part);
                        else weight[part] = codes.pair(own, pair, part);
                    for (int m = 0; m < M; m++) {
                        const Words input = (Words)(Wide{} + words[pair * M + m]);
                        for (int part = 0; part < OWN; part++) {
                            Ints& to = sum[i % SUMS][m][part];
                            to = dot_words(to, (Ints)input, (Ints)weight[part]);
                        }
                    }
                }
                for (int part = 0; part < OWN; part++) {
                    const Floats factor = scale.factor(part);
                    for (int m = 0; m < M; m++) {
                        Wide all_sums = (Wide)sum[0][m][part];
                        for (int i = 1; i < SUMS; i++)
                            all_sums += (Wide)sum[i][m][part] >> (IN_PLACE && i < 3 ? 4 * i : 0);
                        const Floats whole = (Floats)__builtin_convertvector(all_sums, Numbers);
                        total[m][part] = fma(factor, whole, total[m][part]);
                    }
                }
                if (scale.has_minimums)
                    for (int part = 0; part < OWN; part++) {
                        const Floats minimum = scale.minimum(part);
                        const float* own_sums = float_sums + (HALVES == 2 ? half : 2) * M;
                        for (int m = 0; m < M; m++) total[m][part] = fnma(minimum, all(own_sums[m]), total[m][part]);
                    }
                scale.advance();
            }
            words += PAIRS * M;
            sums += 2 * M;
            float_sums += 3 * M;
        }
        for (int m = 0; m < M; m++)
            for (int part = 0; part < OWN; part++) {
                float* to = totals[m] + part * LANES;
                store(to, fma(all(input_scales[m]), total[m][part], load(to)));
            }
        input_scales += M;
    }
}

// All tiles as `add_blocks`; each has at most M tokens.
template <int M, int W, int HALVES, class Codes, class Scales>
inline void add_tiles(const Codes& codes, const Scales& scale, const Rounded& inputs, long begin, long end,
                      float (*totals)[W * GROUP]) {
    if constexpr (M > 1)
        if (inputs.each < M) return add_tiles<M - 1, W, HALVES>(codes, scale, inputs, begin, end, totals);
    for (long tile = 0; tile < inputs.tiles; tile++)
        add_blocks<M, W, HALVES>(codes, scale, inputs, tile, begin, end, totals + tile * M);
}

// Sums of tokens with the outputs of panels that are computed together.
using Totals = float[TOGETHER * GROUP];

// totals [tiles of tokens] = inputs times panels, of which the last one counts only if there is one.
template <int WIDTH, int HALVES>
void multiply_panels(const Quantized& weights, PanelPair panels, const Rounded& inputs, Totals* totals) {
    constexpr int W = TOGETHER;
    const long blocks = inputs.size / BLOCK;
    std::memset(totals, 0, inputs.tiles * inputs.each * sizeof(*totals));
    if (inputs.tiles == 1 && inputs.each == 1) {
        for (long w = 0; w <= (W - 1) * panels.across; w++) {
            const PanelPair one{panels.first + w, 0};
            with_scales<HALVES>(weights, one, 0, [&](auto scale) {
                add_blocks<1, 1, HALVES>(Packed<WIDTH>(weights, one), scale, inputs, 0, 0, blocks,
                                         (float(*)[GROUP])(totals[0] + w * GROUP));
            });
        }
        return;
    }
    const Packed<WIDTH> packed(weights, panels);
    PanelScales<W> scales;
    Unpacked<W> unpacked;
    for (long begin = 0; begin < blocks; begin += STRETCH_BLOCKS) {
        const long end = at_most(begin + STRETCH_BLOCKS, blocks);
        const ReadScales<W> first = scales.template read<HALVES>(weights, panels, begin, end);
        if (inputs.tiles <= DIRECT_TILES) {
            add_tiles<TILE_TOKENS, W, HALVES>(packed, first, inputs, begin, end, totals);
        } else {
            unpacked.unpack(packed, first.offset(), begin, end);
            add_tiles<TILE_TOKENS, W, HALVES>(unpacked, first, inputs, begin, end, totals);
        }
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

// The same of weights of any form.
inline void multiply_panels(const Quantized& weights, PanelPair panels, const Rounded& inputs, Totals* totals) {
    with_form(weights, [&](auto width, auto halves) {
        multiply_panels<decltype(width)::value, decltype(halves)::value>(weights, panels, inputs, totals);
    });
}

// The weights of one output in float32.
template <int WIDTH, int HALVES> void read_output(const Quantized& weights, long output, float* row) {
    const PanelPair own{output / GROUP, 0};
    const Packed<WIDTH> packed(weights, own);
    const int part = (int)(output % GROUP) / LANES, lane = (int)(output % GROUP) % LANES;
    with_scales<HALVES>(weights, own, 0, [&](auto scale) {
        for (long block = 0; block < weights.inputs / BLOCK; block++)
            for (int half = 0; half < HALVES; half++, scale.advance()) {
                const Floats factor = scale.factor(part), minimum = scale.has_minimums ? scale.minimum(part) : Floats{};
                for (int pair = half * (PAIRS / HALVES); pair < (half + 1) * (PAIRS / HALVES); pair++) {
                    const Words codes = packed.pair(packed.block(block), pair, part);
                    for (int i = 0; i < 2; i++) {
                        const float code = (float)(codes[2 * lane + i] - scale.offset());
                        row[block * BLOCK + 2 * pair + i] = std::fma(factor[lane], code, -minimum[lane]);
                    }
                }
            }
    });
}

inline void read_output(const Quantized& weights, long output, float* row) {
    with_form(weights, [&](auto width, auto halves) {
        read_output<decltype(width)::value, decltype(halves)::value>(weights, output, row);
    });
}

// Splits a product with weights of this shape into strips of tokens by panels, distributed over the threads of the
// calling parallel region, which needs a barrier afterwards. `use(panels, rounded, token, tokens, outputs)` computes
// some; `rounded` holds the inputs of these tokens, which every thread rounds for itself.
template <class I, class Use>
inline void by_panels(const I* inputs, long tokens, const Quantized& shape, Use use) {
    const long size = shape.inputs;
    const long strip = at_most(STRIP_TOKENS, rounded_up(1 + STRIP_BYTES / (size * 2), 2 * TILE_TOKENS));
    const long strips = (tokens + strip - 1) / strip, panels = (shape.outputs + GROUP - 1) / GROUP;
    const long share = 4 * omp_get_num_threads();
    const long width = at_most(rounded_up((panels + share - 1) / share, TOGETHER), MOST_PANELS);
    const long columns = (panels + width - 1) / width;
    thread_local std::vector<char> memory;
    const unsigned long needed = Rounded::bytes(at_most(strip, tokens), size);
    if (memory.size() < needed) memory.resize(needed);
    Rounded rounded(memory.data(), at_most(strip, tokens), size);
    long held = -1;  // the strip that is rounded
#pragma omp for schedule(dynamic, 1) nowait
    for (long item = 0; item < strips * columns; item++) {
        const long token = item / columns * strip, count = at_most(strip, tokens - token);
        if (held != token) rounded.round(inputs + token * size, count);
        held = token;
        const long left = item % columns * width;
        for (long panel = left; panel < at_most(left + width, panels); panel += TOGETHER)
            use(PanelPair{panel, panel + 1 < panels}, rounded, token, count,
                (int)at_most(TOGETHER * GROUP, shape.outputs - panel * GROUP));
    }
}

// inputs times weights, distributed as by `by_panels`; `keep(token, column, count, sums)` gets a register at a time.
template <class I, class Keep>
void project_quantized(const I* inputs, long tokens, const Quantized& weights, Keep keep) {
    auto use = [=, &weights](PanelPair panels, const Rounded& rounded, long token, long count, int width) {
        Totals totals[STRIP_TOKENS];
        multiply_panels(weights, panels, rounded, totals);
        for (long i = 0; i < count; i++)
            for (int first = 0; first < width; first += LANES)
                keep(token + i, panels.first * GROUP + first, (int)at_most(LANES, width - first),
                     load(totals[i] + first));
    };
    by_panels(inputs, tokens, weights, use);
}

// The same of two weights of one shape; `keep(token, column, count, sums, other_sums)`.
template <class I, class Keep>
void project_both(const I* inputs, long tokens, const Quantized& one, const Quantized& other, Keep keep) {
    auto use = [=, &one, &other](PanelPair panels, const Rounded& rounded, long token, long count, int width) {
        Totals totals[STRIP_TOKENS], others[STRIP_TOKENS];
        multiply_panels(one, panels, rounded, totals);
        multiply_panels(other, panels, rounded, others);
        for (long i = 0; i < count; i++)
            for (int first = 0; first < width; first += LANES)
                keep(token + i, panels.first * GROUP + first, (int)at_most(LANES, width - first),
                     load(totals[i] + first), load(others[i] + first));
    };
    by_panels(inputs, tokens, one, use);
}

}  // namespace toolwire
