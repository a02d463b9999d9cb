// The native kernels, for C++ callers: no Python in here. Matrices are row-major; a stride is the distance of two rows
// in elements. Nothing is allocated per call once the scratch memory of a thread has grown to its size.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "kernel_set.h"

namespace halfbyte {

// The kernels in use: those of the best instruction set, or of the one in HALFBYTE_ISA, or of the one chosen last.
const KernelSet& active_kernels();
void choose_kernels(Isa isa);

// Memory that starts at a cache line.
class Buffer {
  public:
    // At least `bytes` bytes; what was in it is lost where it has to grow.
    uint8_t* ensure(size_t bytes);
    uint8_t* data() const { return start_; }

  private:
    struct Free {
        void operator()(uint8_t* memory) const { std::free(memory); }
    };
    std::unique_ptr<uint8_t, Free> memory_;
    uint8_t* start_ = nullptr;
    size_t size_ = 0;
};

// How a tile takes the codes of the right operand: in bytes, in 16 bits each, or as planes of bits that choose sums.
enum class Layout { bytes, words, tables };

// The right operand of a product, `n` columns of `k` codes, laid out as the tile reads it: panels of `tile_columns`
// columns, in each the codes of all columns for one step of K after the other. Codes are stored less 2^(bits - 1).
struct PackedRight {
    const KernelSet* kernels = nullptr;
    size_t n = 0, k = 0, steps = 0, panels = 0;
    int bits = 0;
    int left_bits = 0;  // of the left operands that it was laid out for; 16 for levels
    Layout layout = Layout::bytes;
    const TileFunction* tiles = nullptr;  // [tile_rows()], by the number of rows less one
    size_t steps_in_16_bits = 0;
    int64_t largest = 0;  // the largest magnitude of a code less its zero point
    bool zeros = false;   // whether any column_zero is not 0
    Buffer data;
    std::vector<int32_t> column_term, column_zero;  // per column, see Tile

    size_t tile_rows() const;
    size_t codes_of_step() const { return layout == Layout::tables ? 16 : layout == Layout::words ? 2 : 4; }
    size_t panel_bytes() const {
        return steps * (layout == Layout::tables ? 8 : 4) * static_cast<size_t>(kernels->tile_columns);
    }
    size_t columns_of(size_t panel) const;
};

struct RightSource {
    const uint8_t* codes;
    size_t n, k;
    ptrdiff_t stride_n, stride_k;
    int bits;
    const int32_t* zeros;  // one, or one for each of the n columns
    bool zero_per_column;
};

// Lays out `source` for left operands of codes of `left_bits` bits; 16 for levels.
void pack(const RightSource& source, int left_bits, const KernelSet& kernels, PackedRight& into);

// The left operand: codes less one zero point, or 16-bit levels from 0 to 32767.
struct Left {
    const uint8_t* codes = nullptr;
    const int16_t* levels = nullptr;
    size_t stride = 0;
    int bits = 8;
    int32_t zero = 0;
    bool padded = false;  // whether zeros follow each row up to a whole step

    int64_t largest() const;
};

// What becomes of the sums: int32 where `scale` is null; else float32(sum) * scale + bias, each rounded once. `scale`
// is one number, or one for each of the n columns; `bias` may be null.
struct Epilogue {
    const float* scale = nullptr;
    bool scale_per_column = false;
    const float* bias = nullptr;
};

// Whether the sums of a product of these fit into 32 bits; where not, only float32 output is possible.
bool sums_fit(const Left& left, const PackedRight& right);

// Rows `begin` to `end` of the product, in the calling thread; `left` and `out` point at row 0.
void multiply_rows(const Left& left, size_t begin, size_t end, const PackedRight& right, const Epilogue& epilogue,
                   void* out, size_t out_stride);

// The whole product, shared by up to `threads` threads.
void multiply(const Left& left, size_t rows, const PackedRight& right, const Epilogue& epilogue, void* out,
              size_t out_stride, int threads);

// The products of the heads of an attention, both operands made in this inference: head h has its left codes
// `left_step` elements behind those of head h - 1, and so on. `table` (256 levels) turns left codes into levels.
struct HeadProducts {
    size_t heads, rows;
    const uint8_t* left;
    size_t left_step, left_stride;
    int left_bits;
    int32_t left_zero;
    const int16_t* table;  // null: the left codes are multiplied as they are
    RightSource right;     // of the first head
    size_t right_step;
    Epilogue epilogue;  // the same for all heads
    void* out;
    size_t out_step, out_stride;
};

void multiply_heads(const HeadProducts& products, const KernelSet& kernels, int threads);

}  // namespace halfbyte
