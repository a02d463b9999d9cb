// Products of whole matrices, tile by tile.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "bounds.h"
#include "kernels.h"
#include "pool.h"

namespace halfbyte {
namespace {

// As much of the right operand is used for all rows before the next share is: it stays in the second-level cache.
constexpr size_t share_bytes = 384 * 1024;

struct Scratch {
    Buffer left;
    int32_t row_sums[max_tile_rows];
    int64_t wide_row_sums[max_tile_rows];
    float scale[max_tile_columns];
    float bias[max_tile_columns];
    int32_t tile[max_tile_rows * max_tile_columns];
    int64_t wide[max_tile_rows * max_tile_columns];
};

Scratch& scratch() {
    static thread_local Scratch memory;
    return memory;
}

struct Block {
    const uint8_t* left;
    size_t stride;  // in bytes
    size_t row, rows;
};

// The rows as the tile reads them: their tables, or whole steps of 4 bytes, in 16 bits where the right operand is.
Block block_of(const Left& left, size_t row, size_t rows, const PackedRight& right, Scratch& s) {
    const size_t size = left.levels != nullptr ? 2 : 1, used = right.k * size;
    const uint8_t* from = left.levels != nullptr ? reinterpret_cast<const uint8_t*>(left.levels + row * left.stride)
                                                 : left.codes + row * left.stride;
    if (right.layout == Layout::tables) {
        uint8_t* to = s.left.ensure(rows * right.steps * table_bytes);
        right.kernels->tables->fill(from, left.stride, right.k, rows, to);
        return {to, table_bytes, row, rows};
    }
    const bool widen = right.layout == Layout::words && size == 1;
    if (!widen && (left.padded || used == right.steps * 4)) return {from, left.stride * size, row, rows};
    const size_t stride = (right.steps * 4 + 63) / 64 * 64;
    uint8_t* to = s.left.ensure(max_tile_rows * stride);
    for (size_t i = 0; i < rows; ++i, from += left.stride * size) {
        uint8_t* own = to + i * stride;
        const size_t filled = widen ? used * 2 : used;
        if (widen)
            right.kernels->rows.widen(from, right.k, reinterpret_cast<int16_t*>(own));
        else
            std::memcpy(own, from, used);
        std::memset(own + filled, 0, right.steps * 4 - filled);
    }
    return {to, stride, row, rows};
}

int64_t row_sum(const Left& left, size_t row, const PackedRight& right) {
    if (left.levels == nullptr) return right.kernels->rows.sum(left.codes + row * left.stride, right.k);
    return right.kernels->rows.sum_levels(left.levels + row * left.stride, right.k);
}

// Sums that may pass 2^31, which are those of levels: 32-bit sums of as many steps as are safe, added up in 64 bits.
void wide_tile(const Tile& whole, TileFunction multiply_tile, const Block& block, const Left& left,
               const PackedRight& right, size_t panel, Scratch& s) {
    const size_t width = static_cast<size_t>(right.kernels->tile_columns), columns = right.columns_of(panel);
    const int64_t left_largest = left.levels != nullptr ? 32767 : (1 << left.bits) - 1;
    const int64_t group = static_cast<int64_t>(right.codes_of_step()), right_largest = INT64_C(1) << (right.bits - 1);
    const size_t safe = static_cast<size_t>(INT64_C(2147483647) / (group * left_largest * right_largest));
    std::fill_n(s.wide, block.rows * width, 0);
    Tile part = whole;
    part.za = 0;
    part.row_sums = nullptr;
    part.scale = nullptr;
    part.out = s.tile;
    part.out_stride = width;
    for (size_t done = 0; done < whole.steps; done += safe) {
        part.left = whole.left + done * 4;
        part.right = whole.right + done * 4 * width;
        part.steps = std::min(safe, whole.steps - done);
        multiply_tile(part);
        for (size_t i = 0; i < block.rows * width; ++i) s.wide[i] += s.tile[i];
    }
    // The terms are made anew here in 64 bits: only their lower 32 were kept with the operand.
    for (size_t i = 0; i < block.rows; ++i)
        for (size_t j = 0; j < columns; ++j) {
            const int64_t zero = -static_cast<int64_t>(whole.column_zero[j]);
            const int64_t sum = s.wide[i * width + j] - zero * s.wide_row_sums[i];
            float value = static_cast<float>(sum) * whole.scale[j];
            if (whole.bias != nullptr) value += whole.bias[j];
            static_cast<float*>(whole.out)[i * whole.out_stride + j] = value;
        }
}

// A panel of fewer columns than a tile has: what lies behind them belongs to others.
void last_panel(Tile tile, TileFunction multiply_tile, const Block& block, size_t columns, bool own_scale, size_t width,
                Scratch& s) {
    uint8_t* const place = static_cast<uint8_t*>(tile.out);
    const size_t stride = tile.out_stride;
    if (own_scale) tile.scale = static_cast<float*>(std::memcpy(s.scale, tile.scale, columns * 4));
    if (tile.bias != nullptr) tile.bias = static_cast<float*>(std::memcpy(s.bias, tile.bias, columns * 4));
    tile.out = s.tile;
    tile.out_stride = width;
    multiply_tile(tile);
    for (size_t i = 0; i < block.rows; ++i) std::memcpy(place + i * stride * 4, s.tile + i * width, columns * 4);
}

// One block of rows times the panels `from` to `to`.
void panels_of(const Block& block, const Left& left, const PackedRight& right, size_t from, size_t to,
               const Epilogue& epilogue, bool fits, void* out, size_t out_stride, Scratch& s) {
    const size_t width = static_cast<size_t>(right.kernels->tile_columns), first = from * width;
    const size_t whole = fits ? right.n / width : right.panels;  // panels that a tile may store where they belong
    const bool scaled = epilogue.scale != nullptr, own_scale = scaled && epilogue.scale_per_column;
    const TileFunction multiply_tile = right.tiles[block.rows - 1];
    Tile tile{};
    tile.left = block.left;
    tile.left_stride = block.stride;
    tile.right = right.data.data() + from * right.panel_bytes();
    tile.steps = right.steps;
    tile.steps_in_16_bits = right.steps_in_16_bits;
    tile.za = left.zero;
    tile.column_term = right.column_term.data() + first;
    tile.column_zero = right.column_zero.data() + first;
    tile.row_sums = right.zeros ? s.row_sums : nullptr;
    if (scaled) tile.scale = own_scale ? epilogue.scale + first : s.scale;
    if (scaled && epilogue.bias != nullptr) tile.bias = epilogue.bias + first;
    // Both outputs have elements of four bytes.
    uint8_t* place = static_cast<uint8_t*>(out) + (block.row * out_stride + first) * 4;
    tile.out_stride = out_stride;
    const size_t panel_bytes = right.panel_bytes();
    for (size_t panel = from; panel < to; ++panel, place += width * 4) {
        tile.out = place;
        if (!fits)
            wide_tile(tile, multiply_tile, block, left, right, panel, s);
        else if (panel < whole)
            multiply_tile(tile);
        else
            last_panel(tile, multiply_tile, block, right.columns_of(panel), own_scale, width, s);
        tile.right += panel_bytes;
        tile.column_term += width;
        tile.column_zero += width;
        if (own_scale) tile.scale += width;
        if (tile.bias != nullptr) tile.bias += width;
    }
}

void multiply_part(const Left& left, size_t begin, size_t end, const PackedRight& right, size_t first_panel,
                   size_t last_panel, const Epilogue& epilogue, void* out, size_t out_stride) {
    if (begin >= end || first_panel >= last_panel) return;
    Scratch& s = scratch();
    const bool fits = sums_fit(left, right), sums = right.zeros || !fits;
    std::fill_n(s.scale, max_tile_columns, epilogue.scale != nullptr ? epilogue.scale[0] : 0.0F);
    const size_t most = right.tile_rows(), rows = end - begin;
    const size_t blocks = (rows + most - 1) / most;
    const size_t share = std::max<size_t>(1, share_bytes / std::max<size_t>(1, right.panel_bytes()));
    for (size_t from = first_panel; from < last_panel; from += share) {
        const size_t to = std::min(last_panel, from + share);
        // Blocks of nearly the same size: one of a single row would take nearly as long as a full one.
        for (size_t i = 0, row = begin; i < blocks; ++i) {
            const size_t count = rows / blocks + (i < rows % blocks ? 1 : 0);
            const Block block = block_of(left, row, count, right, s);
            for (size_t j = 0; sums && j < count; ++j) {
                s.wide_row_sums[j] = row_sum(left, row + j, right);
                s.row_sums[j] = static_cast<int32_t>(s.wide_row_sums[j]);
            }
            panels_of(block, left, right, from, to, epilogue, fits, out, out_stride, s);
            row += count;
        }
    }
}

const KernelSet*& chosen() {
    static const KernelSet* set = [] {
        const char* name = std::getenv("HALFBYTE_ISA");
        const Isa isa = name == nullptr || *name == '\0' ? best_isa() : isa_of(name);
        if (!isa_available(isa)) throw std::invalid_argument(std::string("this processor has no ") + isa_name(isa));
        return &kernels_of(isa);
    }();
    return set;
}

}  // namespace

const KernelSet& active_kernels() { return *chosen(); }

void choose_kernels(Isa isa) {
    if (!isa_available(isa)) throw std::invalid_argument(std::string("this processor has no ") + isa_name(isa));
    chosen() = &kernels_of(isa);
}

int64_t Left::largest() const {
    if (levels != nullptr) return 32767;
    const int64_t last = (1 << bits) - 1, z = zero;
    return std::max(z < 0 ? -z : z, z < last ? last - z : z - last);
}

bool sums_fit(const Left& left, const PackedRight& right) {
    return sums_fit_int32(static_cast<int64_t>(right.k), left.largest(), right.largest);
}

void multiply_rows(const Left& left, size_t begin, size_t end, const PackedRight& right, const Epilogue& epilogue,
                   void* out, size_t out_stride) {
    multiply_part(left, begin, end, right, 0, right.panels, epilogue, out, out_stride);
}

void multiply(const Left& left, size_t rows, const PackedRight& right, const Epilogue& epilogue, void* out,
              size_t out_stride, int threads) {
    const size_t most = right.tile_rows();
    const bool by_rows = rows >= most * static_cast<size_t>(threads);
    const size_t units = by_rows ? rows : right.panels;
    const size_t parts = std::min(units, static_cast<size_t>(threads));
    run_parallel(parts, threads, [&](size_t part) {
        const size_t from = units * part / parts, to = units * (part + 1) / parts;
        if (by_rows)
            multiply_part(left, from, to, right, 0, right.panels, epilogue, out, out_stride);
        else
            multiply_part(left, 0, rows, right, from, to, epilogue, out, out_stride);
    });
}

}  // namespace halfbyte
