// AVX2: bytes are multiplied in pairs and added up in 16 bits as long as that is exact, 16-bit factors in 32 bits.
#include "kernel_set.h"
#include "target.h"

#if HALFBYTE_X86
#include <immintrin.h>

#include <cmath>
#include <cstring>

HALFBYTE_TARGET_BEGIN(HALFBYTE_AVX2)
namespace halfbyte {
namespace avx2 {

using V = __m256i;
using F = __m256;
constexpr int lanes = 8, tile_rows = 6, tile_columns = 16;

HALFBYTE_INLINE V load(const int32_t* at) { return _mm256_loadu_si256(reinterpret_cast<const V*>(at)); }
HALFBYTE_INLINE void store(int32_t* at, V v) { _mm256_storeu_si256(reinterpret_cast<V*>(at), v); }
HALFBYTE_INLINE F load_float(const float* at) { return _mm256_loadu_ps(at); }
HALFBYTE_INLINE void store_float(float* at, F v) { _mm256_storeu_ps(at, v); }
HALFBYTE_INLINE V spread(int32_t x) { return _mm256_set1_epi32(x); }
HALFBYTE_INLINE V add(V x, V y) { return _mm256_add_epi32(x, y); }
HALFBYTE_INLINE V multiply(V x, V y) { return _mm256_mullo_epi32(x, y); }
HALFBYTE_INLINE F to_float(V x) { return _mm256_cvtepi32_ps(x); }
HALFBYTE_INLINE F multiply_float(F x, F y) { return _mm256_mul_ps(x, y); }
HALFBYTE_INLINE F add_float(F x, F y) { return _mm256_add_ps(x, y); }

using M = __m256;
HALFBYTE_INLINE F spread_float(float x) { return _mm256_set1_ps(x); }
HALFBYTE_INLINE F subtract_float(F x, F y) { return _mm256_sub_ps(x, y); }
HALFBYTE_INLINE F fused(F x, F y, F z) { return _mm256_fmadd_ps(x, y, z); }
HALFBYTE_INLINE F greater(F x, F y) { return _mm256_max_ps(x, y); }
HALFBYTE_INLINE F lesser(F x, F y) { return _mm256_min_ps(x, y); }
HALFBYTE_INLINE F magnitude(F x) { return _mm256_andnot_ps(spread_float(-0.0F), x); }
HALFBYTE_INLINE F inverse_of(F x) {
    const F rough = _mm256_rcp_ps(x);
    return fused(rough, _mm256_fnmadd_ps(x, rough, spread_float(1.0F)), rough);
}
// A mask is -1 in its lanes.
HALFBYTE_INLINE M above(F x, F y) { return _mm256_cmp_ps(x, y, _CMP_GT_OQ); }
HALFBYTE_INLINE M less(V x, V y) { return _mm256_castsi256_ps(_mm256_cmpgt_epi32(y, x)); }
HALFBYTE_INLINE M both(M x, M y) { return _mm256_and_ps(x, y); }
HALFBYTE_INLINE M either(M x, M y) { return _mm256_or_ps(x, y); }
HALFBYTE_INLINE bool any(M x) { return _mm256_movemask_ps(x) != 0; }
HALFBYTE_INLINE bool all(M x) { return _mm256_movemask_ps(x) == 255; }
HALFBYTE_INLINE V to_whole(F x) { return _mm256_cvtps_epi32(x); }
HALFBYTE_INLINE V to_less(F x) { return _mm256_cvttps_epi32(x); }
HALFBYTE_INLINE V bits_of(F x) { return _mm256_castps_si256(x); }
HALFBYTE_INLINE F with_exponent(F x, F shifted) {
    return _mm256_castsi256_ps(add(bits_of(x), _mm256_slli_epi32(bits_of(shifted), 23)));
}
HALFBYTE_INLINE V raised(V x, M where) { return _mm256_sub_epi32(x, bits_of(where)); }
HALFBYTE_INLINE void store_bytes(uint8_t* at, V x) {
    const V first = _mm256_set1_epi32(0x0C080400);
    const V four = _mm256_shuffle_epi8(x, first);
    const __m128i eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(at), eight);
}
struct Sixteen {
    F low, high;
};
HALFBYTE_INLINE Sixteen sixteen(const float* at) { return {load_float(at), load_float(at + 8)}; }
HALFBYTE_INLINE F pick(const Sixteen& from, V index) {
    const F upper = _mm256_castsi256_ps(_mm256_slli_epi32(index, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(from.low, index), _mm256_permutevar8x32_ps(from.high, index), upper);
}
HALFBYTE_INLINE F gather(const float* from, V index) { return _mm256_i32gather_ps(from, index, 4); }

#define HALFBYTE_AVX2_OR_BETTER
#include "peak.inl"
#include "rows.inl"
#include "rough.inl"
#include "tile.inl"

// Twelve sums, two vectors of the right operand, one of the left and one product fill the 16 registers. A compiler that
// may reorder computes all products first and keeps the sums in memory, and one that may choose registers moves sums about;
// written so, each sum is finished before the next and stays where it is.
HALFBYTE_INLINE void add_pairs(V& sum, V product) { __asm__ volatile("vpaddw %1, %0, %0" : "+x"(sum) : "x"(product)); }
HALFBYTE_INLINE void add_in_place(V& sum, V product) { __asm__ volatile("vpaddd %1, %0, %0" : "+x"(sum) : "x"(product)); }

struct Words {
    static HALFBYTE_INLINE void dot(V& sum, V a, V b) { add_in_place(sum, _mm256_madd_epi16(a, b)); }
};

// Bytes, in blocks of as many steps as 16 bits hold; the wider sums wait in memory meanwhile.
template <int rows>
void tile_bytes(const Tile& t) {
    const V ones = _mm256_set1_epi16(1);
    V sums[rows][vectors];
    const uint8_t* left = t.left;
    const uint8_t* right = t.right;
    size_t done = 0;
    do {
        const size_t end = t.steps - done < t.steps_in_16_bits ? t.steps : done + t.steps_in_16_bits;
        V narrow[rows][vectors];
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) narrow[i][j] = _mm256_setzero_si256();
        for (size_t step = done; step < end; ++step, left += 4, right += tile_columns * 4) {
            const V b0 = load(reinterpret_cast<const int32_t*>(right));
            const V b1 = load(reinterpret_cast<const int32_t*>(right) + lanes);
#pragma GCC unroll 16
            for (int i = 0; i < rows; ++i) {
                int32_t four;
                std::memcpy(&four, left + i * t.left_stride, 4);
                const V a = spread(four);
                add_pairs(narrow[i][0], _mm256_maddubs_epi16(a, b0));
                add_pairs(narrow[i][1], _mm256_maddubs_epi16(a, b1));
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < rows; ++i)
#pragma GCC unroll 4
            for (int j = 0; j < vectors; ++j) {
                const V wide = _mm256_madd_epi16(narrow[i][j], ones);
                sums[i][j] = done == 0 ? wide : add(sums[i][j], wide);
            }
        done = end;
    } while (done < t.steps);
    finish<rows>(sums, t);
}

#include "table.inl"

constexpr TileFunction bytes[] = {tile_bytes<1>, tile_bytes<2>, tile_bytes<3>,
                                  tile_bytes<4>, tile_bytes<5>, tile_bytes<6>};
constexpr TileFunction words[] = {tile_direct<Words, 1>, tile_direct<Words, 2>, tile_direct<Words, 3>,
                                  tile_direct<Words, 4>, tile_direct<Words, 5>, tile_direct<Words, 6>};

struct BytePeak {
    using Vector = V;
    static HALFBYTE_INLINE V ones() { return spread(0x01010101); }
    static HALFBYTE_INLINE V step(V sum, V a) { return _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, a)); }
};
struct WordPeak {
    using Vector = V;
    static HALFBYTE_INLINE V ones() { return spread(0x00010001); }
    static HALFBYTE_INLINE V step(V sum, V a) { return add(sum, _mm256_madd_epi16(a, a)); }
};
struct FloatPeak {
    using Vector = F;
    static HALFBYTE_INLINE F ones() { return _mm256_set1_ps(1.0F); }
    static HALFBYTE_INLINE F step(F sum, F a) {
        return fused(a, a, sum);
    }
};

}  // namespace avx2

const KernelSet& avx2_kernels() {
    static const KernelSet set{Isa::avx2, avx2::tile_rows, avx2::tile_columns, true, avx2::bytes, avx2::words,
                               &avx2::tables, avx2::peak<avx2::BytePeak, 32>, avx2::peak<avx2::WordPeak, 16>,
                               avx2::peak<avx2::FloatPeak, 8>, avx2::rough_row_kernels()};
    return set;
}

}  // namespace halfbyte
HALFBYTE_TARGET_END
#endif
