// Decoder step on a CPU: all norms, products and attention of a batch in one call. The functions of a set's library.
//
// A layer has attention or a recurrent state (`delta.h`), then an MLP or experts (`experts.h`).
//
// Weights are read in place, except that short rows are packed into panels (`toolwire_panel_bytes`); quantized ones are
// described by what a pointer leads to whose lowest bit is set (`quantized.h`). Every output is
// summed in the same order whatever the number of tokens, so a sequence's result does not depend on the rest of the
// batch, on prompt chunks, or on the number of threads.
//
// Elements are bfloat16 or float32. Sums, norms, angles, softmax and the residual stream are float32 in both.
// Sizes: head_dim is a multiple of 32, as are the inputs of every product; block_size is even.

#pragma once

#include "adapters.h"
#include "attention.h"
#include "delta.h"
#include "experts.h"
#include "norms.h"
#include "products.h"
#include "quantize.h"

#include <algorithm>
#include <memory>

using namespace toolwire;

// Mirrored by the ctypes structures in server/model/cpu/library.py.
extern "C" {
struct Layer {
    const void *query, *key, *value, *output, *gate, *up, *down;
    const void *query_bias, *key_bias, *value_bias;  // or null
    const float *attention_norm, *mlp_norm;
    const float *query_norm, *key_norm;  // or null
    const Mixer* mixer;                  // in place of attention, or null
    const Experts* experts;              // in place of gate, up and down, or null
};

struct Model {
    int64_t is_bf16, hidden, inner, heads, kv_heads, head_dim, num_layers;
    int64_t rotated;    // dimensions of a head with rotary positions
    int64_t has_gates;  // a query head's projection is followed by one that gates its results
    DeltaShape delta;
    float epsilon, scaling;
    const Layer* layers;
    const float* norm;
};

struct Step {
    int64_t num_tokens, num_rows, num_threads, block_size, of_bytes;  // of_bytes: the KV cache (`cache.h`)
    const Row* rows;                    // in the order of their tokens
    void *const *keys, *const *values;  // each layer's part of the KV cache
    const int64_t* slots;               // of each row's recurrent state, or null
    void* const* convolutions;          // of each layer with a state: the last inputs [slots, kernel, channels]
    float* const* states;               // and [slots, value_heads, key_dim, value_dim]
    const void* embedded;               // [num_tokens, hidden]
    const float *cosines, *sines;       // [num_tokens, rotated]
    void* results;                      // [num_tokens, hidden]
    void* scratch;                      // toolwire_step_bytes
    const AdapterLayer* const* adapters;  // each token's adapter, or null; null: no token has one
    int64_t max_rank;                     // of these adapters
};

struct Attention {  // of one layer
    int64_t is_bf16, heads, kv_heads, head_dim, num_tokens, num_rows, num_threads, block_size, of_bytes;
    float scaling;
    const Row* rows;
    const void *queries, *new_keys, *new_values;  // [num_tokens, heads or kv_heads, head_dim]
    void *keys, *values;                          // the layer's part of the KV cache
    void* results;                                // like queries
    void* scratch;                                // toolwire_attention_bytes
};
}

namespace {

Heads heads_of(const Model& model, const Step& step) {
    return {(long)model.heads, (long)model.kv_heads, (long)model.head_dim, (long)step.block_size, model.scaling,
            step.of_bytes != 0};
}

// Intermediate results of a step in its scratch memory.
template <class E> struct Places {
    float *stream, *projected, *attention, *squeezed;
    Input<E> *normed, *queries, *attended, *opened, *tiles;
    char* feeding;  // where those of a layer's experts begin
    long bytes = 0;

    Places(const Model& model, const Step& step) : base((char*)step.scratch) {
        const long tokens = step.num_tokens, query_size = model.heads * model.head_dim;
        const long values = model.delta.value_heads * model.delta.value_dim;
        stream = take<float>(tokens * model.hidden);
        squeezed = take<float>(AT_ONCE * tokens * step.max_rank);
        // Queries replace the normed stream once they are computed, and results of attention the queries.
        const long widest = std::max({(long)model.hidden, query_size, values});
        normed = queries = attended = take<Input<E>>(tokens * widest);
        tiles = take<Input<E>>(Formats<E>::elements(tokens, std::max<long>(widest, model.inner)));
        // Attention and MLP of a layer reuse the same memory.
        const long shared = bytes;
        projected = take<float>(tokens * std::max(attention_width(model), DeltaPlaces{model.delta}.width()));
        attention = take<float>(step.num_threads * scratch_floats<E>(heads_of(model, step)));
        long most = bytes;
        bytes = shared;
        opened = take<Input<E>>(tokens * model.inner);
        most = std::max(most, bytes);
        feeding = base + shared;
        for (long index = 0; index < model.num_layers; index++)
            if (const Experts* own = model.layers[index].experts)
                most = std::max(most, shared + ExpertPlaces<E>(*own, model.hidden, tokens, feeding).bytes);
        bytes = most;
    }

    // Numbers that a token's queries, gates, keys and values take.
    static long attention_width(const Model& model) {
        return (model.heads * (1 + model.has_gates) + 2 * model.kv_heads) * model.head_dim;
    }

  private:
    char* base;

    template <class T> T* take(long count) {
        char* place = base + bytes;
        bytes += rounded_up(count * sizeof(T), 64);
        return (T*)place;
    }
};

// One thread's part of a step; the loops distribute the work over all threads.
template <class E> class Worker {
  public:
    Worker(const Model& model, const Step& step, const Places<E>& places)
        : model(model), step(step), places(places), heads(heads_of(model, step)), delta{model.delta},
          tokens(step.num_tokens), hidden(model.hidden), query_size(model.heads * model.head_dim),
          key_size(model.kv_heads * model.head_dim), width(Places<E>::attention_width(model)),
          query_stride(model.head_dim * (1 + model.has_gates)),
          scratch(places.attention + omp_get_thread_num() * scratch_floats<E>(heads)),
          adapters{step.adapters, places.squeezed, tokens, (long)step.max_rank, 0} {}

    void run() const {
        const E* embedded = (const E*)step.embedded;
#pragma omp for schedule(static)
        for (long i = 0; i < tokens * hidden; i += LANES)
            store(places.stream + i, load(embedded + i));
        for (long index = 0; index < model.num_layers; index++) {
            const Layer& layer = model.layers[index];
            const Adapters<E> own = adapters.at(index);
            if (layer.mixer) mix(layer, own, (E*)step.convolutions[index], step.states[index]);
            else attend(layer, own, step.keys[index], step.values[index]);
            feed_forward(layer, own);
        }
        norm(places.stream, tokens, hidden, model.norm, model.epsilon, (E*)step.results);
    }

  private:
    const Model& model;
    const Step& step;
    const Places<E>& places;
    const Heads heads;
    const DeltaPlaces delta;
    const long tokens, hidden, query_size, key_size, width, query_stride;
    float* scratch;
    const Adapters<E> adapters;

    // The normed stream, which `make(part, weights, bias, outputs, place)` multiplies to a place of each token's
    // `stride` projected numbers.
    auto projecting(const Layer& layer, const Adapters<E>& adapters, long stride) const {
        norm(places.stream, tokens, hidden, layer.attention_norm, model.epsilon, places.normed);
        const Operand<E> inputs = operand<E>(places.normed, tokens, hidden, places.tiles);
        adapters.squeeze(places.normed, hidden, PROJECTED, AT_ONCE);
        return [=, this, &adapters](int part, const void* weights, const void* bias, long size, long at) {
            project(inputs, tokens, hidden, (const E*)weights, (const E*)bias, size, places.projected + at, stride,
                    Adapted<E>{adapters, PROJECTED + part, part});
        };
    }

    // stream += the layer's results times weights.
    void add_output(const void* weights, const Adapters<E>& adapters, long size) const {
        const Operand<E> inputs = operand<E>(places.attended, tokens, size, places.tiles);
        adapters.squeeze(places.attended, size, MIXED_OUTPUT, 1);
        project_onto(inputs, tokens, size, (const E*)weights, hidden, places.stream,
                     Adapted<E>{adapters, MIXED_OUTPUT});
#pragma omp barrier
    }

    void attend(const Layer& layer, const Adapters<E>& adapters, void* keys, void* values) const {
        const auto make = projecting(layer, adapters, width);
        make(0, layer.query, layer.query_bias, width - 2 * key_size, 0);
        make(1, layer.key, layer.key_bias, key_size, width - 2 * key_size);
        make(2, layer.value, layer.value_bias, key_size, width - key_size);
#pragma omp barrier
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token++) place(layer, token, keys, values);
        toolwire::attend<E>(heads, step.rows, step.num_rows, places.queries, keys, values, places.attended, scratch);
        if (model.has_gates) {
#pragma omp for schedule(static)
            for (long token = 0; token < tokens; token++) gate(token);
        }
        add_output(layer.output, adapters, query_size);
    }

    // Norms and rotates one token's queries and keys, and stores queries, keys and values for attention.
    void place(const Layer& layer, long token, void* keys, void* values) const {
        float *own = places.projected + token * width, *key = own + width - 2 * key_size;
        const float *cosines = step.cosines + token * model.rotated, *sines = step.sines + token * model.rotated;
        const long dim = heads.head_dim;
        for (long head = 0; head < heads.heads; head++) {
            float* query = own + head * query_stride;
            turn(query, dim, model.rotated, layer.query_norm, model.epsilon, cosines, sines);
            for (long i = 0; i < dim; i += LANES)
                store(places.queries + token * query_size + head * dim + i, load(query + i));
        }
        for (long head = 0; head < heads.kv_heads; head++)
            turn(key + head * dim, dim, model.rotated, layer.key_norm, model.epsilon, cosines, sines);
        keep<E>(heads, key, key + key_size, keys, values, place_of(step.rows, token, heads.block_size));
    }

    // Multiplies one token's results of attention by the sigmoid of their gates.
    void gate(long token) const {
        for (long head = 0; head < heads.heads; head++) {
            const float* gate = places.projected + token * width + head * query_stride + heads.head_dim;
            Input<E>* own = places.attended + token * query_size + head * heads.head_dim;
            for (long i = 0; i < heads.head_dim; i += LANES) store(own + i, load(own + i) * sigmoid(load(gate + i)));
        }
    }

    void mix(const Layer& layer, const Adapters<E>& adapters, E* convolutions, float* states) const {
        const Mixer& mixer = *layer.mixer;
        const DeltaShape& shape = model.delta;
        const long mixed = shape.is_grouped ? delta.gated() : delta.channels(), stride = delta.width();
        const auto make = projecting(layer, adapters, stride);
        make(0, mixer.mixed, nullptr, mixed, 0);
        if (mixer.gate) make(1, mixer.gate, nullptr, delta.values(), mixed);
        make(2, mixer.rates, nullptr, shape.value_heads * (mixer.decay ? 1 : 2), delta.gated());
        if (mixer.decay) make(3, mixer.decay, nullptr, shape.value_heads, delta.gated() + shape.value_heads);
#pragma omp barrier
        const long num_heads = 2 * shape.key_heads + shape.value_heads;
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < step.num_rows * num_heads; item++) {
            const long row = item / num_heads;
            const Row& own = step.rows[row];
            prepare_head(delta, mixer, item % num_heads, places.projected + own.first_token * stride, own.num_tokens,
                         convolutions + step.slots[row] * delta.channels() * shape.kernel, own.start == 0);
        }
        const long blocks = (shape.value_dim + STATE_COLUMNS - 1) / STATE_COLUMNS, parts = shape.value_heads * blocks;
#pragma omp for schedule(dynamic, 1)
        for (long item = 0; item < step.num_rows * parts; item++) {
            const long row = item / parts, head = item % parts / blocks, first = item % blocks * STATE_COLUMNS;
            const Row& own = step.rows[row];
            float* state = states + (step.slots[row] * shape.value_heads + head) * shape.key_dim * shape.value_dim;
            advance_block(delta, head, first, places.projected + own.first_token * stride, own.num_tokens, state,
                          own.start == 0);
        }
#pragma omp for schedule(static)
        for (long token = 0; token < tokens; token++)
            norm_gated(delta, places.projected + token * stride, mixer.norm, model.epsilon,
                       places.attended + token * delta.values());
        add_output(mixer.output, adapters, delta.values());
    }

    void feed_forward(const Layer& layer, const Adapters<E>& adapters) const {
        const long inner = model.inner;
        norm(places.stream, tokens, hidden, layer.mlp_norm, model.epsilon, places.normed);
        if (layer.experts) {
            const ExpertPlaces<E> at(*layer.experts, hidden, tokens, places.feeding);
            for (long first = 0; first < tokens; first += EXPERT_TOKENS)
                feed_experts<E>(*layer.experts, places.normed + first * hidden, at_most(EXPERT_TOKENS, tokens - first),
                                hidden, at, places.stream + first * hidden);
            return;
        }
        const Operand<E> normed = operand<E>(places.normed, tokens, hidden, places.tiles);
        adapters.squeeze(places.normed, hidden, MLP_GATE, 2);
        project_gated(normed, tokens, hidden, (const E*)layer.gate, (const E*)layer.up, inner, places.opened,
                      Adapted<E>{adapters, MLP_GATE, 0}, Adapted<E>{adapters, MLP_UP, 1});
#pragma omp barrier
        const Operand<E> opened = operand<E>(places.opened, tokens, inner, places.tiles);
        adapters.squeeze(places.opened, inner, MLP_DOWN, 1);
        project_onto(opened, tokens, inner, (const E*)layer.down, hidden, places.stream,
                     Adapted<E>{adapters, MLP_DOWN});
#pragma omp barrier
    }
};

// Number of threads for a step; there are several barriers a layer.
int threads_of(const Model& model, const Step& step) {
    const long attended = model.heads * model.head_dim, kept = 2 * model.kv_heads * model.head_dim;
    const DeltaPlaces delta{model.delta};
    const long state = delta.values() * model.delta.key_dim, tokens = step.num_tokens;
    long products = 0, fetched = 0;  // of an average layer
    for (long index = 0; index < model.num_layers; index++) {
        const Layer& layer = model.layers[index];
        const long width = layer.mixer ? delta.width() + delta.values() : 2 * attended + kept;
        products += tokens * model.hidden * width, fetched += model.hidden * width;
        if (layer.experts) {
            const Experts& experts = *layer.experts;
            const long each = 3 * model.hidden * experts.inner, shared = 3 * model.hidden * experts.shared_inner;
            products += tokens * (experts.chosen * each + shared);
            fetched += at_most(tokens * experts.chosen, experts.count) * each + shared;
        } else {
            products += tokens * 3 * model.hidden * model.inner, fetched += 3 * model.hidden * model.inner;
        }
        if (layer.mixer) products += 3 * tokens * state, fetched += step.num_rows * state;
        for (long i = 0; i < step.num_rows && !layer.mixer; i++) {
            const Row& row = step.rows[i];
            products += row.num_tokens * (row.start + row.num_tokens) * 2 * attended;
            fetched += (row.start + row.num_tokens) * kept;
        }
    }
    return threads_for(products / model.num_layers, fetched / model.num_layers, step.num_threads);
}

template <class E> void compute(const Model& model, const Step& step) {
    const Places<E> places(model, step);
#pragma omp parallel num_threads(threads_of(model, step))
    Worker<E>(model, step, places).run();
}

template <class E> void attend_alone(const Attention& step) {
    const Heads heads = {(long)step.heads, (long)step.kv_heads, (long)step.head_dim, (long)step.block_size,
                         step.scaling, step.of_bytes != 0};
    const long key_size = heads.kv_heads * heads.head_dim;
    const E *new_keys = (const E*)step.new_keys, *new_values = (const E*)step.new_values;
#pragma omp parallel num_threads((int)step.num_threads)
    {
#pragma omp for schedule(static)
        for (long token = 0; token < step.num_tokens; token++) {
            const Place at = place_of(step.rows, token, heads.block_size);
            keep<E>(heads, new_keys + token * key_size, new_values + token * key_size, step.keys, step.values, at);
        }
        float* scratch = (float*)step.scratch + omp_get_thread_num() * scratch_floats<E>(heads);
        attend<E>(heads, step.rows, step.num_rows, (const E*)step.queries, step.keys, step.values, (E*)step.results,
                  scratch);
    }
}

// Id of a token's greatest output over all threads, the lowest of equal ones; -1 if an output is not finite.
int64_t likeliest(const Seen* first, long threads, long tokens) {
    float greatest = -INFINITY;
    int id = 0;
    for (long thread = 0; thread < threads; thread++) {
        const Seen& seen = first[thread * tokens];
        if (seen.is_broken) return -1;
        float values[LANES];
        int ids[LANES];
        store(values, seen.peaks.values);
        store(ids, seen.peaks.ids);
        for (int lane = 0; lane < LANES; lane++)
            if (values[lane] > greatest || (values[lane] == greatest && ids[lane] < id)) {
                greatest = values[lane];
                id = ids[lane];
            }
    }
    return id;
}

// Inputs of a product in the type in which it takes them.
template <class E> class Taken {
  public:
    Taken(const void* inputs, long tokens, long size)
        : tokens(tokens), size(size), copies(std::is_same_v<E, Input<E>> ? nullptr : new Input<E>[tokens * size]),
          tiles(new Input<E>[Formats<E>::elements(tokens, size)]),
          rows(as_input<E>((const E*)inputs, tokens * size, copies.get())) {}

    // Every thread of a parallel region calls it.
    Operand<E> get() const { return operand<E>(rows, tokens, size, tiles.get()); }

  private:
    const long tokens, size;
    const std::unique_ptr<Input<E>[]> copies, tiles;
    const Input<E>* const rows;
};

template <class E>
void project_alone(const void* inputs, long tokens, long size, const void* weights, long outputs, float* results,
                   long threads) {
    const Taken<E> taken(inputs, tokens, size);
#pragma omp parallel num_threads(threads_for(tokens * size * outputs, size * outputs, threads))
    project(taken.get(), tokens, size, (const E*)weights, (const E*)nullptr, outputs, results, outputs);
}

// The number of threads that filled their part of `seen` [threads, tokens].
template <class E>
int find_peaks(const void* inputs, long tokens, long size, const void* weights, long outputs, Seen* seen,
               long threads) {
    const Taken<E> taken(inputs, tokens, size);
    int working = 0;  // OpenMP may give fewer threads than requested
#pragma omp parallel num_threads(threads_for(tokens * size * outputs, size * outputs, threads))
    {
#pragma omp single nowait
        working = omp_get_num_threads();
        Seen* own = seen + omp_get_thread_num() * tokens;
        project_to_peaks(taken.get(), tokens, size, (const E*)weights, outputs, own);
    }
    return working;
}

}  // namespace

extern "C" {

// Changes with the functions and structures (`INTERFACE` in server/model/cpu/library.py).
int toolwire_interface() { return 5; }

// Bytes of scratch that a step needs; reads only the model, its numbers of tokens and threads, its blocks and the
// greatest rank of its adapters.
int64_t toolwire_step_bytes(const Model* model, const Step* step) {
    return model->is_bf16 ? Places<Bf16>(*model, *step).bytes : Places<float>(*model, *step).bytes;
}

// Everything between the embedded tokens and the output head.
void toolwire_compute(const Model* model, const Step* step) {
    model->is_bf16 ? compute<Bf16>(*model, *step) : compute<float>(*model, *step);
}

int64_t toolwire_attention_bytes(const Attention* step) {
    const Heads heads = {1, 1, (long)step->head_dim, (long)step->block_size, 1.0f, step->of_bytes != 0};
    const long floats = step->is_bf16 ? scratch_floats<Bf16>(heads) : scratch_floats<float>(heads);
    return step->num_threads * floats * sizeof(float);
}

// Stores new keys and values, then attends.
void toolwire_attend(const Attention* step) { step->is_bf16 ? attend_alone<Bf16>(*step) : attend_alone<float>(*step); }

// Bytes of the panels that weights [outputs, size] must be packed into before any product; 0 if they are read in place.
int64_t toolwire_panel_bytes(int64_t is_bf16, int64_t size, int64_t outputs) {
    if (size > (is_bf16 ? Formats<Bf16>::SHORT : Formats<float>::SHORT)) return 0;
    return Panels<Bf16>::elements(size, outputs) * (is_bf16 ? sizeof(Bf16) : sizeof(float));
}

void toolwire_lay_out(int64_t is_bf16, const void* weights, int64_t size, int64_t outputs, void* panels,
                      int64_t threads) {
#pragma omp parallel num_threads((int)threads)
    is_bf16 ? Panels<Bf16>::lay_out((const Bf16*)weights, size, outputs, (Bf16*)panels)
            : Panels<float>::lay_out((const float*)weights, size, outputs, (float*)panels);
}

// Bytes of scratch that `toolwire_likeliest` needs.
int64_t toolwire_likeliest_bytes(int64_t tokens, int64_t threads) { return (tokens * threads + 1) * sizeof(Seen); }

// ids [tokens] of the greatest outputs, the lowest of equal ones; -1 where an output is not finite.
void toolwire_likeliest(int64_t is_bf16, const void* inputs, int64_t tokens, int64_t size, const void* weights,
                        int64_t outputs, int64_t* ids, void* scratch, int64_t threads) {
    Seen* seen = (Seen*)rounded_up((intptr_t)scratch, alignof(Seen));
    const int working = is_bf16 ? find_peaks<Bf16>(inputs, tokens, size, weights, outputs, seen, threads)
                                : find_peaks<float>(inputs, tokens, size, weights, outputs, seen, threads);
    for (long token = 0; token < tokens; token++) ids[token] = likeliest(seen + token, working, tokens);
}

// results [tokens, outputs] in float32 = inputs [tokens, size] times weights [outputs, size].
void toolwire_project(int64_t is_bf16, const void* inputs, int64_t tokens, int64_t size, const void* weights,
                      int64_t outputs, float* results, int64_t threads) {
    is_bf16 ? project_alone<Bf16>(inputs, tokens, size, weights, outputs, results, threads)
            : project_alone<float>(inputs, tokens, size, weights, outputs, results, threads);
}
}
