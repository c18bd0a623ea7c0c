// Weights of few bits in groups, as in quantization/packed_weight.py, and the scales of their groups.
//
// weight = scale * code - minimum, or scale * (code - offset) where there are no minimums.
#pragma once

#include <type_traits>

#include "vec.h"

extern "C" {
struct Quantized {  // mirrored by the ctypes structure in server/model/cpu/library.py
    int64_t width;  // bits of a code
    int64_t inputs, outputs;
    int64_t group, offset, scale_type, super_group;  // groups of a super-group
    int64_t input_bits;                              // that inputs are rounded to, 8 or 16
    const void* codes;
    const void *scales, *minimums;              // minimums or null
    const void *super_scales, *super_minimums;  // with scales of int8
};
}

namespace toolwire {

constexpr int BLOCK = 32;                      // inputs
constexpr int PARTS = GROUP / LANES;           // registers of a panel's outputs
constexpr int TOGETHER = LANES == 16 ? 2 : 1;  // panels that an input is multiplied with once it is in a register
constexpr int STRETCH_BLOCKS = 16 / TOGETHER;  // blocks that are unpacked at a time and stay in the first cache
enum ScaleType { FLOAT16, FLOAT32, INT8 };

// The description of quantized weights, where a pointer to weights is marked by its lowest bit; else null.
inline const Quantized* as_quantized(const void* weights) {
    return (intptr_t)weights & 1 ? (const Quantized*)((intptr_t)weights - 1) : nullptr;
}

// A panel and, if `across` is 1, the next one.
struct PanelPair {
    long first, across;
};

// Scales of panels from one of their blocks on, as they are stored; parts are those of the first panel, then of the
// next. A block has those of each half, or one for both.
template <int TYPE, int HALVES, bool MINIMUMS> class StoredScales {
  public:
    static constexpr bool has_minimums = MINIMUMS;

    StoredScales(const Quantized& weights, PanelPair panels, long block)
        : shift((int32_t)weights.offset), scales((const char*)weights.scales), minimums((const char*)weights.minimums),
          super_scales((const float*)weights.super_scales), super_minimums((const float*)weights.super_minimums),
          repeats(HALVES == 2 ? 1 : weights.group / BLOCK), size(TYPE == INT8 ? weights.super_group : 1) {
        const long groups = weights.inputs / weights.group, first = HALVES == 2 ? 2 * block : block / repeats;
        at = (panels.first * groups + first) * GROUP;
        above = (panels.first * (groups / size) + first / size) * GROUP;
        across = panels.across * groups * GROUP;
        repeat = HALVES == 2 ? 0 : block % repeats;
        member = first % size;
    }

    int32_t offset() const { return MINIMUMS ? 0 : shift; }
    Floats factor(int part) const { return number(scales, super_scales, part); }
    Floats minimum(int part) const { return number(minimums, super_minimums, part); }

    // To the next half or block.
    void advance() {
        if (++repeat < repeats) return;
        repeat = 0;
        at += GROUP;
        if (TYPE != INT8 || ++member < size) return;
        member = 0;
        above += GROUP;
    }

  private:
    static constexpr long BYTES = TYPE == FLOAT32 ? 4 : TYPE == FLOAT16 ? 2 : 1;

    const int32_t shift;
    const char *scales, *minimums;
    const float *super_scales, *super_minimums;  // with scales of int8
    const long repeats, size;                    // blocks of a group, groups of a super-group
    long at, above, across, repeat, member;

    Floats number(const char* numbers, const float* supers, int part) const {
        const long panel = part / PARTS, lane = part % PARTS * LANES;
        const char* own = numbers + (at + panel * across + lane) * BYTES;
        if constexpr (TYPE == FLOAT16) return load_half((const uint16_t*)own);
        else if constexpr (TYPE == FLOAT32) return load((const float*)own);
        else return load((const int8_t*)own) * load(supers + above + panel * across / size + lane);
    }
};

// act(scales): those of panels from a block on.
template <int HALVES, class Act>
inline void with_scales(const Quantized& weights, PanelPair panels, long block, Act act) {
    auto with = [&](auto minimums) {
        switch (weights.scale_type) {
        case FLOAT16: return act(StoredScales<FLOAT16, HALVES, minimums>(weights, panels, block));
        case FLOAT32: return act(StoredScales<FLOAT32, HALVES, minimums>(weights, panels, block));
        default: return act(StoredScales<INT8, HALVES, minimums>(weights, panels, block));
        }
    };
    weights.minimums ? with(std::true_type{}) : with(std::false_type{});
}

// Scales of some blocks of W panels in float32, from the first on.
template <int W> struct ReadScales {
    int32_t shift;
    bool has_minimums;
    const float *scales, *minimums;

    int32_t offset() const { return shift; }
    Floats factor(int part) const { return load(scales + part * LANES); }
    Floats minimum(int part) const { return load(minimums + part * LANES); }
    void advance() { scales += W * GROUP, minimums += W * GROUP; }
};

// Room for the scales of a stretch of blocks of W panels in float32: many tokens use each of them.
template <int W> class PanelScales {
  public:
    template <int HALVES> ReadScales<W> read(const Quantized& weights, PanelPair panels, long begin, long end) {
        ReadScales<W> result;
        with_scales<HALVES>(weights, panels, begin, [&](auto stored) {
            result = {stored.offset(), stored.has_minimums, scales, minimums};
            for (long slot = 0; slot < (end - begin) * HALVES; slot++, stored.advance())
                for (int part = 0; part < W * PARTS; part++) {
                    store(scales + (slot * W * PARTS + part) * LANES, stored.factor(part));
                    if (stored.has_minimums) store(minimums + (slot * W * PARTS + part) * LANES, stored.minimum(part));
                }
        });
        return result;
    }

  private:
    // [blocks, HALVES, W * GROUP]; minimums are set where the weights have any
    alignas(64) float scales[2 * STRETCH_BLOCKS * W * GROUP], minimums[2 * STRETCH_BLOCKS * W * GROUP];
};

}  // namespace toolwire
