// Linear attention of Qwen3-Next and Qwen3.5: a short causal convolution, then the gated delta rule (Yang et al., Gated
// Delta Networks).
//
// The rule is computed token by token, so a state depends on nothing but the tokens before it, however they were cut
// into steps. Columns of a state do not depend on each other: a block of them stays in the first cache while a
// sequence's tokens are computed.
#pragma once

#include <type_traits>

#include "norms.h"

namespace toolwire {

constexpr long MAX_KERNEL = 8;       // tokens of a convolution
constexpr long MAX_HEAD = 256;       // dimensions of a head's queries, keys or values
constexpr long STATE_COLUMNS = 32;   // of a block

extern "C" {
struct DeltaShape {  // of a model; no heads if it has no linear attention
    int64_t key_heads, value_heads, key_dim, value_dim, kernel;
    int64_t is_grouped;  // projections come key head by key head, as in Qwen3-Next
};

struct Mixer {  // of a layer
    const void* mixed;  // queries, keys and values; with gates if they are grouped
    const void* gate;   // or null
    const void* rates;  // beta of each value head; with decays if they are grouped
    const void* decay;  // or null
    const void* output;
    const float* convolution;           // [kernel, channels]
    const float *decay_rate, *dt_bias;  // [value_heads]: -exp(A_log); added to the projected decay
    const float* norm;                  // [value_dim]
};
}

// Places in a token's projections: queries, keys, values and gates of the heads, then two rates of each value head.
struct DeltaPlaces {
    const DeltaShape& shape;

    long keys() const { return shape.key_heads * shape.key_dim; }
    long values() const { return shape.value_heads * shape.value_dim; }
    long group() const { return shape.value_heads / shape.key_heads; }
    long channels() const { return 2 * keys() + values(); }
    long gated() const { return channels() + values(); }  // where the rates begin
    long width() const { return gated() + 2 * shape.value_heads; }

    long query(long head) const { return shape.is_grouped ? head * group_width() : head * shape.key_dim; }
    long key(long head) const {
        return shape.is_grouped ? head * group_width() + shape.key_dim : keys() + head * shape.key_dim;
    }
    long value(long head) const {
        return shape.is_grouped ? in_group(head) : 2 * keys() + head * shape.value_dim;
    }
    long gate(long head) const {
        return shape.is_grouped ? in_group(head) + group() * shape.value_dim : channels() + head * shape.value_dim;
    }
    long beta(long head) const {
        return gated() + (shape.is_grouped ? head / group() * 2 * group() + head % group() : head);
    }
    long decay(long head) const { return beta(head) + (shape.is_grouped ? group() : shape.value_heads); }

  private:
    long group_width() const { return 2 * (shape.key_dim + group() * shape.value_dim); }
    long in_group(long head) const {
        return head / group() * group_width() + 2 * shape.key_dim + head % group() * shape.value_dim;
    }
};

// Convolves some channels of a sequence's tokens and applies SiLU, in place; `kept` [kernel - 1, channels] holds the
// inputs of the tokens before them, and of the last ones afterwards. Inputs are rounded to E, as they are kept.
// `use(token, outputs)` follows each token.
template <class E, class Use>
void convolve(float* inputs, long stride, long tokens, long dim, const float* weights, long channels, long kernel,
              E* kept, bool is_new, Use use) {
    float seen[MAX_KERNEL][MAX_HEAD];  // inputs of the last `kernel` tokens, in turns
    const long before = kernel - 1;
    for (long i = 0; i < before; i++)
        for (long d = 0; d < dim; d += LANES) store(seen[i] + d, is_new ? Floats{} : load(kept + i * channels + d));
    for (long token = 0; token < tokens; token++) {
        float* own = inputs + token * stride;
        float* latest = seen[(before + token) % kernel];
        for (long d = 0; d < dim; d += LANES) {
            E rounded[LANES];
            store(rounded, load(own + d));
            store(latest + d, load(rounded));
            Floats sum = Floats{};
            for (long i = 0; i < kernel; i++)
                sum = fma(load(seen[(token + i) % kernel] + d), load(weights + i * channels + d), sum);
            store(own + d, silu(sum));
        }
        use(token, own);
    }
    for (long i = 0; i < before; i++)
        for (long d = 0; d < dim; d += LANES) store(kept + i * channels + d, load(seen[(tokens + i) % kernel] + d));
}

// Scales a head to length `length`, in place.
inline void set_length(float* head, long dim, float length) {
    Floats sum = Floats{};
    for (long d = 0; d < dim; d += LANES) {
        Floats value = load(head + d);
        sum = fma(value, value, sum);
    }
    const Floats factor = all(length / __builtin_sqrtf(sum_of(sum) + 1e-6f));
    for (long d = 0; d < dim; d += LANES) store(head + d, load(head + d) * factor);
}

// Advances W registers of a state's columns by a sequence's tokens; their outputs replace the values.
template <int W>
void advance(const float* queries, const float* keys, float* values, const float* betas, const float* decays,
             long stride, long tokens, long key_dim, float* state, long value_dim, bool is_new) {
    constexpr int SETS = W < 8 ? 8 / W : 1;  // independent sums, as many as the CPU computes at once
    alignas(64) float own[MAX_HEAD * W * LANES];
    for (long i = 0; i < key_dim; i++)
        for (int w = 0; w < W; w++)
            store(own + (i * W + w) * LANES, is_new ? Floats{} : load(state + i * value_dim + w * LANES));
    for (long token = 0; token < tokens; token++) {
        const float *query = queries + token * stride, *key = keys + token * stride;
        float* value = values + token * stride;
        const Floats decay = all(decays[token * stride]), beta = all(betas[token * stride]);
        Floats found[SETS][W], added[W], result[W];
        for (int set = 0; set < SETS; set++)
            for (int w = 0; w < W; w++) found[set][w] = Floats{};
        for (long i = 0; i < key_dim; i += SETS)
            for (int set = 0; set < SETS; set++)
                for (int w = 0; w < W; w++)
                    found[set][w] = fma(load(own + ((i + set) * W + w) * LANES), all(key[i + set]), found[set][w]);
        for (int w = 0; w < W; w++) {
            Floats sum = found[0][w];
            for (int set = 1; set < SETS; set++) sum = sum + found[set][w];
            added[w] = fnma(decay, sum, load(value + w * LANES)) * beta;
            result[w] = Floats{};
        }
        for (long i = 0; i < key_dim; i++)
            for (int w = 0; w < W; w++) {
                float* at = own + (i * W + w) * LANES;
                Floats now = fma(all(key[i]), added[w], load(at) * decay);
                store(at, now);
                result[w] = fma(now, all(query[i]), result[w]);
            }
        for (int w = 0; w < W; w++) store(value + w * LANES, result[w]);
    }
    for (long i = 0; i < key_dim; i++)
        for (int w = 0; w < W; w++) store(state + i * value_dim + w * LANES, load(own + (i * W + w) * LANES));
}

// Convolution and rates of one head of a sequence: a query head, a key head or a value head, counted in this order.
template <class E>
void prepare_head(const DeltaPlaces& places, const Mixer& mixer, long head, float* inputs, long tokens, E* kept,
                  bool is_new) {
    const DeltaShape& shape = places.shape;
    const long channels = places.channels(), kernel = shape.kernel, width = places.width();
    auto run = [&](long place, long channel, long dim, auto use) {
        convolve(inputs + place, width, tokens, dim, mixer.convolution + channel, channels, kernel, kept + channel,
                 is_new, use);
    };
    const long dim = shape.key_dim, key = head - shape.key_heads, value = key - shape.key_heads;
    if (key < 0) {
        const float length = 1.0f / __builtin_sqrtf((float)dim);
        run(places.query(head), head * dim, dim, [&](long, float* query) { set_length(query, dim, length); });
    } else if (value < 0) {
        run(places.key(key), places.keys() + key * dim, dim, [&](long, float* own) { set_length(own, dim, 1.0f); });
    } else {
        const long channel = 2 * places.keys() + value * shape.value_dim;
        run(places.value(value), channel, shape.value_dim, [&](long token, float*) {
            float *beta = inputs + token * width + places.beta(value), *decay = inputs + token * width;
            decay += places.decay(value);
            const float raised = *decay + mixer.dt_bias[value];
            const float softplus = raised > 20.0f ? raised : std::log1p(std::exp(raised));
            *decay = std::exp(mixer.decay_rate[value] * softplus);
            *beta = 1.0f / (1.0f + std::exp(-*beta));
        });
    }
}

// One block of one value head's state, from column `first` on.
inline void advance_block(const DeltaPlaces& places, long head, long first, float* inputs, long tokens, float* state,
                          bool is_new) {
    const DeltaShape& shape = places.shape;
    const long key_head = head / places.group(), width = places.width();
    auto run = [&](auto registers) {
        advance<decltype(registers)::value>(
            inputs + places.query(key_head), inputs + places.key(key_head), inputs + places.value(head) + first,
            inputs + places.beta(head), inputs + places.decay(head), width, tokens, shape.key_dim, state + first,
            shape.value_dim, is_new);
    };
    if (shape.value_dim - first >= STATE_COLUMNS) run(std::integral_constant<int, STATE_COLUMNS / LANES>());
    else run(std::integral_constant<int, GROUP / LANES>());
}

// Norms and gates one token's heads. results [value_heads, value_dim]
template <class R>
inline void norm_gated(const DeltaPlaces& places, const float* token, const float* weight, float epsilon, R* results) {
    const long dim = places.shape.value_dim;
    for (long head = 0; head < places.shape.value_heads; head++) {
        const float *value = token + places.value(head), *gate = token + places.gate(head);
        const Floats factor = all(norm_factor(value, dim, epsilon));
        for (long d = 0; d < dim; d += LANES) {
            Floats normed = load(value + d) * factor * load(weight + d);
            store(results + head * dim + d, normed * silu(load(gate + d)));
        }
    }
}

}  // namespace toolwire
