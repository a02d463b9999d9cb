#include "rowwise.h"

#include <algorithm>

#include "kernels.h"
#include "pool.h"

namespace halfbyte {
namespace {

// So many values go through a function and its quantizer at once that they stay in the first-level cache between.
constexpr size_t piece = 2048;

Buffer& values_of_thread() {
    static thread_local Buffer values;
    return values;
}

void encode(const Target& target, const float* x, size_t count, uint8_t* out, const RowKernels& k) {
    if (target.table.codes != nullptr)
        k.quantize_table(x, count, target.table, out);
    else
        k.quantize(x, count, target.uniform, out);
}

template <class Work>
void share(size_t rows, int threads, const Work& work) {
    const size_t parts = std::min(rows, static_cast<size_t>(threads));
    run_parallel(parts, threads, [&](size_t part) { work(rows * part / parts, rows * (part + 1) / parts); });
}

}  // namespace

void compute_rows(const Source& s, size_t begin, size_t end, float* out) {
    const RowKernels& k = active_kernels().rows;
    const size_t from = begin * s.columns, count = (end - begin) * s.columns;
    switch (s.kind) {
        case Source::Kind::plain: std::copy(s.x + from, s.x + from + count, out + from); break;
        case Source::Kind::gelu: k.gelu(s.x + from, count, out + from); break;
        case Source::Kind::norm: k.layer_norm(s.x + from, end - begin, s.norm, out + from); break;
        case Source::Kind::softmax: k.softmax(s.x + from, end - begin, s.columns, s.factor, out + from); break;
        case Source::Kind::add: k.add(s.x + from, s.y + from, count, out + from); break;
    }
}

void compute_code_rows(const Source& s, const Target& target, size_t begin, size_t end, uint8_t* out) {
    const RowKernels& k = active_kernels().rows;
    const float* x = s.x + begin * s.columns;
    const size_t rows = end - begin, count = rows * s.columns;
    const bool table = target.table.codes != nullptr;
    out += begin * s.columns;
    if (s.kind == Source::Kind::plain) return encode(target, x, count, out, k);
    if (s.kind == Source::Kind::softmax) {
        if (table) return k.softmax_quantize_table(x, rows, s.columns, s.factor, target.table, out);
        return k.softmax_quantize(x, rows, s.columns, s.factor, target.uniform, out);
    }
    if (s.kind == Source::Kind::gelu) {
        if (table) return k.gelu_quantize_table(x, count, target.table, out);
        return k.gelu_quantize(x, count, target.uniform, out);
    }
    if (s.kind == Source::Kind::norm && !table) {
        float* scratch = reinterpret_cast<float*>(values_of_thread().ensure(2 * s.columns * sizeof(float)));
        return k.norm_quantize(x, rows, s.norm, target.uniform, scratch, out);
    }
    const size_t rows_at_once = std::max<size_t>(1, piece / s.columns);
    float* values = reinterpret_cast<float*>(values_of_thread().ensure(rows_at_once * s.columns * sizeof(float)));
    for (size_t row = 0; row < rows; row += rows_at_once) {
        const size_t few = std::min(rows_at_once, rows - row);
        Source part = s;
        part.x = x + row * s.columns;
        if (part.y != nullptr) part.y += (begin + row) * s.columns;
        compute_rows(part, 0, few, values);
        encode(target, values, few * s.columns, out + row * s.columns, k);
    }
}

void compute(const Source& source, float* out, int threads) {
    share(source.rows, threads, [&](size_t begin, size_t end) { compute_rows(source, begin, end, out); });
}

void compute_codes(const Source& source, const Target& target, uint8_t* out, int threads) {
    share(source.rows, threads, [&](size_t begin, size_t end) { compute_code_rows(source, target, begin, end, out); });
}

}  // namespace halfbyte
