// What one instruction set offers: products of a tile in registers, and loops over rows.
#pragma once

#include <cstddef>
#include <cstdint>

#include "isa.h"
#include "log_steps.h"

namespace halfbyte {

constexpr int max_tile_rows = 12, max_tile_columns = 32, most_table_rows = 8;
// The tables of one row for one step of sixteen codes.
constexpr size_t table_bytes = 64;

// A tile of sums: `rows` rows of the left operand times one panel of the packed right one, K taken in steps of 4 bytes
// (four codes, or two 16-bit levels), then
//   sum + za * column_term[n] + row_sums[m] * column_zero[n]          (row_sums may be null)
// stored as int32 where `scale` is null, and otherwise as float32(sum) * scale[n] + bias[n] (bias may be null).
struct Tile {
    const uint8_t* left;
    size_t left_stride;  // in bytes
    const uint8_t* right;
    size_t steps;
    size_t steps_in_16_bits;
    int32_t za;
    const int32_t* column_term;
    const int32_t* column_zero;
    const int32_t* row_sums;
    const float* scale;
    const float* bias;
    void* out;
    size_t out_stride;  // in elements
};

using TileFunction = void (*)(const Tile&);

// Products of codes of at most 4 bits with 2-bit weights, by tables of sums; see table.inl. The left operand of a tile are
// the tables of its rows.
struct TableKernels {
    // The tables of `rows` rows of k codes, in steps of sixteen, to memory that starts at a cache line.
    void (*fill)(const uint8_t* codes, size_t stride, size_t k, size_t rows, uint8_t* tables);
    const TileFunction* tiles;  // [most_table_rows]
};

// code = clip(rint((x - offset) / scale) + zero, 0, last), each step in float32; NaN gives 0.
struct Uniform {
    float scale;
    float offset;
    float zero;
    float last;
};

struct Norm {
    size_t channels;
    const float* weight;
    const float* bias;
    double eps;
};

// Rows of x, times `scale` and with `shift` added column by column (both null: as they are), then with `y` added (null:
// without), then without what is negative where `relu`.
struct Map {
    const float* x;
    const float* y;
    size_t columns;
    const float* scale;
    const float* shift;
    bool relu;
};

// code = codes[the upper 16 bits of float32(x + shift)]; `log` says what is known of these codes.
struct PrefixTable {
    const uint8_t* codes;
    float shift;
    const LogSteps* log;
};

// A function "_quantize" is the function and the quantizer behind it, to the bit.
struct RowKernels {
    void (*quantize)(const float* x, size_t count, const Uniform& to, uint8_t* codes);
    void (*quantize_table)(const float* x, size_t count, const PrefixTable& to, uint8_t* codes);
    void (*layer_norm)(const float* x, size_t rows, const Norm& norm, float* out);
    void (*softmax)(const float* x, size_t rows, size_t columns, float factor, float* out);
    void (*gelu)(const float* x, size_t count, float* out);
    void (*add)(const float* x, const float* y, size_t count, float* out);
    void (*widen)(const uint8_t* codes, size_t count, int16_t* out);
    void (*look_up)(const uint8_t* codes, size_t count, int bits, const int16_t* table, int16_t* out);
    // The same where the levels fit into bytes.
    void (*look_up_bytes)(const uint8_t* codes, size_t count, int bits, const int16_t* table, uint8_t* out);
    int32_t (*sum)(const uint8_t* codes, size_t count);
    int64_t (*sum_levels)(const int16_t* levels, size_t count);
    void (*softmax_quantize)(const float* x, size_t rows, size_t columns, float factor, const Uniform& to,
                             uint8_t* codes);
    void (*softmax_quantize_table)(const float* x, size_t rows, size_t columns, float factor, const PrefixTable& to,
                                   uint8_t* codes);
    void (*gelu_quantize)(const float* x, size_t count, const Uniform& to, uint8_t* codes);
    void (*gelu_quantize_table)(const float* x, size_t count, const PrefixTable& to, uint8_t* codes);
    // `scratch`: room for two floats a channel.
    void (*norm_quantize)(const float* x, size_t rows, const Norm& norm, const Uniform& to, float* scratch, uint8_t* codes);
    // Rows from `begin` on; `out` is for the first of them.
    void (*map)(const Map& m, size_t begin, size_t rows, float* out);
};

// The fastest that the instruction set can multiply and add, from registers only: how many are done by `rounds`.
using PeakFunction = uint64_t (*)(uint64_t rounds);

struct KernelSet {
    Isa isa;
    int tile_rows;
    int tile_columns;
    // Whether tiles of bytes add up in 16 bits, so that `pair_steps` limits them.
    bool sums_in_16_bits;
    const TileFunction* bytes;  // [tile_rows], by the number of rows less one
    const TileFunction* words;
    const TableKernels* tables;  // null: none
    PeakFunction byte_peak;
    PeakFunction word_peak;
    PeakFunction float_peak;
    RowKernels rows;
};

const KernelSet& portable_kernels();
#if HALFBYTE_X86
const KernelSet& avx2_kernels();
const KernelSet& avx512_kernels();
#endif
#if HALFBYTE_ARM
const KernelSet& neon_kernels();
#endif
const KernelSet& kernels_of(Isa isa);

}  // namespace halfbyte
