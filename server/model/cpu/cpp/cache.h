// KV cache of one layer: its layout, how a token's keys and values are stored, and how attention reads a block of them.
//
// Elements, where PAIR is the number of elements that a lane multiplies at once:
//     keys    [num_blocks, kv_heads, head_dim / PAIR, block_size, PAIR]   scores of LANES tokens fill a register
//     values  [num_blocks, kv_heads, block_size / PAIR, head_dim, PAIR]   LANES dimensions fill a register
// 64 bytes after the last block must be readable.
//
// Bytes: signed bytes in the same order, and behind those of each head a float32 scale for each token of the block. They
// are exact in both types of elements, so scales multiply scores and shares, not keys and values.
#pragma once

#include "products.h"

namespace toolwire {

extern "C" {
struct Row {  // tokens of one sequence
    int64_t first_token, num_tokens;
    int64_t start;  // cached tokens before them
    const int32_t* blocks;
};
}

struct Place {
    long block, offset;
};

// Block and offset of a token of the step.
inline Place place_of(const Row* row, long token, long block_size) {
    while (token >= row->first_token + row->num_tokens) row++;
    long position = row->start + token - row->first_token;
    return {row->blocks[position / block_size], position % block_size};
}

struct Heads {
    long heads, kv_heads, head_dim, block_size;
    float scaling;
    bool of_bytes;  // whether the cache has bytes, not elements

    long group() const { return heads / kv_heads; }
    long block_lanes() const { return rounded_up(block_size, LANES); }
    long head_elements() const { return head_dim * block_size; }

    // Of one head's keys (or values) in a block, and of all heads'; `element` is the size of one that is not a byte.
    long head_bytes(long element) const {
        return of_bytes ? head_elements() + block_size * (long)sizeof(float) : head_elements() * element;
    }
    long block_bytes(long element) const { return kv_heads * head_bytes(element); }
};

// Stores one token's key and value [kv_heads, head_dim] as elements.
template <class E, class S>
inline void keep_elements(const Heads& heads, const S* key, const S* value, E* keys, E* values, Place at) {
    constexpr int PAIR = Elements<E>::PAIR;
    for (long head = 0; head < heads.kv_heads; head++) {
        long begin = (at.block * heads.kv_heads + head) * heads.head_elements();
        E* of_keys = keys + begin + at.offset * PAIR;
        E* of_values = values + begin + at.offset / PAIR * heads.head_dim * PAIR + at.offset % PAIR;
        for (long d = 0; d < heads.head_dim; d += LANES) {
            E held[LANES];
            store(held, load(key + head * heads.head_dim + d));
            for (int i = 0; i < LANES; i += PAIR)
                std::memcpy(of_keys + (d + i) / PAIR * heads.block_size * PAIR, held + i, PAIR * sizeof(E));
            store(held, load(value + head * heads.head_dim + d));
            for (int i = 0; i < LANES; i++) of_values[(d + i) * PAIR] = held[i];
        }
    }
}

// One head's key or value as bytes: of the greatest magnitude 127, to nearest. What is not finite makes the scale NaN.
template <class S> class RoundedHead {
  public:
    float scale = 0.0f;

    RoundedHead(const S* numbers, long size) : numbers(numbers) {
        Floats greatest = Floats{};
        bool broken = false;
        for (long d = 0; d < size; d += LANES) {
            const Floats own = load(numbers + d);
            greatest = max(greatest, max(own, Floats{} - own));
            broken |= is_broken(first_lanes(LANES), own);
        }
        const float most = max_of(greatest), least = 1e-30f;  // whose reciprocal is finite
        if (broken) scale = NAN;
        else if (most > least) scale = most / 127.0f, inverse = 127.0f / most;
    }

    Bytes bytes(long d) const {
        const Floats whole = inverse > 0.0f ? nearest(load(numbers + d) * all(inverse)) : Floats{};
        return __builtin_convertvector(__builtin_convertvector((Numbers)whole, Wide), Bytes);
    }

  private:
    const S* numbers;
    float inverse = 0.0f;
};

// As `keep_elements`, in the order of elements of type E.
template <class E, class S>
inline void keep_bytes(const Heads& heads, const S* key, const S* value, int8_t* keys, int8_t* values, Place at) {
    constexpr int PAIR = Elements<E>::PAIR;
    const long dim = heads.head_dim, size = heads.block_size, scales = heads.head_elements();
    for (long head = 0; head < heads.kv_heads; head++) {
        const long begin = at.block * heads.block_bytes(1) + head * heads.head_bytes(1);
        int8_t *of_keys = keys + begin, *of_values = values + begin;
        const RoundedHead<S> own_key(key + head * dim, dim), own_value(value + head * dim, dim);
        std::memcpy(of_keys + scales + at.offset * sizeof(float), &own_key.scale, sizeof(float));
        std::memcpy(of_values + scales + at.offset * sizeof(float), &own_value.scale, sizeof(float));
        for (long d = 0; d < dim; d += LANES) {
            const Bytes held_key = own_key.bytes(d), held_value = own_value.bytes(d);
            for (int i = 0; i < LANES; i++) {
                of_keys[((d + i) / PAIR * size + at.offset) * PAIR + (d + i) % PAIR] = held_key[i];
                of_values[(at.offset / PAIR * dim + d + i) * PAIR + at.offset % PAIR] = held_value[i];
            }
        }
    }
}

// Stores one token's key and value [kv_heads, head_dim] in its block.
template <class E, class S>
inline void keep(const Heads& heads, const S* key, const S* value, void* keys, void* values, Place at) {
    if (heads.of_bytes) keep_bytes<E>(heads, key, value, (int8_t*)keys, (int8_t*)values, at);
    else keep_elements(heads, key, value, (E*)keys, (E*)values, at);
}

// One head's keys and values in a block as they are multiplied. Scales are those of bytes, 0 from the first token on that
// is not there; null for elements.
template <class E> struct OpenBlock {
    const E *keys, *values;
    const float *key_scales = nullptr, *value_scales = nullptr;

    static constexpr long TAIL = 64;          // numbers that may be read behind the last
    static constexpr long MOST_AT_ONCE = 32;  // tokens that are read at a time, of which the last may lie behind a block

    // Floats of the memory in which bytes become elements.
    static long room_floats(const Heads& heads) {
        if (!heads.of_bytes) return 0;
        const long elements = 2 * (heads.head_elements() + TAIL) * (long)sizeof(E) / (long)sizeof(float);
        return elements + 2 * rounded_up(heads.block_size, MOST_AT_ONCE);
    }

    // `own_keys` and `own_values` begin with the first block of the head; `here` tokens of this block are there.
    OpenBlock(const Heads& heads, const void* own_keys, const void* own_values, long block, long here, float* room) {
        const long begin = block * heads.block_bytes(sizeof(E));
        const char *from_keys = (const char*)own_keys + begin, *from_values = (const char*)own_values + begin;
        keys = (const E*)from_keys, values = (const E*)from_values;
        if (!heads.of_bytes) return;
        const long count = heads.head_elements(), tokens = rounded_up(heads.block_size, MOST_AT_ONCE);
        float *of_keys = room, *of_values = room + tokens;
        E *wide_keys = (E*)(room + 2 * tokens), *wide_values = wide_keys + count + TAIL;
        std::memset(room, 0, 2 * tokens * sizeof(float));
        std::memcpy(of_keys, from_keys + count, here * sizeof(float));
        std::memcpy(of_values, from_values + count, here * sizeof(float));
        for (long i = 0; i < count; i += LANES) {
            store(wide_keys + i, load((const int8_t*)from_keys + i));
            store(wide_values + i, load((const int8_t*)from_values + i));
        }
        keys = wide_keys, values = wide_values, key_scales = of_keys, value_scales = of_values;
    }
};

}  // namespace toolwire
