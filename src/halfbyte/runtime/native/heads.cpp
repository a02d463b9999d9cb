// Products of two activations, head by head.
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "pool.h"
#include "product_rows.h"

namespace halfbyte {
namespace {

struct Heads {
    std::vector<PackedRight> right;
};

Heads& prepared() {
    static thread_local Heads heads;
    return heads;
}

void multiply_part(const HeadProducts& p, size_t head, size_t begin, size_t end, const PackedRight& right) {
    const RowsOfProduct product{&right, p.left_bits, p.left_zero, p.table, p.epilogue};
    uint8_t* out = static_cast<uint8_t*>(p.out) + (head * p.out_step + begin * p.out_stride) * 4;
    product.run(p.left + head * p.left_step + begin * p.left_stride, p.left_stride, end - begin, out, p.out_stride);
}

}  // namespace

void multiply_heads(const HeadProducts& p, const KernelSet& kernels, int threads) {
    std::vector<PackedRight>& right = prepared().right;
    if (right.size() < p.heads) right.resize(p.heads);
    run_parallel(p.heads, threads, [&](size_t head) {
        RightSource source = p.right;
        source.codes += head * p.right_step;
        pack(source, bits_of_left(p.table, p.left_bits), kernels, right[head]);
    });
    const PartsOfRows parts{p.rows};
    run_parallel(p.heads * parts.count(), threads, [&](size_t i) {
        const size_t head = i / parts.count(), part = i % parts.count();
        multiply_part(p, head, parts.begin(part), parts.end(part), right[head]);
    });
}

}  // namespace halfbyte
