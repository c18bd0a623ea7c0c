// Drives the kernels of one set without Python: g++ -DKERNELS='"neon.cpp"' -I server/model/cpu/cpp drive_kernels.cpp
//
// Writes its results to the file that it is given, as float32, for a comparison with those of another set; the same
// numbers come from its generator everywhere. Ends with 1 if results depend on how tokens are cut into steps.
#include KERNELS

#include <cstdio>
#include <cstdlib>
#include <list>
#include <vector>

namespace {

uint64_t seed = 1;
FILE* file;

float random_number() {  // from -1 to 1, 24 bits of a linear congruential generator
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (float)(seed >> 40) / (1 << 23) - 1.0f;
}

void set(float& to, float value) { to = value; }
void set(Bf16& to, float value) { to = {(uint16_t)((__builtin_bit_cast(uint32_t, value) + 0x8000) >> 16)}; }
float get(float value) { return value; }
float get(Bf16 value) { return __builtin_bit_cast(float, (uint32_t)value.bits << 16); }

void demand(bool holds, const char* what) {
    if (holds) return;
    std::printf("%s\n", what);
    std::exit(1);
}

void keep_results(const std::vector<float>& values) { std::fwrite(values.data(), sizeof(float), values.size(), file); }

// Random weights and vectors of one model, kept alive.
template <class E> struct Memory {
    std::list<std::vector<E>> elements;
    std::list<std::vector<float>> floats;

    E* random(long count, float scale) {
        std::vector<E>& own = elements.emplace_back(count + 64);
        for (E& element : own) set(element, scale * random_number());
        return own.data();
    }
    const float* vector(long count, float middle, float width) {
        std::vector<float>& own = floats.emplace_back(count);
        for (float& value : own) value = middle + width * random_number();
        return own.data();
    }
    // Weights [outputs, size], in panels if the kernels want them.
    const E* weights(long outputs, long size) {
        constexpr bool IS_BF16 = std::is_same_v<E, Bf16>;
        E* rows = random(outputs * size, 1.7f / std::sqrt((float)size));
        const long bytes = toolwire_panel_bytes(IS_BF16, size, outputs);
        if (bytes == 0) return rows;
        std::vector<E>& panels = elements.emplace_back(bytes / sizeof(E));
        toolwire_lay_out(IS_BF16, rows, size, outputs, panels.data(), 1);
        return panels.data();
    }
};

template <class E> void drive_products() {
    constexpr bool IS_BF16 = std::is_same_v<E, Bf16>;
    constexpr long TOKENS = 80, OUTPUTS = 39;
    for (long size : {96, 544, 1056}) {
        Memory<E> memory;
        const E *weights = memory.weights(OUTPUTS, size), *inputs = memory.random(TOKENS * size, 1.0f);
        std::vector<float> whole(TOKENS * OUTPUTS), some(TOKENS * OUTPUTS);
        toolwire_project(IS_BF16, inputs, TOKENS, size, weights, OUTPUTS, whole.data(), 1);
        keep_results(whole);
        for (long count = 1; count < TOKENS; count += count < 18 ? 1 : 15) {
            toolwire_project(IS_BF16, inputs, count, size, weights, OUTPUTS, some.data(), 1);
            demand(!std::memcmp(some.data(), whole.data(), count * OUTPUTS * sizeof(float)), "products");
        }
        std::vector<int64_t> ids(TOKENS);
        std::vector<char> scratch(toolwire_likeliest_bytes(TOKENS, 1));
        toolwire_likeliest(IS_BF16, inputs, TOKENS, size, weights, OUTPUTS, ids.data(), scratch.data(), 1);
        for (long token = 0; token < TOKENS; token++) {
            const float* own = whole.data() + token * OUTPUTS;
            demand(ids[token] == std::max_element(own, own + OUTPUTS) - own, "likeliest");
        }
    }
}

// Weights of few bits in every form: a width, groups of half a block, of a block or of all inputs, each kind of scales;
// with inputs of sixteen bits and of eight.
template <class E> void drive_few_bits() {
    constexpr bool IS_BF16 = std::is_same_v<E, Bf16>;
    constexpr long TOKENS = 40, OUTPUTS = 39, PANELS = 3, SUPER = 3;
    const uint64_t before = seed;  // what is driven afterwards has the numbers that it would have without this
    auto byte = [] { return (int)(128.0f * random_number()); };
    for (long width : {4, 5, 6, 8})
        for (long size : {96, 768})
            for (long group : {16L, 32L, size})
                for (int form = 0; form < 8; form++) {
                    const int kind = form % 4, input_bits = form < 4 ? 16 : 8;
                    const long groups = PANELS * 16 * (size / group), super = group < size ? SUPER : 1;
                    std::vector<uint8_t> codes(PANELS * 16 * size * width / 8 + 4096);
                    for (uint8_t& code : codes) code = (uint8_t)byte();
                    std::vector<uint16_t> halves(groups);
                    for (uint16_t& half : halves) half = (uint16_t)(0x2000 + 8 * (64 + byte() / 2));  // 2^-7 and more
                    std::vector<int8_t> bytes(groups);
                    for (int8_t& value : bytes) value = (int8_t)byte();
                    Memory<E> memory;
                    const float *floats = memory.vector(groups, 0.01f, 0.005f);
                    const float *supers = memory.vector(groups / super, 2e-4f, 1e-4f);
                    const void* const scales[] = {halves.data(), floats, bytes.data(), bytes.data()};
                    const bool has_minimums = kind == 1 || kind == 3;
                    alignas(16) const Quantized weights = {
                        width, size, OUTPUTS, group, 1 << (width - 1), kind < 2 ? kind : INT8, super, input_bits,
                        codes.data(), scales[kind], has_minimums ? scales[kind] : nullptr, supers, supers};
                    const void* marked = (const char*)&weights + 1;
                    const E* inputs = memory.random(TOKENS * size, 1.0f);
                    std::vector<float> whole(TOKENS * OUTPUTS), some(TOKENS * OUTPUTS);
                    toolwire_project(IS_BF16, inputs, TOKENS, size, marked, OUTPUTS, whole.data(), 1);
                    keep_results(whole);
                    for (long count : {1, 2, 6, 7, 13}) {
                        toolwire_project(IS_BF16, inputs, count, size, marked, OUTPUTS, some.data(), 1);
                        demand(!std::memcmp(some.data(), whole.data(), count * OUTPUTS * sizeof(float)), "few bits");
                    }
                }
    seed = before;
}

constexpr long HIDDEN = 64, INNER = 544, HEADS = 6, KV_HEADS = 2, HEAD_DIM = 32, TOKENS = 19, BLOCK_SIZE = 10;
constexpr long EXPERTS = 4, SHARED = 32, KEY_HEADS = 2, VALUE_HEADS = 4, KEY_DIM = 16, VALUE_DIM = 48, KERNEL = 4;

template <class E> struct Decoder {
    Memory<E> memory;
    Layer layers[2] = {};
    Mixer mixer;
    Experts experts[2];
    AdapterLayer adapter[2] = {};
    Model model = {};

    // Dense, or with experts, gated attention and, in the first layer, a recurrent state.
    Decoder(bool is_hybrid, bool is_grouped) {
        model = {.is_bf16 = std::is_same_v<E, Bf16>, .hidden = HIDDEN, .inner = INNER, .heads = HEADS,
                 .kv_heads = KV_HEADS, .head_dim = HEAD_DIM, .num_layers = 2, .rotated = is_hybrid ? 8 : HEAD_DIM,
                 .has_gates = is_hybrid, .delta = {}, .epsilon = 1e-6f, .scaling = 0.18f, .layers = layers,
                 .norm = memory.vector(HIDDEN, 1.0f, 0.2f)};
        if (is_hybrid) model.delta = {KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM, KERNEL, is_grouped};
        for (Layer& layer : layers) {
            layer.attention_norm = memory.vector(HIDDEN, 1.0f, 0.2f);
            layer.mlp_norm = memory.vector(HIDDEN, 1.0f, 0.2f);
            if (is_hybrid && &layer == layers) layer.mixer = add_mixer(is_grouped);
            else add_attention(layer, is_hybrid);
            if (is_hybrid) layer.experts = add_experts(experts[&layer - layers], &layer == layers);
            else {
                layer.gate = memory.weights(INNER, HIDDEN);
                layer.up = memory.weights(INNER, HIDDEN);
                layer.down = memory.weights(HIDDEN, INNER);
            }
            add_adapter(adapter[&layer - layers], layer, is_hybrid);
        }
    }

    // Of all projections but one, of ranks below and above a register.
    void add_adapter(AdapterLayer& to, const Layer& layer, bool is_gated) {
        const DeltaPlaces places{model.delta};
        const long heads = HEADS * HEAD_DIM * (1 + is_gated), kept = KV_HEADS * HEAD_DIM;
        if (layer.mixer) {
            to.parts[0] = low_rank(5, HIDDEN, layer.mixer->gate ? places.channels() : places.gated());
            to.parts[2] = low_rank(2, HIDDEN, VALUE_HEADS * (layer.mixer->decay ? 1 : 2));
            to.parts[MIXED_OUTPUT] = low_rank(19, places.values(), HIDDEN);
        } else {
            to.parts[0] = low_rank(5, HIDDEN, heads);
            to.parts[2] = low_rank(19, HIDDEN, kept);
            to.parts[MIXED_OUTPUT] = low_rank(3, HEADS * HEAD_DIM, HIDDEN);
        }
        if (layer.experts) return;
        to.parts[MLP_GATE] = low_rank(16, HIDDEN, INNER);
        to.parts[MLP_UP] = low_rank(7, HIDDEN, INNER);
        to.parts[MLP_DOWN] = low_rank(8, INNER, HIDDEN);
    }

    LowRank low_rank(long rank, long inputs, long outputs) {
        return {rank, memory.random(rank * inputs, 0.2f), memory.random(rounded_up(outputs, GROUP) * rank, 0.2f)};
    }

    void add_attention(Layer& layer, bool is_gated) {
        layer.query = memory.weights(HEADS * HEAD_DIM * (1 + is_gated), HIDDEN);
        layer.key = memory.weights(KV_HEADS * HEAD_DIM, HIDDEN);
        layer.value = memory.weights(KV_HEADS * HEAD_DIM, HIDDEN);
        layer.output = memory.weights(HIDDEN, HEADS * HEAD_DIM);
        layer.key_bias = memory.random(KV_HEADS * HEAD_DIM, 0.3f);
        layer.query_norm = memory.vector(HEAD_DIM, 1.0f, 0.2f);
        layer.key_norm = memory.vector(HEAD_DIM, 1.0f, 0.2f);
    }

    const Mixer* add_mixer(bool is_grouped) {
        const DeltaPlaces places{model.delta};
        mixer.mixed = memory.weights(is_grouped ? places.gated() : places.channels(), HIDDEN);
        mixer.gate = is_grouped ? nullptr : memory.weights(places.values(), HIDDEN);
        mixer.rates = memory.weights(VALUE_HEADS * (1 + is_grouped), HIDDEN);
        mixer.decay = is_grouped ? nullptr : memory.weights(VALUE_HEADS, HIDDEN);
        mixer.output = memory.weights(HIDDEN, places.values());
        mixer.convolution = memory.vector(KERNEL * places.channels(), 0.0f, 1.0f);
        mixer.decay_rate = memory.vector(VALUE_HEADS, -2.0f, 1.0f);
        mixer.dt_bias = memory.vector(VALUE_HEADS, 0.5f, 0.5f);
        mixer.norm = memory.vector(VALUE_DIM, 1.0f, 0.2f);
        return &mixer;
    }

    // In bfloat16 every expert is chosen: rounding of scores would change the choice.
    const Experts* add_experts(Experts& to, bool has_shared) {
        to = {EXPERTS, model.is_bf16 ? EXPERTS : 2, INNER, has_shared ? SHARED : 0, has_shared,
              memory.weights(EXPERTS + has_shared, HIDDEN), memory.weights(EXPERTS * 2 * INNER, HIDDEN),
              memory.weights(EXPERTS * HIDDEN, INNER), nullptr, nullptr, nullptr};
        if (has_shared) {
            to.shared_gate = memory.weights(SHARED, HIDDEN);
            to.shared_up = memory.weights(SHARED, HIDDEN);
            to.shared_down = memory.weights(HIDDEN, SHARED);
        }
        return &to;
    }
};

// Hidden states of a sequence whose tokens are computed in steps that end at `ends`; every third token has the adapter.
template <class E>
std::vector<float> run(const Decoder<E>& decoder, const E* embedded, std::vector<long> ends, bool of_bytes = false) {
    const Model& model = decoder.model;
    const long block = KV_HEADS * HEAD_DIM * BLOCK_SIZE, channels = DeltaPlaces{model.delta}.channels();
    std::vector<std::vector<E>> cache(4, std::vector<E>(3 * block + 64));
    std::vector<E> kept(2 * channels * KERNEL + 64);
    std::vector<float> state(2 * VALUE_HEADS * KEY_DIM * VALUE_DIM, NAN), found;
    void *keys[] = {cache[0].data(), cache[1].data()}, *values[] = {cache[2].data(), cache[3].data()};
    void* convolutions[] = {kept.data(), nullptr};
    float* states[] = {state.data(), nullptr};
    const int32_t blocks[] = {2, 0, 1};
    const int64_t slot = 1;
    std::vector<float> cosines(TOKENS * HEAD_DIM), sines(TOKENS * HEAD_DIM);
    for (long begin = 0; long end : ends) {
        const long count = end - begin, rotated = model.rotated;
        for (long i = 0; i < count * rotated; i++) {
            const float angle = (begin + i / rotated) * std::pow(100.0f, -2.0f * (i % (rotated / 2)) / rotated);
            cosines[i] = std::cos(angle), sines[i] = std::sin(angle);
        }
        const Row row = {0, count, begin, blocks};
        std::vector<E> results(count * HIDDEN);
        std::vector<const AdapterLayer*> adapters(count);
        for (long token = 0; token < count; token++)
            adapters[token] = (begin + token) % 3 == 1 ? decoder.adapter : nullptr;
        Step step = {.num_tokens = count, .num_rows = 1, .num_threads = 2, .block_size = BLOCK_SIZE,
                     .of_bytes = of_bytes, .rows = &row,
                     .keys = keys, .values = values, .slots = &slot, .convolutions = convolutions, .states = states,
                     .embedded = embedded + begin * HIDDEN, .cosines = cosines.data(), .sines = sines.data(),
                     .results = results.data(), .scratch = nullptr, .adapters = adapters.data(), .max_rank = 19};
        std::vector<char> scratch(toolwire_step_bytes(&model, &step) + 64);
        step.scratch = (void*)rounded_up((intptr_t)scratch.data(), 64);
        toolwire_compute(&model, &step);
        for (E element : results) found.push_back(get(element));
        begin = end;
    }
    return found;
}

template <class E> void drive_decoder(bool is_hybrid, bool is_grouped) {
    Decoder<E> decoder(is_hybrid, is_grouped);
    const E* embedded = decoder.memory.random(TOKENS * HIDDEN, 1.0f);
    const std::vector<float> whole = run(decoder, embedded, {TOKENS});
    for (float value : whole) demand(std::isfinite(value), "results that are not finite");
    demand(whole == run(decoder, embedded, {1, 2, 9, 17, 18, TOKENS}), "results in other steps");
    const std::vector<float> rounded = run(decoder, embedded, {TOKENS}, true);
    for (float value : rounded) demand(std::isfinite(value), "results over bytes that are not finite");
    demand(rounded == run(decoder, embedded, {1, 2, 9, 17, 18, TOKENS}, true), "results over bytes in other steps");
    keep_results(whole);
}

template <class E> void drive() {
    drive_products<E>();
    drive_few_bits<E>();
    drive_decoder<E>(false, false);
    drive_decoder<E>(true, false);
    drive_decoder<E>(true, true);
}

}  // namespace

int main(int, char** arguments) {
    demand(toolwire_is_supported(), "this CPU lacks the set");
    file = std::fopen(arguments[1], "wb");
    drive<float>();
    drive<Bf16>();
    std::fclose(file);
}
