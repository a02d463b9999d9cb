// What is done row by row, alone or with the quantizer that follows, for C++ callers.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernel_set.h"

namespace halfbyte {

// A function of `rows` rows of `columns` floats.
struct Source {
    enum class Kind { plain, gelu, norm, softmax, add };
    Kind kind;
    const float* x;
    const float* y;  // what `add` adds
    size_t rows, columns;
    Norm norm;
    float factor;  // what `softmax` multiplies its input by
};

// How its values become codes: by a table where it has codes, or uniformly.
struct Target {
    Uniform uniform;
    PrefixTable table;
};

// Rows `begin` to `end`, in the calling thread; `out` points at row 0.
void compute_rows(const Source& source, size_t begin, size_t end, float* out);
void compute_code_rows(const Source& source, const Target& target, size_t begin, size_t end, uint8_t* out);

// All rows, shared by up to `threads` threads.
void compute(const Source& source, float* out, int threads);
void compute_codes(const Source& source, const Target& target, uint8_t* out, int threads);

}  // namespace halfbyte
