// The steps of a plan, made from views that were checked. All throw std::invalid_argument for views that do not fit.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "plan.h"
#include "rowwise.h"

namespace halfbyte {

using StepPointer = std::unique_ptr<Step>;

// `kind` of the values of x (plain, gelu, norm or softmax over the last dimension); codes where `coded`.
struct RowStepOptions {
    Source::Kind kind;
    View x, out;
    std::vector<float> weight, bias;  // of the norm
    double eps = 0;
    float factor = 1;
    bool coded = false;
    Uniform uniform{};
    std::vector<uint8_t> table;
    float shift = 0;
};
StepPointer row_step(RowStepOptions options);

// x times `scale` plus `shift` for each column of the last dimension (both empty: as it is), plus y where `added`, then ReLU
// where `relu`; codes where `coded`. All views are contiguous.
struct MapOptions {
    View x, y, out;
    bool added = false;
    std::vector<float> scale, shift;
    bool relu = false;
    bool coded = false;
    Uniform uniform{};
};
StepPointer map_step(MapOptions options);

// Codes [M, K], their rows `x.strides[0]` apart, times a packed weight.
struct LinearOptions {
    View x, out;
    std::shared_ptr<const PackedRight> right;
    int bits = 8;
    int32_t zero = 0;
    std::vector<int16_t> table;  // of levels; empty: codes less `zero`
    std::vector<float> scale, bias;
};
StepPointer linear_step(LinearOptions options);

// Maps of codes [C, H, W] to [O, H', W'] (in memory [H', W', O]); `rights` holds a packed weight for each group, its
// columns in the order kernel row, kernel column, channel.
struct ConvOptions {
    View x, out;
    std::vector<std::shared_ptr<const PackedRight>> rights;
    size_t kernel[2], stride[2], dilation[2], before[2];
    int bits = 8;
    int32_t zero = 0;
    std::vector<float> scale, bias;
};
StepPointer conv_step(ConvOptions options);

// One channel a group: `weight` [kernel row, kernel column, channel], less its zero points.
struct DepthwiseOptions {
    ConvOptions conv;
    std::vector<int32_t> weight;
};
StepPointer depthwise_step(DepthwiseOptions options);

// Codes [H, M, K] times codes [H, K, N].
struct HeadsOptions {
    View left, right, out;
    int left_bits, right_bits;
    int32_t left_zero, right_zero;
    std::vector<int16_t> table;
    float scale;
};
StepPointer heads_step(HeadsOptions options);

StepPointer copy_step(View x, View out);
StepPointer fill_step(View out, float value);
// add, subtract, multiply or divide; views of one shape.
StepPointer binary_step(const std::string& kind, View x, View y, View out);
// relu, sigmoid, silu, tanh, gelu_tanh, hardsigmoid, hardswish, or clip between low and high.
StepPointer unary_step(const std::string& kind, View x, View out, float low, float high);
// The mean over the last `axes` dimensions of x; out has the others.
StepPointer mean_step(View x, View out, size_t axes);
// Windows [..., kh, kw] of x [C, H', W', kh, kw] (a view that repeats elements): the largest.
StepPointer largest_step(View x, View out);
// The values of x, a group of which is one row [rows, columns], normalised without a mean (rms).
StepPointer rms_step(View x, View out, std::vector<float> weight, std::vector<float> bias, double eps);

}  // namespace halfbyte
