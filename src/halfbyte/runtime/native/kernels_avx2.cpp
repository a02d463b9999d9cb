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

#define HALFBYTE_AVX2_OR_BETTER
#include "peak.inl"
#include "rows.inl"
#include "tile.inl"

// Twelve sums, two vectors of the right operand, one of the left and one product fill the 16 registers. A compiler that
// may reorder computes all products first and keeps the sums in memory; here each sum is finished before the next.
HALFBYTE_INLINE V in_place(V sum) {
    __asm__ volatile("" : "+x"(sum));
    return sum;
}

struct Words {
    static HALFBYTE_INLINE V dot(V sum, V a, V b) { return in_place(add(sum, _mm256_madd_epi16(a, b))); }
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
                narrow[i][0] = in_place(_mm256_add_epi16(narrow[i][0], _mm256_maddubs_epi16(a, b0)));
                narrow[i][1] = in_place(_mm256_add_epi16(narrow[i][1], _mm256_maddubs_epi16(a, b1)));
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
        // An FMA, which every processor with AVX2 has; written out because this target does not include it.
        __asm__("vfmadd231ps %1, %1, %0" : "+x"(sum) : "x"(a));
        return sum;
    }
};

}  // namespace avx2

const KernelSet& avx2_kernels() {
    static const KernelSet set{Isa::avx2, avx2::tile_rows, avx2::tile_columns, true, avx2::bytes, avx2::words,
                               avx2::peak<avx2::BytePeak, 32>, avx2::peak<avx2::WordPeak, 16>,
                               avx2::peak<avx2::FloatPeak, 8>, avx2::row_kernels()};
    return set;
}

}  // namespace halfbyte
HALFBYTE_TARGET_END
#endif
