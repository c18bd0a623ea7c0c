// AVX-512 and AMX in plain C++: the intrinsics that the kernels of these sets call, for CPUs that lack them.
//
// It stands for the system's header, whose types it takes. Tiles check their shapes as the CPU does, and abort.
#pragma once
#include_next <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace emulated {

typedef float Lanes __attribute__((vector_size(64)));
typedef int Signed __attribute__((vector_size(64)));
typedef unsigned Bits __attribute__((vector_size(64)));
constexpr int LANES = 16;

template <class To, class From> inline To as(From from) { return __builtin_bit_cast(To, from); }
template <class T> inline T read(const void* from) {
    T to;
    std::memcpy(&to, from, sizeof(T));
    return to;
}
template <class Each> inline __m512 each(Each value) {
    Lanes to;
    for (int i = 0; i < LANES; i++) to[i] = value(i);
    return as<__m512>(to);
}
template <class Each> inline __m512i each_int(Each value) {
    Signed to;
    for (int i = 0; i < LANES; i++) to[i] = value(i);
    return as<__m512i>(to);
}
template <class Each> inline __mmask16 mask(Each holds) {
    unsigned to = 0;
    for (int i = 0; i < LANES; i++) to |= (unsigned)holds(i) << i;
    return (__mmask16)to;
}
inline bool has(unsigned mask, int lane) { return mask >> lane & 1; }
inline float wide(uint16_t bits) { return as<float>((uint32_t)bits << 16); }

inline __m512 set1_ps(float value) { return each([=](int) { return value; }); }
inline __m512i set1_epi32(int value) { return each_int([=](int) { return value; }); }
template <class... Values> inline __m512i setr_epi32(Values... values) {
    const int all[LANES] = {values...};
    return read<__m512i>(all);
}
inline __m512 maskz_loadu_ps(unsigned own, const float* from) {
    return each([=](int i) { return has(own, i) ? from[i] : 0.0f; });
}
inline void mask_storeu_ps(float* to, unsigned own, __m512 values) {
    for (int i = 0; i < LANES; i++)
        if (has(own, i)) to[i] = values[i];
}
inline void mask_storeu_epi16(void* to, unsigned own, __m256i values) {
    const uint16_t* from = (const uint16_t*)&values;
    for (int i = 0; i < LANES; i++)
        if (has(own, i)) std::memcpy((char*)to + 2 * i, from + i, 2);
}
inline __m512i cvtepu16_epi32(__m256i values) {
    return each_int([=](int i) { return (int)((const uint16_t*)&values)[i]; });
}
inline __m256i cvtepi32_epi16(__m512i values) {
    uint16_t to[LANES];
    for (int i = 0; i < LANES; i++) to[i] = (uint16_t)as<Signed>(values)[i];
    return read<__m256i>(to);
}
inline __m256i cvtneps_pbh(__m512 values) {
    uint16_t to[LANES];
    for (int i = 0; i < LANES; i++) {
        const uint32_t bits = as<uint32_t>((float)values[i]);
        to[i] = (std::isnan(values[i]) ? bits | 1u << 22 : bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    }
    return read<__m256i>(to);
}
inline __m512i cvtepi8_epi32(__m128i values) {
    return each_int([=](int i) { return ((const int8_t*)&values)[i]; });
}
inline __m512 cvtepi32_ps(__m512i values) {
    return each([=](int i) { return (float)as<Signed>(values)[i]; });
}
inline __m512 cvtph_ps(__m256i values) {
    return each([&](int i) { return (float)((const _Float16*)&values)[i]; });
}
inline __m512i madd_epi16(__m512i a, __m512i b) {
    const int16_t *x = (const int16_t*)&a, *y = (const int16_t*)&b;
    return each_int([&](int i) { return x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1]; });
}
// Registers of bytes and of pairs of them: value(place).
template <class T, class Each> inline __m512i each_of(Each value) {
    T to[64 / sizeof(T)];
    for (int i = 0; i < (int)(64 / sizeof(T)); i++) to[i] = (T)value(i);
    return read<__m512i>(to);
}
inline __m512i add_epi16(__m512i a, __m512i b) {
    const int16_t *x = (const int16_t*)&a, *y = (const int16_t*)&b;
    return each_of<int16_t>([&](int i) { return x[i] + y[i]; });
}
inline __m512i maddubs_epi16(__m512i a, __m512i b) {
    const uint8_t* x = (const uint8_t*)&a;
    const int8_t* y = (const int8_t*)&b;
    return each_of<int16_t>([&](int i) {
        const int sum = x[2 * i] * y[2 * i] + x[2 * i + 1] * y[2 * i + 1];
        return sum > 32767 ? 32767 : sum < -32768 ? -32768 : sum;
    });
}
inline __m512i dpbusd_epi32(__m512i sum, __m512i a, __m512i b) {
    const uint8_t* x = (const uint8_t*)&a;
    const int8_t* y = (const int8_t*)&b;
    return each_int([&](int i) {
        int total = as<Signed>(sum)[i];
        for (int j = 4 * i; j < 4 * i + 4; j++) total += x[j] * y[j];
        return total;
    });
}
inline __m512i abs_epi8(__m512i a) {
    return each_of<uint8_t>([&](int i) { return std::abs(((const int8_t*)&a)[i]); });
}
inline uint64_t movepi8_mask(__m512i a) {
    uint64_t to = 0;
    for (int i = 0; i < 64; i++) to |= (uint64_t)(((const int8_t*)&a)[i] < 0) << i;
    return to;
}
inline __m512i mask_sub_epi8(__m512i other, uint64_t own, __m512i a, __m512i b) {
    const int8_t *x = (const int8_t*)&a, *y = (const int8_t*)&b, *z = (const int8_t*)&other;
    return each_of<int8_t>([&](int i) { return own >> i & 1 ? x[i] - y[i] : z[i]; });
}
inline __m512 permutex2var_ps(__m512 a, __m512i places, __m512 b) {
    return each([&](int i) {
        const int place = as<Signed>(places)[i];
        return place & LANES ? b[place % LANES] : a[place % LANES];
    });
}
inline __m512 fmadd(__m512 a, __m512 b, __m512 c) { return each([&](int i) { return std::fmaf(a[i], b[i], c[i]); }); }
inline __m512 fnmadd(__m512 a, __m512 b, __m512 c) {
    return each([&](int i) { return std::fmaf(-a[i], b[i], c[i]); });
}
inline __m512 max(__m512 a, __m512 b) { return each([&](int i) { return a[i] > b[i] ? a[i] : b[i]; }); }
inline __m512 min(__m512 a, __m512 b) { return each([&](int i) { return a[i] < b[i] ? a[i] : b[i]; }); }
inline __m512 nearest(__m512 a) { return each([&](int i) { return std::nearbyintf(a[i]); }); }
inline __m512 maskz_scalef(unsigned own, __m512 a, __m512 power) {
    return each([&](int i) { return has(own, i) ? std::ldexp(a[i], (int)power[i]) : 0.0f; });
}
inline float reduce_add(__m512 a) {
    for (int n = LANES / 2; n; n /= 2)
        for (int i = 0; i < n; i++) a[i] += a[i + n];
    return a[0];
}
inline float reduce_max(__m512 a) {
    float most = a[0];
    for (int i = 1; i < LANES; i++) most = a[i] > most ? a[i] : most;
    return most;
}
inline __mmask16 mask_cmp(unsigned own, __m512 a, __m512 b, int how) {
    return mask([&](int i) {
        const bool holds = how == _CMP_NLT_UQ    ? !(a[i] < b[i])
                           : how == _CMP_GT_OQ   ? a[i] > b[i]
                           : how == _CMP_UNORD_Q ? std::isnan(a[i]) || std::isnan(b[i])
                                                 : (std::abort(), false);
        return holds && has(own, i);
    });
}
inline __mmask16 mask_fpclass(unsigned own, __m512 a) {
    return mask([&](int i) { return !std::isfinite(a[i]) && has(own, i); });
}
inline __m512 mask_mov(__m512 other, unsigned own, __m512 a) {
    return each([&](int i) { return has(own, i) ? a[i] : other[i]; });
}
inline __m512i mask_mov_int(__m512i other, unsigned own, __m512i a) {
    return each_int([&](int i) { return has(own, i) ? as<Signed>(a)[i] : as<Signed>(other)[i]; });
}
inline __m512 unpack_ps(__m512 a, __m512 b, int half) {
    return each([&](int i) { return (i & 1 ? b : a)[i / 4 * 4 + 2 * half + (i & 3) / 2]; });
}
inline __m512d unpack_pd(__m512d a, __m512d b, int half) {
    __m512d to;
    for (int i = 0; i < 8; i++) to[i] = (i & 1 ? b : a)[i / 2 * 2 + half];
    return to;
}
inline __m512 shuffle_quarters(__m512 a, __m512 b, int which) {
    return each([&](int i) { return (i < 8 ? a : b)[(which >> 2 * (i / 4) & 3) * 4 + i % 4]; });
}
inline __m256 half_of(__m512 a, int half) { return read<__m256>((const char*)&a + 32 * half); }
inline __m512 dpbf16(__m512 sum, __m512i a, __m512i b) {
    const Bits x = as<Bits>(a), y = as<Bits>(b);
    return each([&](int i) { return sum[i] + wide(x[i] >> 16) * wide(y[i] >> 16) + wide(x[i]) * wide(y[i]); });
}

struct Shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};
struct Tile {
    uint8_t row[16][64];
};
inline thread_local Shapes shapes;
inline thread_local Tile tiles[8];

inline void demand(bool holds) {
    if (!holds) std::abort();  // where the CPU raises an exception
}
inline void tile_loadconfig(const void* from) {
    std::memcpy(&shapes, from, sizeof(Shapes));
    demand(shapes.palette == 1 && shapes.start_row == 0);
    for (int i = 0; i < 8; i++) demand(shapes.rows[i] <= 16 && shapes.row_bytes[i] <= 64);
    std::memset(tiles, 0, sizeof(tiles));
}
inline void tile_release() { std::memset(&shapes, 0, sizeof(shapes)); }
inline void tile_zero(int tile) {
    demand(shapes.palette == 1);
    std::memset(&tiles[tile], 0, sizeof(Tile));
}
inline void tile_loadd(int tile, const void* from, long stride) {
    demand(shapes.palette == 1 && shapes.rows[tile] > 0);
    std::memset(&tiles[tile], 0, sizeof(Tile));
    for (int i = 0; i < shapes.rows[tile]; i++)
        std::memcpy(tiles[tile].row[i], (const char*)from + i * stride, shapes.row_bytes[tile]);
}
inline void tile_stored(int tile, void* to, long stride) {
    demand(shapes.palette == 1 && shapes.rows[tile] > 0);
    for (int i = 0; i < shapes.rows[tile]; i++)
        std::memcpy((char*)to + i * stride, tiles[tile].row[i], shapes.row_bytes[tile]);
}
inline void tile_dpbf16ps(int sum, int a, int b) {
    demand(sum != a && sum != b && a != b && shapes.palette == 1);
    demand(shapes.rows[sum] == shapes.rows[a] && shapes.row_bytes[sum] == shapes.row_bytes[b]);
    demand(shapes.row_bytes[a] == 4 * shapes.rows[b]);
    for (int m = 0; m < shapes.rows[sum]; m++)
        for (int n = 0; n < shapes.row_bytes[sum] / 4; n++) {
            float total = read<float>(tiles[sum].row[m] + 4 * n);
            for (int k = 0; k < shapes.row_bytes[a] / 2; k++) {
                const uint16_t x = read<uint16_t>(tiles[a].row[m] + 2 * k);
                const uint16_t y = read<uint16_t>(tiles[b].row[k / 2] + 4 * n + 2 * (k % 2));
                total += wide(x) * wide(y);
            }
            std::memcpy(tiles[sum].row[m] + 4 * n, &total, 4);
        }
}

}  // namespace emulated

#undef _mm512_cmp_ps_mask
#undef _mm512_extractf32x8_ps
#undef _mm512_mask_cmp_ps_mask
#undef _mm512_mask_fpclass_ps_mask
#undef _mm512_roundscale_ps
#undef _mm512_setr_epi32
#undef _mm512_shuffle_f32x4
#undef _mm512_slli_epi32
#undef _mm512_srli_epi32
#undef _tile_dpbf16ps
#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#define _mm256_mask_storeu_epi16 emulated::mask_storeu_epi16
#define _mm512_abs_epi8 emulated::abs_epi8
#define _mm512_add_epi16 emulated::add_epi16
#define _mm512_add_epi32(a, b) emulated::as<__m512i>(emulated::as<emulated::Bits>(a) + emulated::as<emulated::Bits>(b))
#define _mm512_add_ps(a, b) ((a) + (b))
#define _mm512_and_si512(a, b) ((a) & (b))
#define _mm512_castps512_ps256(a) emulated::half_of(a, 0)
#define _mm512_castps_si512(a) emulated::as<__m512i>(a)
#define _mm512_castsi512_ps(a) emulated::as<__m512>(a)
#define _mm512_cmp_ps_mask(a, b, how) emulated::mask_cmp(0xffff, a, b, how)
#define _mm512_cvtepi32_epi16 emulated::cvtepi32_epi16
#define _mm512_cvtepu16_epi32 emulated::cvtepu16_epi32
#define _mm512_cvtneps_pbh emulated::cvtneps_pbh
#define _mm512_cvtepi8_epi32 emulated::cvtepi8_epi32
#define _mm512_cvtepi32_ps emulated::cvtepi32_ps
#define _mm512_cvtph_ps emulated::cvtph_ps
#define _mm512_dpbusd_epi32 emulated::dpbusd_epi32
#define _mm512_dpwssd_epi32(sum, a, b) _mm512_add_epi32(sum, emulated::madd_epi16(a, b))
#define _mm512_madd_epi16 emulated::madd_epi16
#define _mm512_maddubs_epi16 emulated::maddubs_epi16
#define _mm512_dpbf16_ps(sum, a, b) emulated::dpbf16(sum, (__m512i)(a), (__m512i)(b))
#define _mm512_extractf32x8_ps emulated::half_of
#define _mm512_fmadd_ps emulated::fmadd
#define _mm512_fnmadd_ps emulated::fnmadd
#define _mm512_loadu_ps emulated::read<__m512>
#define _mm512_loadu_si512 emulated::read<__m512i>
#define _mm512_mask_cmp_ps_mask emulated::mask_cmp
#define _mm512_mask_fpclass_ps_mask(own, a, classes) emulated::mask_fpclass(own, a)
#define _mm512_mask_mov_epi32 emulated::mask_mov_int
#define _mm512_mask_mov_ps emulated::mask_mov
#define _mm512_mask_sub_epi8 emulated::mask_sub_epi8
#define _mm512_mask_storeu_ps emulated::mask_storeu_ps
#define _mm512_maskz_loadu_ps emulated::maskz_loadu_ps
#define _mm512_maskz_scalef_ps emulated::maskz_scalef
#define _mm512_max_ps emulated::max
#define _mm512_min_ps emulated::min
#define _mm512_movepi8_mask emulated::movepi8_mask
#define _mm512_or_si512(a, b) ((a) | (b))
#define _mm512_permutex2var_ps emulated::permutex2var_ps
#define _mm512_reduce_add_ps emulated::reduce_add
#define _mm512_reduce_max_ps emulated::reduce_max
#define _mm512_roundscale_ps(a, how) emulated::nearest(a)
#define _mm512_set1_epi16(value) emulated::set1_epi32((uint16_t)(value) * 0x10001)
#define _mm512_set1_epi32 emulated::set1_epi32
#define _mm512_set1_ps emulated::set1_ps
#define _mm512_setr_epi32 emulated::setr_epi32
#define _mm512_setzero_si512() emulated::set1_epi32(0)
#define _mm512_shuffle_f32x4 emulated::shuffle_quarters
#define _mm512_slli_epi32(a, by) emulated::as<__m512i>(emulated::as<emulated::Bits>(a) << (by))
#define _mm512_srli_epi32(a, by) emulated::as<__m512i>(emulated::as<emulated::Bits>(a) >> (by))
#define _mm512_storeu_ps(to, a) std::memcpy(to, &(const __m512&)(a), 64)
#define _mm512_storeu_si512(to, a) std::memcpy(to, &(const __m512i&)(a), 64)
#define _mm512_unpackhi_pd(a, b) emulated::unpack_pd(a, b, 1)
#define _mm512_unpackhi_ps(a, b) emulated::unpack_ps(a, b, 1)
#define _mm512_unpacklo_pd(a, b) emulated::unpack_pd(a, b, 0)
#define _mm512_unpacklo_ps(a, b) emulated::unpack_ps(a, b, 0)
#define _tile_dpbf16ps emulated::tile_dpbf16ps
#define _tile_loadconfig emulated::tile_loadconfig
#define _tile_loadd emulated::tile_loadd
#define _tile_release emulated::tile_release
#define _tile_stored emulated::tile_stored
#define _tile_zero emulated::tile_zero
