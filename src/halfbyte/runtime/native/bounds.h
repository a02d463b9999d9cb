// What fits where: the proofs, from bit widths alone, that no sum overflows.
#pragma once

#include <cstdint>

namespace halfbyte {

// How many times `vpmaddubsw` results may be added up in 16 bits. One result is a sum of two products of an unsigned
// code (at most 2^a - 1) and a centred weight (-2^(w-1) to 2^(w-1) - 1), so its magnitude is at most
// (2^a - 1) * 2^w, reached on the negative side only, where 16 bits hold 32768. 0: even one result may saturate.
constexpr int pair_steps(int weight_bits, int activation_bits) {
    return 32768 / (((1 << activation_bits) - 1) << weight_bits);
}

// The widest activation codes of which sixteen add up in 8 bits, as the tiles of table.inl need it.
constexpr int most_table_bits = 4;

// How many steps of sixteen products with centred 2-bit weights (-2 to 1) may be added up in 16 bits: the magnitude of one
// is at most 16 * 2 * (2^a - 1), again on the negative side only.
constexpr int table_steps(int activation_bits) { return 32768 / (16 * 2 * ((1 << activation_bits) - 1)); }

// Whether `terms` products of at most `left` * `right` stay below 2^31. All are below 2^31 themselves.
constexpr bool sums_fit_int32(int64_t terms, int64_t left, int64_t right) {
    return left == 0 || right == 0 || terms <= INT64_C(2147483647) / (left * right);
}

static_assert(pair_steps(4, 4) == 136, "the case that the register tile was sized for");
static_assert(pair_steps(8, 8) == 0, "8-bit codes need 16-bit factors");
static_assert(16 * ((1 << most_table_bits) - 1) <= 255, "sums of sixteen codes fit into 8 bits");
static_assert(table_steps(most_table_bits) == 68, "1088 products before 32 bits are needed");

}  // namespace halfbyte
