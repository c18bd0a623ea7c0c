// Matrix products of tokens with weights of few bits in groups, laid out as in quantization/packed_weight.py.
//
// Inputs are rounded to integers: of sixteen bits with a scale for each span of 256, which differ by 2^-16 of a span's
// greatest at most (numbers of bfloat16 by 2^-9 of themselves); or of eight bits with a scale for each block of 32, by
// 2^-8 of its greatest at most. Products and their sums within a block are integers and exact; those of blocks are
// added in float32 in the order of the inputs. Thus an output is the same whatever the number of tokens.
#pragma once

#include <omp.h>

#include <type_traits>
#include <vector>

#include "scales.h"

namespace toolwire {

constexpr int QUADS = BLOCK / 4;                   // of inputs in a block
constexpr int TILE_TOKENS = PANEL_TOKENS;          // that are multiplied at a time, at most
constexpr int DIRECT_TILES = LANES == 16 ? 3 : 1;  // more tiles are multiplied with codes that were unpacked before
constexpr int STRIP_TOKENS = 96;                   // tokens that a thread computes at a time, at most
constexpr long STRIP_BYTES = 384 << 10;            // of their inputs, which stay in a core's own cache
constexpr long MOST_PANELS = 16;                   // that a thread computes at a time, a multiple of TOGETHER

typedef uint16_t Words __attribute__((vector_size(4 * LANES)));  // two codes of sixteen bits or four of eight each lane
typedef int32_t Wide __attribute__((vector_size(4 * LANES)));
typedef int8_t Bytes __attribute__((vector_size(LANES)));
typedef float Numbers __attribute__((vector_size(4 * LANES)));

template <class V> inline V read(const void* at) {
    V values;
    std::memcpy(&values, at, sizeof(V));
    return values;
}

// What inputs are rounded to: int16_t or int8_t, as many as fit into a word of 32 bits.
template <class Whole> struct Rounding {
    static constexpr int EACH = 4 / sizeof(Whole);                // inputs in a word
    static constexpr int WORDS = BLOCK / EACH;                    // of a block
    static constexpr float MOST = sizeof(Whole) == 2 ? 32767.0f : 127.0f;
    static constexpr int SPAN_BLOCKS = sizeof(Whole) == 2 ? 8 : 1;  // whose inputs have a common scale

    typedef Whole Lanes __attribute__((vector_size(sizeof(Whole) * LANES)));

    // Inputs in the order of words: of each four, the first and third are in one word of sixteen-bit integers.
    static Lanes in_order(Lanes values) {
        if constexpr (EACH == 4) return values;
        Lanes places;
        for (int i = 0; i < LANES; i++) places[i] = (Whole)((i & ~3) | (i & 1) << 1 | (i & 2) >> 1);
        return __builtin_shuffle(values, places);
    }
};

// How products of codes of a width are summed within a block; a set defines it for inputs of eight bits (`vec.h`).
template <class Whole, int WIDTH> struct Sums : ByteSums<WIDTH> {};
template <int WIDTH> struct Sums<int16_t, WIDTH> {
    static constexpr int WORDS = Rounding<int16_t>::WORDS;
    static constexpr bool WIDENS = false, IS_SIGNED = false;

    static Ints add(Ints sum, Ints codes, Ints inputs) { return dot_words(sum, inputs, codes); }
    static Ints widened(Ints sum) { return sum; }
};

// Inputs of some tokens as integers, with the scale of each span of blocks, and the sums of each block.
// Tokens are in tiles of one size, the last one filled up with zeros. Within a block, a word of inputs of all tokens of
// a tile is followed by the next word, so that every token's is found at a distance known to the compiler.
template <class Whole> class Rounded {
    static constexpr int WORDS = Rounding<Whole>::WORDS, SPAN_BLOCKS = Rounding<Whole>::SPAN_BLOCKS;
    static constexpr float MOST = Rounding<Whole>::MOST;

  public:
    long size;
    int tiles, each;  // tokens of a tile

    static long bytes(long tokens, long size) {
        return padded(tokens) * (size * sizeof(Whole) + blocks(size) * 20 + spans(size) * 4);
    }
    Rounded(void* at, long tokens, long size)
        : size(size), words((int32_t*)at), sums(words + padded(tokens) * blocks(size) * WORDS),
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
    const int32_t* words_of(long tile, long block) const { return words + before(tile, block) * WORDS; }
    const int32_t* sums_of(long tile, long block) const { return sums + before(tile, block) * 2; }
    const float* float_sums_of(long tile, long block) const { return float_sums + before(tile, block) * 3; }
    const float* scales_of(long tile, long span) const { return scales + (tile * spans(size) + span) * each; }

  private:
    int32_t* words;     // [tiles, blocks, WORDS, each]
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
        ((float*)scales_of(tile, span))[place] = broken ? NAN : empty ? 0.0f : most / MOST;
        const Floats inverse = all(empty ? 0.0f : MOST / most);
        for (long block = begin; block < end; block++)
            round_block(empty ? nullptr : inputs + block * BLOCK, inverse, before(tile, block), place);
    }

    template <class I> void round_block(const I* inputs, Floats inverse, long before, long place) const {
        using Lanes = typename Rounding<Whole>::Lanes;
        constexpr int PART_WORDS = LANES / Rounding<Whole>::EACH;
        Floats sum[2] = {};
        for (int part = 0; part < BLOCK / LANES; part++) {
            const Floats whole = inputs ? nearest(load(inputs + part * LANES) * inverse) : Floats{};
            const Wide wide = __builtin_convertvector((Numbers)whole, Wide);
            const Lanes own = Rounding<Whole>::in_order(__builtin_convertvector(wide, Lanes));
            int32_t from[PART_WORDS];
            std::memcpy(from, &own, sizeof own);
            int32_t* to = words + before * WORDS + part * PART_WORDS * each + place;
            for (int i = 0; i < PART_WORDS; i++) to[i * each] = from[i];
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

// By how many bits the sums of a word's products are greater where nibbles are multiplied in their places.
template <class Whole> constexpr int nibble_shift(int word) {
    if (Rounding<Whole>::EACH == 4) return word % 2 * 4;
    return word % 4 == 3 ? 0 : word % 2 * 8 + word % 4 / 2 * 4;
}

// The codes of adjacent panels, unpacked word by word; parts are those of the first panel, then of the next.
template <int WIDTH, class Whole> class Packed {
  public:
    using ProductSums = Sums<Whole, WIDTH>;
    static constexpr long BLOCK_BYTES = 64 * WIDTH;
    static constexpr bool HAS_OFFSET = true;
    static constexpr bool HAS_NIBBLES = WIDTH == 4 && !ProductSums::WIDENS && !ProductSums::IS_SIGNED;

    Packed(const Quantized& weights, PanelPair panels)
        : across(panels.across * (weights.inputs / BLOCK) * BLOCK_BYTES),
          codes((const uint8_t*)weights.codes + panels.first * (weights.inputs / BLOCK) * BLOCK_BYTES) {}

    const uint8_t* block(long index) const { return codes + index * BLOCK_BYTES; }
    // What is still to be subtracted from codes that have this offset.
    static int32_t offset(int32_t stored) { return stored - (WIDTH == 8 && ProductSums::IS_SIGNED ? 128 : 0); }

    // The codes of a word of inputs for the outputs of a part; `word` is constant where this is inlined.
    [[gnu::always_inline]] inline Words word(const uint8_t* block, int word, int part) const {
        block += part / PARTS * across, part %= PARTS;
        if constexpr (WIDTH == 8) {
            const Words own = bits<8>(block, word, part);
            return ProductSums::IS_SIGNED ? own ^ (uint16_t)0x8080 : own;
        }
        Words low = bits<4>(block, word, part);
        if constexpr (WIDTH == 5) return low | bits<1>(block + 256, word, part) << 4;
        if constexpr (WIDTH == 6) return low | bits<2>(block + 256, word, part) << 4;
        return low;
    }

    // The same of one panel's nibbles in their places, which saves shifts: their sums are shifted (`nibble_shift`).
    [[gnu::always_inline]] static inline Words nibbles(const uint8_t* block, int word, int part) {
        constexpr bool OF_BYTES = Rounding<Whole>::EACH == 4;
        const Words words = read<Words>(block + word / (OF_BYTES ? 2 : 4) * 64 + part * sizeof(Words));
        if constexpr (OF_BYTES) return words & (uint16_t)(0x0f0f << nibble_shift<Whole>(word));
        return word % 4 == 3 ? words >> 12 : words & (uint16_t)(15 << nibble_shift<Whole>(word));
    }

    template <int W> void prefetch(const uint8_t* block) const {
        for (int w = 0; w < W; w++)
            for (long line = 0; line < BLOCK_BYTES; line += 64)
                __builtin_prefetch(block + w * across + 4096 + line, 0, 3);
    }

  private:
    const long across;  // bytes from a panel to the next
    const uint8_t* codes;

    // Bytes hold the codes of 8 / BITS quads of inputs; those of four adjacent bytes are one quad's.
    template <int BITS> [[gnu::always_inline]] static inline Words bits(const uint8_t* at, int word, int part) {
        constexpr int IN_BYTE = 8 / BITS, IN_QUAD = Rounding<Whole>::WORDS / QUADS;
        const int quad = word / IN_QUAD, odd = word % IN_QUAD, shift = quad % IN_BYTE * BITS + odd * 8;
        const Words words = read<Words>(at + quad / IN_BYTE * 64 + part * sizeof(Words)) >> shift;
        if (BITS == 8 && IN_QUAD == 1) return words;
        if (shift + BITS == 16) return words;
        return words & (uint16_t)(((1 << BITS) - 1) * (IN_QUAD == 1 ? 0x0101 : 1));
    }
};

// Some blocks of W panels, unpacked for many tokens, less their offset. Bytes need no such copy.
template <int W> class Unpacked {
  public:
    using ProductSums = Sums<int16_t, 8>;
    static constexpr bool HAS_NIBBLES = false, HAS_OFFSET = false;

    template <int WIDTH> Unpacked(const Packed<WIDTH, int16_t>& packed, int32_t offset, long begin, long end)
        : first(begin) {
        const Words shift = Words{} + (uint16_t)offset;
        for (long index = begin; index < end; index++) {
            const uint8_t* from = packed.block(index);
            packed.template prefetch<W>(from);
            uint8_t* to = words + (index - begin) * BLOCK_BYTES;
#pragma GCC unroll 16
            for (int word = 0; word < Rounding<int16_t>::WORDS; word++)
                for (int part = 0; part < W * PARTS; part++) {
                    const Words own = packed.word(from, word, part) - shift;
                    std::memcpy(to + (word * W * PARTS + part) * sizeof(Words), &own, sizeof own);
                }
        }
    }

    const uint8_t* block(long index) const { return words + (index - first) * BLOCK_BYTES; }
    [[gnu::always_inline]] static inline Words word(const uint8_t* block, int word, int part) {
        return read<Words>(block + (word * W * PARTS + part) * sizeof(Words));
    }
    template <int> static void prefetch(const uint8_t*) {}

  private:
    static constexpr long BLOCK_BYTES = W * BLOCK * GROUP * 2;

    const long first;
    alignas(64) uint8_t words[STRETCH_BLOCKS * BLOCK_BYTES];
};

// Adds the products of a tile of M tokens with blocks [begin, end) of W panels to `totals`; `scale` is at the first.
template <int M, int W, int HALVES, class Whole, class Codes, class Scales>
[[gnu::noinline]] void add_blocks(const Codes& codes, Scales scale, const Rounded<Whole>& inputs, long tile, long begin,
                                  long end, float (*totals)[W * GROUP]) {
    using Own = typename Codes::ProductSums;
    constexpr int WORDS = Rounding<Whole>::WORDS, SPAN_BLOCKS = Rounding<Whole>::SPAN_BLOCKS, COUNT = WORDS / HALVES;
    constexpr int STEP = Own::WORDS < COUNT ? Own::WORDS : COUNT;  // words that are summed before sums are widened
    // Few tokens have several sums for each output, so that one addition does not wait for the last one. One token has
    // one for each of the places of nibbles, which are not shifted but their sums.
    constexpr bool IN_PLACE = Codes::HAS_NIBBLES && M == 1 && W == 1;
    constexpr int OWN = W * PARTS, SUMS = Own::WIDENS ? 1 : IN_PLACE ? 4 : M * OWN < 4 ? 4 / (M * OWN) : 1;
    const int32_t *words = inputs.words_of(tile, begin), *sums = inputs.sums_of(tile, begin);
    const float *float_sums = inputs.float_sums_of(tile, begin);
    const float *input_scales = inputs.scales_of(tile, begin / SPAN_BLOCKS);
    constexpr bool KEEPS = SPAN_BLOCKS == 1;  // totals in registers: storing them for every block takes a third longer
    Floats kept[M][OWN];
    for (int m = 0; KEEPS && m < M; m++)
        for (int part = 0; part < OWN; part++) kept[m][part] = load(totals[m] + part * LANES);
    for (long block = begin; block < end;) {
        Floats total[M][OWN] = {};  // of this span
        for (const long last = at_most(end, block + SPAN_BLOCKS); block < last; block++) {
            const uint8_t* own = codes.block(block);
            if (tile == 0) codes.template prefetch<W>(own);
#pragma GCC unroll 2
            for (int half = 0; half < HALVES; half++) {
                Wide whole[M][OWN] = {};
                if constexpr (Codes::HAS_OFFSET)
                    for (int m = 0; m < M; m++) {
                        const int32_t input_sum = HALVES == 2 ? sums[half * M + m] : sums[m] + sums[M + m];
                        for (int part = 0; part < OWN; part++)
                            whole[m][part] = Wide{} - input_sum * codes.offset(scale.offset());
                    }
#pragma GCC unroll 8
                for (int first = 0; first < COUNT; first += STEP) {
                    Ints sum[SUMS][M][OWN] = {};
                    if constexpr (!Own::WIDENS)
                        for (int m = 0; m < M; m++)
                            for (int part = 0; part < OWN; part++) sum[0][m][part] = (Ints)whole[m][part];
#pragma GCC unroll 16
                    for (int i = first; i < first + STEP; i++) {
                        const int word = half * COUNT + i;
                        Words weight[OWN];
                        for (int part = 0; part < OWN; part++)
                            if constexpr (IN_PLACE) weight[part] = codes.nibbles(own, word, part);
                            else weight[part] = codes.word(own, word, part);
                        for (int m = 0; m < M; m++) {
                            const Words input = (Words)(Wide{} + words[word * M + m]);
                            for (int part = 0; part < OWN; part++) {
                                Ints& to = sum[i % SUMS][m][part];
                                to = Own::add(to, (Ints)weight[part], (Ints)input);
                            }
                        }
                    }
                    for (int m = 0; m < M; m++)
                        for (int part = 0; part < OWN; part++) {
                            Wide own_sum = (Wide)Own::widened(sum[0][m][part]);
                            for (int i = 1; i < SUMS; i++)
                                own_sum += (Wide)sum[i][m][part] >> (IN_PLACE ? nibble_shift<Whole>(i) : 0);
                            whole[m][part] = Own::WIDENS ? whole[m][part] + own_sum : own_sum;
                        }
                }
                for (int part = 0; part < OWN; part++) {
                    const Floats factor = scale.factor(part);
                    for (int m = 0; m < M; m++) {
                        const Floats number = (Floats)__builtin_convertvector(whole[m][part], Numbers);
                        total[m][part] = SPAN_BLOCKS * HALVES == 1 ? factor * number
                                                                   : fma(factor, number, total[m][part]);
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
            words += WORDS * M;
            sums += 2 * M;
            float_sums += 3 * M;
        }
        for (int m = 0; m < M; m++)
            for (int part = 0; part < OWN; part++) {
                float* to = totals[m] + part * LANES;
                Floats& sum = kept[m][part];
                sum = fma(all(input_scales[m]), total[m][part], KEEPS ? sum : load(to));
                if (!KEEPS) store(to, sum);
            }
        input_scales += M;
    }
    for (int m = 0; KEEPS && m < M; m++)
        for (int part = 0; part < OWN; part++) store(totals[m] + part * LANES, kept[m][part]);
}

// All tiles as `add_blocks`; each has at most M tokens.
template <int M, int W, int HALVES, class Whole, class Codes, class Scales>
inline void add_tiles(const Codes& codes, const Scales& scale, const Rounded<Whole>& inputs, long begin, long end,
                      float (*totals)[W * GROUP]) {
    if constexpr (M > 1)
        if (inputs.each < M) return add_tiles<M - 1, W, HALVES>(codes, scale, inputs, begin, end, totals);
    for (long tile = 0; tile < inputs.tiles; tile++)
        add_blocks<M, W, HALVES>(codes, scale, inputs, tile, begin, end, totals + tile * M);
}

// Sums of tokens with the outputs of panels that are computed together.
using Totals = float[TOGETHER * GROUP];

// totals [tiles of tokens] = inputs times panels, of which the last one counts only if there is one.
template <int WIDTH, int HALVES, class Whole>
void multiply_panels(const Quantized& weights, PanelPair panels, const Rounded<Whole>& inputs, Totals* totals) {
    constexpr int W = TOGETHER;
    const long blocks = inputs.size / BLOCK;
    std::memset(totals, 0, inputs.tiles * inputs.each * sizeof(*totals));
    if (inputs.tiles == 1 && inputs.each == 1) {
        for (long w = 0; w <= (W - 1) * panels.across; w++) {
            const PanelPair one{panels.first + w, 0};
            with_scales<HALVES>(weights, one, 0, [&](auto scale) {
                add_blocks<1, 1, HALVES>(Packed<WIDTH, Whole>(weights, one), scale, inputs, 0, 0, blocks,
                                         (float(*)[GROUP])(totals[0] + w * GROUP));
            });
        }
        return;
    }
    const Packed<WIDTH, Whole> packed(weights, panels);
    PanelScales<W> scales;
    for (long begin = 0; begin < blocks; begin += STRETCH_BLOCKS) {
        const long end = at_most(begin + STRETCH_BLOCKS, blocks);
        const ReadScales<W> first = scales.template read<HALVES>(weights, panels, begin, end);
        if constexpr (Rounding<Whole>::EACH == 2)
            if (inputs.tiles > DIRECT_TILES) {
                Unpacked<W> unpacked(packed, first.offset(), begin, end);
                add_tiles<TILE_TOKENS, W, HALVES>(unpacked, first, inputs, begin, end, totals);
                continue;
            }
        add_tiles<TILE_TOKENS, W, HALVES>(packed, first, inputs, begin, end, totals);
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
template <class Whole>
inline void multiply_panels(const Quantized& weights, PanelPair panels, const Rounded<Whole>& inputs, Totals* totals) {
    with_form(weights, [&](auto width, auto halves) {
        multiply_panels<decltype(width)::value, decltype(halves)::value>(weights, panels, inputs, totals);
    });
}

// The weights of one output in float32.
template <int WIDTH, int HALVES> void read_output(const Quantized& weights, long output, float* row) {
    constexpr int WORDS = Rounding<int16_t>::WORDS;
    const PanelPair own{output / GROUP, 0};
    const Packed<WIDTH, int16_t> packed(weights, own);
    const int part = (int)(output % GROUP) / LANES, lane = (int)(output % GROUP) % LANES;
    with_scales<HALVES>(weights, own, 0, [&](auto scale) {
        for (long block = 0; block < weights.inputs / BLOCK; block++)
            for (int half = 0; half < HALVES; half++, scale.advance()) {
                const Floats factor = scale.factor(part), minimum = scale.has_minimums ? scale.minimum(part) : Floats{};
                for (int word = half * (WORDS / HALVES); word < (half + 1) * (WORDS / HALVES); word++) {
                    const Words codes = packed.word(packed.block(block), word, part);
                    for (int i = 0; i < 2; i++) {
                        const float code = (float)(codes[2 * lane + i] - scale.offset());
                        const int input = word / 2 * 4 + word % 2 + 2 * i;
                        row[block * BLOCK + input] = std::fma(factor[lane], code, -minimum[lane]);
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
template <class Whole, class I, class Use>
inline void by_panels(const I* inputs, long tokens, const Quantized& shape, Use use) {
    const long size = shape.inputs;
    const long fitting = STRIP_BYTES / (size * (long)sizeof(Whole));
    const long strip = at_most(STRIP_TOKENS, rounded_up(1 + fitting, 2 * TILE_TOKENS));
    const long strips = (tokens + strip - 1) / strip, panels = (shape.outputs + GROUP - 1) / GROUP;
    const long share = rounded_up(panels / (4 * omp_get_num_threads()) + 1, TOGETHER);
    const long width = strips == 1 ? 2 * TOGETHER : at_most(share, MOST_PANELS), columns = (panels + width - 1) / width;
    thread_local std::vector<char> memory;
    const unsigned long needed = Rounded<Whole>::bytes(at_most(strip, tokens), size);
    if (memory.size() < needed) memory.resize(needed);
    Rounded<Whole> rounded(memory.data(), at_most(strip, tokens), size);
    long held = -1;  // the strip that is rounded
    distribute(strips, columns, [&](long item) {
        const long token = item / columns * strip, count = at_most(strip, tokens - token);
        if (held != token) rounded.round(inputs + token * size, count);
        held = token;
        const long left = item % columns * width;
        for (long panel = left; panel < at_most(left + width, panels); panel += TOGETHER)
            use(PanelPair{panel, panel + 1 < panels}, rounded, token, count,
                (int)at_most(TOGETHER * GROUP, shape.outputs - panel * GROUP));
    });
}

// act(a number of the type that inputs of these weights are rounded to)
template <class Act> inline void with_rounding(const Quantized& weights, Act act) {
    weights.input_bits == 8 ? act(int8_t{}) : act(int16_t{});
}

// inputs times weights, distributed as by `by_panels`; `keep(token, column, count, sums)` gets a register at a time.
template <class I, class Keep>
void project_quantized(const I* inputs, long tokens, const Quantized& weights, Keep keep) {
    auto use = [=, &weights](PanelPair panels, const auto& rounded, long token, long count, int width) {
        Totals totals[STRIP_TOKENS];
        multiply_panels(weights, panels, rounded, totals);
        for (long i = 0; i < count; i++)
            for (int first = 0; first < width; first += LANES)
                keep(token + i, panels.first * GROUP + first, (int)at_most(LANES, width - first),
                     load(totals[i] + first));
    };
    with_rounding(weights, [&](auto whole) { by_panels<decltype(whole)>(inputs, tokens, weights, use); });
}

// The same of two weights of one shape, with inputs of as many bits; `keep(token, column, count, sums, other_sums)`.
template <class I, class Keep>
void project_both(const I* inputs, long tokens, const Quantized& one, const Quantized& other, Keep keep) {
    auto use = [=, &one, &other](PanelPair panels, const auto& rounded, long token, long count, int width) {
        Totals totals[STRIP_TOKENS], others[STRIP_TOKENS];
        multiply_panels(one, panels, rounded, totals);
        multiply_panels(other, panels, rounded, others);
        for (long i = 0; i < count; i++)
            for (int first = 0; first < width; first += LANES)
                keep(token + i, panels.first * GROUP + first, (int)at_most(LANES, width - first),
                     load(totals[i] + first), load(others[i] + first));
    };
    with_rounding(one, [&](auto whole) { by_panels<decltype(whole)>(inputs, tokens, one, use); });
}

}  // namespace toolwire
