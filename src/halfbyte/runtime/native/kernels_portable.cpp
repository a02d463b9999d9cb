// Plain C++, for any processor: the same tiles, written as loops that a compiler may turn into its own vectors.
#include <cmath>
#include <cstring>

#include "kernel_set.h"
#include "target.h"

namespace halfbyte {
namespace portable {

constexpr int tile_rows = 4, tile_columns = 16;

#include "rows.inl"

template <class Factor, int rows>
void sums_of(const Tile& t, int32_t (&sums)[rows][tile_columns]) {
    constexpr int group = sizeof(Factor) == 1 ? 4 : 2;
    for (auto& row : sums)
        for (int32_t& sum : row) sum = 0;
    for (size_t step = 0; step < t.steps; ++step) {
        int16_t b[group][tile_columns];
        for (int n = 0; n < tile_columns; ++n)
            for (int k = 0; k < group; ++k) {
                Factor factor;
                std::memcpy(&factor, t.right + ((step * tile_columns + n) * group + k) * sizeof(Factor), sizeof(Factor));
                b[k][n] = factor;
            }
        for (int i = 0; i < rows; ++i)
            for (int k = 0; k < group; ++k) {
                const uint8_t* at = t.left + i * t.left_stride + step * 4;
                int16_t a = at[k];
                if (sizeof(Factor) == 2) std::memcpy(&a, at + k * 2, 2);
                // Unsigned, because the parts of a sum that fits may pass 2^31 on the way.
                for (int n = 0; n < tile_columns; ++n)
                    sums[i][n] = static_cast<int32_t>(static_cast<uint32_t>(sums[i][n]) +
                                                      static_cast<uint32_t>(static_cast<int32_t>(a) * b[k][n]));
            }
    }
}

template <class Factor, int rows>
void tile(const Tile& t) {
    int32_t sums[rows][tile_columns];
    sums_of<Factor, rows>(t, sums);
    for (int i = 0; i < rows; ++i)
        for (int n = 0; n < tile_columns; ++n) {
            uint32_t sum = static_cast<uint32_t>(sums[i][n]) +
                           static_cast<uint32_t>(t.za) * static_cast<uint32_t>(t.column_term[n]);
            if (t.row_sums != nullptr)
                sum += static_cast<uint32_t>(t.row_sums[i]) * static_cast<uint32_t>(t.column_zero[n]);
            const int32_t whole = static_cast<int32_t>(sum);
            const size_t at = i * t.out_stride + n;
            if (t.scale == nullptr) {
                static_cast<int32_t*>(t.out)[at] = whole;
            } else {
                float value = static_cast<float>(whole) * t.scale[n];
                if (t.bias != nullptr) value += t.bias[n];
                static_cast<float*>(t.out)[at] = value;
            }
        }
}

constexpr TileFunction bytes[] = {tile<int8_t, 1>, tile<int8_t, 2>, tile<int8_t, 3>, tile<int8_t, 4>};
constexpr TileFunction words[] = {tile<int16_t, 1>, tile<int16_t, 2>, tile<int16_t, 3>, tile<int16_t, 4>};

}  // namespace portable

const KernelSet& portable_kernels() {
    static const KernelSet set{Isa::portable, portable::tile_rows, portable::tile_columns, false, portable::bytes,
                               portable::words, nullptr, nullptr, nullptr, nullptr, portable::row_kernels()};
    return set;
}

const KernelSet& kernels_of(Isa isa) {
#if HALFBYTE_X86
    if (isa == Isa::avx2) return avx2_kernels();
    if (isa == Isa::avx512vnni) return avx512_kernels();
#endif
#if HALFBYTE_ARM
    if (isa == Isa::neon) return neon_kernels();
#endif
    static_cast<void>(isa);
    return portable_kernels();
}

}  // namespace halfbyte
