// Steps that convolve maps of codes.
#include <algorithm>
#include <cstring>

#include "bounds.h"
#include "pool.h"
#include "product_rows.h"
#include "steps.h"

namespace halfbyte {
namespace {

// The windows of a row of maps that are laid out at once take at most about this many bytes.
constexpr size_t patch_bytes = size_t{1} << 18;

// What convolutions of both kinds know of their windows.
struct Windows {
    explicit Windows(const ConvOptions& o) : o(o) {
        require(o.x.shape.size() == 3 && o.out.shape.size() == 3, "maps have three dimensions");
        require(o.out.shape[0] == 1 || o.out.strides[0] == 1, "the channels of the result must be contiguous");
        for (int axis = 0; axis < 2; ++axis) {
            require(o.kernel[axis] > 0 && o.kernel[axis] <= most && o.stride[axis] > 0 && o.stride[axis] <= most &&
                        o.dilation[axis] > 0 && o.dilation[axis] <= most && o.before[axis] <= most,
                    "windows of an impossible size");
            require(o.out.strides[axis + 1] >= 0, "rows must come in order");
        }
        height = static_cast<ptrdiff_t>(o.x.shape[1]);
        width = static_cast<ptrdiff_t>(o.x.shape[2]);
    }

    // The place in the input of a kernel's row or column; negative or too large in the padding.
    ptrdiff_t place(int axis, size_t position, size_t step) const {
        return static_cast<ptrdiff_t>(position * o.stride[axis] + step * o.dilation[axis]) -
               static_cast<ptrdiff_t>(o.before[axis]);
    }

    // Whether any window reaches beyond the maps.
    bool pads() const {
        bool found = false;
        for (int axis = 0; axis < 2; ++axis)
            found = found || o.before[axis] > 0 ||
                    place(axis, o.out.shape[axis + 1] - 1, o.kernel[axis] - 1) >= (axis == 0 ? height : width);
        return found;
    }

    static constexpr size_t most = size_t{1} << 15;
    const ConvOptions& o;
    ptrdiff_t height, width;
};

class ConvStep : public Step {
  public:
    explicit ConvStep(ConvOptions options) : o_(std::move(options)) {
        const Windows windows(o_);
        require(!o_.rights.empty() && o_.x.shape[0] % o_.rights.size() == 0, "channels do not divide into groups");
        channels_ = o_.x.shape[0] / o_.rights.size();
        size_t outputs = 0;
        for (const auto& right : o_.rights) {
            require(right->k == channels_ * o_.kernel[0] * o_.kernel[1] && right->left_bits == o_.bits, "weights do not fit");
            require_product(*right, o_.bits, o_.zero);
            outputs += right->n;
        }
        require(outputs == o_.out.shape[0] && o_.scale.size() == outputs, "a scale for each channel is needed");
        require(o_.bias.empty() || o_.bias.size() == outputs, "a bias for each channel is needed");
        // Also what pads must keep to the bits for which the sums were proved.
        require(!windows.pads() || (o_.zero >= 0 && o_.zero < 1 << o_.bits), "what pads must be a code");
    }

    void run(Bases bases, int threads) const override {
        const size_t rows = o_.out.shape[1];
        run_parallel(rows, threads, [&](size_t row) { run_row(bases, row); });
    }

  private:
    // One row of the result: its windows become the rows of a matrix.
    void run_row(Bases bases, size_t row) const {
        const Windows windows(o_);
        const uint8_t* x = start<uint8_t>(o_.x, bases);
        float* out = start<float>(o_.out, bases) + static_cast<ptrdiff_t>(row) * o_.out.strides[1];
        const size_t columns = o_.out.shape[2], taps = o_.kernel[0] * o_.kernel[1], k = channels_ * taps;
        const size_t at_once = std::min(columns, std::max<size_t>(1, patch_bytes / k));
        uint8_t* patches = memory_of_thread(1).ensure(at_once * k);
        size_t first = 0;
        for (size_t group = 0; group < o_.rights.size(); ++group) {
            const uint8_t* own = x + static_cast<ptrdiff_t>(group * channels_) * o_.x.strides[0];
            const PackedRight& right = *o_.rights[group];
            const RowsOfProduct product{&right, o_.bits, o_.zero, nullptr,
                                        Epilogue{o_.scale.data() + first, true, o_.bias.empty() ? nullptr : o_.bias.data() + first}};
            for (size_t done = 0; done < columns; done += at_once) {
                const size_t count = std::min(at_once, columns - done);
                for (size_t i = 0; i < count; ++i) gather(windows, own, row, done + i, patches + i * k);
                product.run(patches, k, count, out + static_cast<ptrdiff_t>(done) * o_.out.strides[2] + first,
                            static_cast<size_t>(o_.out.strides[2]));
            }
            first += right.n;
        }
    }

    void gather(const Windows& windows, const uint8_t* x, size_t row, size_t column, uint8_t* to) const {
        for (size_t i = 0; i < o_.kernel[0]; ++i) {
            const ptrdiff_t y = windows.place(0, row, i);
            for (size_t j = 0; j < o_.kernel[1]; ++j, to += channels_) {
                const ptrdiff_t z = windows.place(1, column, j);
                if (y < 0 || y >= windows.height || z < 0 || z >= windows.width) {
                    std::memset(to, o_.zero, channels_);
                    continue;
                }
                const uint8_t* from = x + y * o_.x.strides[1] + z * o_.x.strides[2];
                if (o_.x.strides[0] == 1)
                    std::memcpy(to, from, channels_);
                else
                    for (size_t c = 0; c < channels_; ++c) to[c] = from[static_cast<ptrdiff_t>(c) * o_.x.strides[0]];
            }
        }
    }

    ConvOptions o_;
    size_t channels_ = 0;
};

class DepthwiseStep : public Step {
  public:
    explicit DepthwiseStep(DepthwiseOptions options) : o_(std::move(options)) {
        const Windows windows(o_.conv);
        const size_t channels = o_.conv.x.shape[0];
        require(channels == o_.conv.out.shape[0] && o_.conv.scale.size() == channels, "a scale for each channel is needed");
        require(o_.weight.size() == channels * o_.conv.kernel[0] * o_.conv.kernel[1], "weights do not fit");
        require(o_.conv.bias.empty() || o_.conv.bias.size() == channels, "a bias for each channel is needed");
        require(channels == 1 || o_.conv.x.strides[0] == 1, "the channels of the input must be contiguous");
        int64_t largest = 0;
        for (int64_t number : o_.weight) largest = std::max(largest, number < 0 ? -number : number);
        Left left;
        left.bits = o_.conv.bits;
        left.zero = o_.conv.zero;
        require(sums_fit_int32(static_cast<int64_t>(o_.conv.kernel[0] * o_.conv.kernel[1]), left.largest(), largest),
                "the sums of these codes and zero points may pass 2^31");
    }

    void run(Bases bases, int threads) const override {
        run_parallel(o_.conv.out.shape[1], threads, [&](size_t row) { run_row(bases, row); });
    }

  private:
    void run_row(Bases bases, size_t row) const {
        const ConvOptions& o = o_.conv;
        const Windows windows(o);
        const size_t channels = o.x.shape[0];
        int32_t* sums = reinterpret_cast<int32_t*>(memory_of_thread(1).ensure(channels * 4));
        for (size_t column = 0; column < o.out.shape[2]; ++column) {
            std::memset(sums, 0, channels * 4);
            const int32_t* weight = o_.weight.data();
            for (size_t i = 0; i < o.kernel[0]; ++i) {
                const ptrdiff_t y = windows.place(0, row, i);
                for (size_t j = 0; j < o.kernel[1]; ++j, weight += channels) {
                    const ptrdiff_t z = windows.place(1, column, j);
                    if (y < 0 || y >= windows.height || z < 0 || z >= windows.width) continue;
                    const uint8_t* from = start<uint8_t>(o.x, bases) + y * o.x.strides[1] + z * o.x.strides[2];
                    for (size_t c = 0; c < channels; ++c) sums[c] += (from[c] - o.zero) * weight[c];
                }
            }
            float* out = start<float>(o.out, bases) + static_cast<ptrdiff_t>(row) * o.out.strides[1] +
                         static_cast<ptrdiff_t>(column) * o.out.strides[2];
            for (size_t c = 0; c < channels; ++c) out[c] = static_cast<float>(sums[c]) * o.scale[c];
            for (size_t c = 0; c < o.bias.size(); ++c) out[c] += o.bias[c];
        }
    }

    DepthwiseOptions o_;
};

}  // namespace

StepPointer conv_step(ConvOptions options) { return std::make_unique<ConvStep>(std::move(options)); }
StepPointer depthwise_step(DepthwiseOptions options) { return std::make_unique<DepthwiseStep>(std::move(options)); }

}  // namespace halfbyte
