// AVX-512 VNNI: four products of bytes, or two of 16-bit factors, added to a 32-bit sum by one instruction.
#include "kernel_set.h"
#include "target.h"

#if HALFBYTE_X86
#if defined(__GNUC__) && !defined(__clang__)
// GCC's own header passes deliberately undefined vectors, and GCC 12 warns of them.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include <cmath>
#include <cstring>

HALFBYTE_TARGET_BEGIN(HALFBYTE_AVX512)
namespace halfbyte {
namespace avx512 {

using V = __m512i;
using F = __m512;
constexpr int lanes = 16, tile_rows = 12, tile_columns = 32;

HALFBYTE_INLINE V load(const int32_t* at) { return _mm512_loadu_si512(at); }
HALFBYTE_INLINE void store(int32_t* at, V v) { _mm512_storeu_si512(at, v); }
HALFBYTE_INLINE F load_float(const float* at) { return _mm512_loadu_ps(at); }
HALFBYTE_INLINE void store_float(float* at, F v) { _mm512_storeu_ps(at, v); }
HALFBYTE_INLINE V spread(int32_t x) { return _mm512_set1_epi32(x); }
HALFBYTE_INLINE V add(V x, V y) { return _mm512_add_epi32(x, y); }
HALFBYTE_INLINE V multiply(V x, V y) { return _mm512_mullo_epi32(x, y); }
HALFBYTE_INLINE F to_float(V x) { return _mm512_cvtepi32_ps(x); }
HALFBYTE_INLINE F multiply_float(F x, F y) { return _mm512_mul_ps(x, y); }
HALFBYTE_INLINE F add_float(F x, F y) { return _mm512_add_ps(x, y); }

using M = __mmask16;
HALFBYTE_INLINE F spread_float(float x) { return _mm512_set1_ps(x); }
HALFBYTE_INLINE F subtract_float(F x, F y) { return _mm512_sub_ps(x, y); }
HALFBYTE_INLINE F fused(F x, F y, F z) { return _mm512_fmadd_ps(x, y, z); }
HALFBYTE_INLINE F greater(F x, F y) { return _mm512_max_ps(x, y); }
HALFBYTE_INLINE F lesser(F x, F y) { return _mm512_min_ps(x, y); }
HALFBYTE_INLINE F magnitude(F x) { return _mm512_abs_ps(x); }
HALFBYTE_INLINE F inverse_of(F x) {
    const F rough = _mm512_rcp14_ps(x);
    return fused(rough, _mm512_fnmadd_ps(x, rough, spread_float(1.0F)), rough);
}
HALFBYTE_INLINE M above(F x, F y) { return _mm512_cmp_ps_mask(x, y, _CMP_GT_OQ); }
HALFBYTE_INLINE M less(V x, V y) { return _mm512_cmplt_epi32_mask(x, y); }
HALFBYTE_INLINE M both(M x, M y) { return static_cast<M>(x & y); }
HALFBYTE_INLINE M either(M x, M y) { return static_cast<M>(x | y); }
HALFBYTE_INLINE bool any(M x) { return x != 0; }
HALFBYTE_INLINE bool all(M x) { return x == 65535; }
HALFBYTE_INLINE V to_whole(F x) { return _mm512_cvtps_epi32(x); }
HALFBYTE_INLINE V to_less(F x) { return _mm512_cvttps_epi32(x); }
HALFBYTE_INLINE V bits_of(F x) { return _mm512_castps_si512(x); }
HALFBYTE_INLINE F with_exponent(F x, F shifted) {
    return _mm512_castsi512_ps(add(bits_of(x), _mm512_slli_epi32(bits_of(shifted), 23)));
}
HALFBYTE_INLINE V raised(V x, M where) { return _mm512_mask_add_epi32(x, where, x, spread(1)); }
HALFBYTE_INLINE void store_bytes(uint8_t* at, V x) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(at), _mm512_cvtepi32_epi8(x));
}
using Sixteen = F;
HALFBYTE_INLINE Sixteen sixteen(const float* at) { return load_float(at); }
HALFBYTE_INLINE F pick(Sixteen from, V index) { return _mm512_permutexvar_ps(index, from); }
HALFBYTE_INLINE F gather(const float* from, V index) { return _mm512_i32gather_ps(index, from, 4); }

#define HALFBYTE_AVX2_OR_BETTER
#include "peak.inl"
#include "rows.inl"
#include "rough.inl"
#include "tile.inl"

// Written so that the compiler cannot reorder the products of a tile, which costs it registers and puts sums into memory.
struct Bytes {
    static HALFBYTE_INLINE void dot(V& sum, V a, V b) { __asm__ volatile("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
};
struct Words {
    static HALFBYTE_INLINE void dot(V& sum, V a, V b) { __asm__ volatile("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b)); }
};

#define HALFBYTE_ROWS(Dot)                                                                                       \
    {tile_direct<Dot, 1>, tile_direct<Dot, 2>, tile_direct<Dot, 3>, tile_direct<Dot, 4>,  tile_direct<Dot, 5>,  \
     tile_direct<Dot, 6>, tile_direct<Dot, 7>, tile_direct<Dot, 8>, tile_direct<Dot, 9>,  tile_direct<Dot, 10>, \
     tile_direct<Dot, 11>, tile_direct<Dot, 12>}
constexpr TileFunction bytes[] = HALFBYTE_ROWS(Bytes);
constexpr TileFunction words[] = HALFBYTE_ROWS(Words);
#undef HALFBYTE_ROWS

struct FloatPeak {
    using Vector = F;
    static HALFBYTE_INLINE F ones() { return _mm512_set1_ps(1.0F); }
    static HALFBYTE_INLINE F step(F sum, F a) { return _mm512_fmadd_ps(a, a, sum); }
};

template <class Dot>
struct IntegerPeak {
    using Vector = V;
    static HALFBYTE_INLINE V ones() { return spread(0x01010101); }
    static HALFBYTE_INLINE V step(V sum, V a) {
        Dot::dot(sum, a, a);
        return sum;
    }
};

}  // namespace avx512

const KernelSet& avx512_kernels() {
    static const KernelSet set{Isa::avx512vnni, avx512::tile_rows, avx512::tile_columns, false, avx512::bytes,
                               avx512::words, nullptr, avx512::peak<avx512::IntegerPeak<avx512::Bytes>, 64>,
                               avx512::peak<avx512::IntegerPeak<avx512::Words>, 32>,
                               avx512::peak<avx512::FloatPeak, 16>, avx512::rough_row_kernels()};
    return set;
}

}  // namespace halfbyte
HALFBYTE_TARGET_END
#endif
