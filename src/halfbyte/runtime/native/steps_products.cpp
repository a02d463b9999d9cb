// Steps that multiply codes.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <stdexcept>

#include "bounds.h"
#include "pool.h"
#include "product_rows.h"
#include "steps.h"

namespace halfbyte {
namespace {

// The sum of this many codes fits into 32 bits.
constexpr size_t longest = size_t{1} << 23;

class LinearStep : public Step {
  public:
    explicit LinearStep(LinearOptions options) : o_(std::move(options)) {
        const PackedRight& r = *o_.right;
        require(o_.x.shape.size() == 2 && o_.out.shape.size() == 2, "a product has rows and columns");
        require(o_.x.shape[1] == r.k && o_.out.shape[1] == r.n && o_.x.shape[0] == o_.out.shape[0], "shapes do not fit");
        require((r.k == 1 || o_.x.strides[1] == 1) && (r.n == 1 || o_.out.strides[1] == 1), "rows must be contiguous");
        require(o_.x.strides[0] >= 0 && o_.out.strides[0] >= 0, "rows must come in order");
        require(o_.scale.size() == r.n && (o_.bias.empty() || o_.bias.size() == r.n), "a scale for each column is needed");
        require_table(o_.table);
        require(r.left_bits == bits_of_left(table(), o_.bits), "the weight was packed for other codes");
        // Only sums of levels have a way past 2^31.
        if (o_.table.empty()) require_product(r, o_.bits, o_.zero);
    }

    void run(Bases bases, int threads) const override {
        const RowsOfProduct product{o_.right.get(), o_.bits, o_.zero, table(),
                                    Epilogue{o_.scale.data(), true, o_.bias.empty() ? nullptr : o_.bias.data()}};
        const uint8_t* x = start<uint8_t>(o_.x, bases);
        float* out = start<float>(o_.out, bases);
        const size_t rows = o_.x.shape[0], stride = static_cast<size_t>(o_.x.strides[0]);
        const size_t out_stride = static_cast<size_t>(o_.out.strides[0]);
        if (o_.table.empty()) {
            Left left;
            left.bits = o_.bits;
            left.zero = o_.zero;
            left.codes = x;
            left.stride = stride;
            return multiply(left, rows, *o_.right, product.epilogue, out, out_stride, threads);
        }
        const PartsOfRows parts{rows};
        run_parallel(parts.count(), threads, [&](size_t part) {
            const size_t begin = parts.begin(part), count = parts.end(part) - begin;
            product.run(x + begin * stride, stride, count, out + begin * out_stride, out_stride);
        });
    }

  private:
    const int16_t* table() const { return o_.table.empty() ? nullptr : o_.table.data(); }

    LinearOptions o_;
};

class HeadsStep : public Step {
  public:
    explicit HeadsStep(HeadsOptions options) : o_(std::move(options)) {
        const View &a = o_.left, &b = o_.right, &out = o_.out;
        require(a.shape.size() == 3 && b.shape.size() == 3 && out.shape.size() == 3, "heads have rows and columns");
        require(a.shape[0] == b.shape[0] && a.shape[0] == out.shape[0] && a.shape[2] == b.shape[1] &&
                    a.shape[1] == out.shape[1] && b.shape[2] == out.shape[2], "shapes do not fit");
        require((a.shape[2] == 1 || a.strides[2] == 1) && (out.shape[2] == 1 || out.strides[2] == 1), "rows must be contiguous");
        require(a.strides[0] >= 0 && a.strides[1] >= 0 && b.strides[0] >= 0 && out.strides[0] >= 0 && out.strides[1] >= 0,
                "rows must come in order");
        require(b.shape[1] <= longest && b.shape[2] <= longest, "a product of impossible length");
        require_table(o_.table);
        PackedRight right;
        right.k = b.shape[1];
        const int64_t last = (1 << o_.right_bits) - 1, zero = o_.right_zero;
        right.largest = std::max(std::abs(zero), std::abs(last - zero));
        // Only sums of levels, which have no zero point, have a way past 2^31.
        require(o_.table.empty() || o_.left_zero == 0, "levels have no zero point");
        if (o_.table.empty()) require_product(right, o_.left_bits, o_.left_zero);
    }

    void run(Bases bases, int threads) const override {
        HeadProducts p{};
        p.heads = o_.left.shape[0];
        p.rows = o_.left.shape[1];
        p.left = start<uint8_t>(o_.left, bases);
        p.left_step = static_cast<size_t>(o_.left.strides[0]);
        p.left_stride = static_cast<size_t>(o_.left.strides[1]);
        p.left_bits = o_.left_bits;
        p.left_zero = o_.left_zero;
        p.table = o_.table.empty() ? nullptr : o_.table.data();
        p.right = RightSource{start<uint8_t>(o_.right, bases), o_.right.shape[2], o_.right.shape[1], o_.right.strides[2],
                              o_.right.strides[1], o_.right_bits, &o_.right_zero, false};
        p.right_step = static_cast<size_t>(o_.right.strides[0]);
        p.epilogue = Epilogue{&o_.scale, false, nullptr};
        p.out = start<float>(o_.out, bases);
        p.out_step = static_cast<size_t>(o_.out.strides[0]);
        p.out_stride = static_cast<size_t>(o_.out.strides[1]);
        multiply_heads(p, active_kernels(), threads);
    }

  private:
    HeadsOptions o_;
};

}  // namespace

StepPointer linear_step(LinearOptions options) { return std::make_unique<LinearStep>(std::move(options)); }
StepPointer heads_step(HeadsOptions options) { return std::make_unique<HeadsStep>(std::move(options)); }

}  // namespace halfbyte
