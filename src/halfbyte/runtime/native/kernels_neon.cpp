// 64-bit ARM with products of bytes (sdot): four of them added to a 32-bit sum by one instruction.
#include "kernel_set.h"
#include "target.h"

#if HALFBYTE_ARM
#include <arm_neon.h>

#include <cmath>
#include <cstring>

HALFBYTE_TARGET_BEGIN(HALFBYTE_NEON)
namespace halfbyte {
namespace neon {

using V = int32x4_t;
using F = float32x4_t;
// Of the 32 registers sixteen hold sums, four the right operand.
constexpr int lanes = 4, tile_rows = 4, tile_columns = 16;

HALFBYTE_INLINE V load(const int32_t* at) { return vld1q_s32(at); }
HALFBYTE_INLINE void store(int32_t* at, V v) { vst1q_s32(at, v); }
HALFBYTE_INLINE F load_float(const float* at) { return vld1q_f32(at); }
HALFBYTE_INLINE void store_float(float* at, F v) { vst1q_f32(at, v); }
HALFBYTE_INLINE V spread(int32_t x) { return vdupq_n_s32(x); }
HALFBYTE_INLINE F spread_float(float x) { return vdupq_n_f32(x); }
HALFBYTE_INLINE V add(V x, V y) { return vaddq_s32(x, y); }
HALFBYTE_INLINE V multiply(V x, V y) { return vmulq_s32(x, y); }
HALFBYTE_INLINE F to_float(V x) { return vcvtq_f32_s32(x); }
HALFBYTE_INLINE F multiply_float(F x, F y) { return vmulq_f32(x, y); }
HALFBYTE_INLINE F add_float(F x, F y) { return vaddq_f32(x, y); }

#include "tile.inl"

// Bytes of both operands are signed: codes below 128 are the same with a sign and without.
struct Bytes {
    static HALFBYTE_INLINE void dot(V& sum, V a, V b) {
        sum = vdotq_s32(sum, vreinterpretq_s8_s32(a), vreinterpretq_s8_s32(b));
    }
};

// Codes of 8 bits: the highest bit by itself, 128 times over.
struct WideBytes {
    static HALFBYTE_INLINE void dot(V& sum, V a, V b) {
        const uint8x16_t codes = vreinterpretq_u8_s32(a);
        const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(codes, vdupq_n_u8(127)));
        const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(codes, 7)), weights = vreinterpretq_s8_s32(b);
        const V highest = vdotq_s32(vdupq_n_s32(0), high, weights);
        sum = vaddq_s32(vdotq_s32(sum, low, weights), vshlq_n_s32(highest, 7));
    }
};

// Two 16-bit factors at a time: all first ones, all second ones.
struct Words {
    static HALFBYTE_INLINE void dot(V& sum, V a, V b) {
        const int16x8_t x = vreinterpretq_s16_s32(a), y = vreinterpretq_s16_s32(b);
        const int16x4_t first = vget_low_s16(vuzp1q_s16(y, y)), second = vget_low_s16(vuzp2q_s16(y, y));
        sum = vmlal_lane_s16(sum, first, vget_low_s16(x), 0);
        sum = vmlal_lane_s16(sum, second, vget_low_s16(x), 1);
    }
};

// Whether any code of a tile has its highest bit set: they are looked at once for all columns.
template <int rows>
bool any_wide(const Tile& t) {
    uint32_t all = 0;
    for (int i = 0; i < rows; ++i)
        for (size_t step = 0; step < t.steps; ++step) {
            uint32_t four;
            std::memcpy(&four, t.left + i * t.left_stride + step * 4, 4);
            all |= four;
        }
    return (all & 0x80808080U) != 0;
}

template <int rows>
void tile_bytes(const Tile& t) {
    return any_wide<rows>(t) ? tile_direct<WideBytes, rows>(t) : tile_direct<Bytes, rows>(t);
}

constexpr TileFunction bytes[] = {tile_bytes<1>, tile_bytes<2>, tile_bytes<3>, tile_bytes<4>};
constexpr TileFunction words[] = {tile_direct<Words, 1>, tile_direct<Words, 2>, tile_direct<Words, 3>, tile_direct<Words, 4>};

KernelSet made() {
    // What goes row by row is left to the compiler, which has vectors for every such processor.
    KernelSet set = portable_kernels();
    set.isa = Isa::neon;
    set.tile_rows = tile_rows;
    set.tile_columns = tile_columns;
    set.bytes = bytes;
    set.words = words;
    return set;
}

}  // namespace neon

const KernelSet& neon_kernels() {
    static const KernelSet set = neon::made();
    return set;
}

}  // namespace halfbyte
HALFBYTE_TARGET_END
#endif
