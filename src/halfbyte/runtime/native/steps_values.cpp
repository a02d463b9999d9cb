// Steps on single values: copies, arithmetic, means and maxima.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "steps.h"
#include "walk.h"

namespace halfbyte {
namespace {

template <class T>
class CopyStep : public Step {
  public:
    CopyStep(View x, View out) : x_(std::move(x)), out_(std::move(out)), walk_(walk_of<2>({&x_, &out_})) {}

    void run(Bases bases, int threads) const override {
        const T* x = start<T>(x_, bases);
        T* out = start<T>(out_, bases);
        share(walk_, threads, [&](const Offsets<2>& at, size_t count) {
            const T* from = x + at[0];
            T* to = out + at[1];
            if (walk_.stride[0] == 1 && walk_.stride[1] == 1) {
                std::memcpy(to, from, count * sizeof(T));
                return;
            }
            for (size_t i = 0; i < count; ++i, from += walk_.stride[0], to += walk_.stride[1]) *to = *from;
        });
    }

  private:
    View x_, out_;
    Walk<2> walk_;
};

class FillStep : public Step {
  public:
    FillStep(View out, float value) : out_(std::move(out)), value_(value), walk_(walk_of<1>({&out_})) {}

    void run(Bases bases, int) const override {
        for (size_t i = 0; i < walk_.outer; ++i) {
            const ptrdiff_t at = walk_.at(i)[0];
            for (size_t j = 0; j < walk_.inner; ++j) {
                const ptrdiff_t place = at + static_cast<ptrdiff_t>(j) * walk_.stride[0];
                start<float>(out_, bases)[place] = value_;
            }
        }
    }

  private:
    View out_;
    float value_;
    Walk<1> walk_;
};

template <class Function>
class BinaryStep : public Step {
  public:
    BinaryStep(View x, View y, View out, Function function)
        : x_(std::move(x)), y_(std::move(y)), out_(std::move(out)), walk_(walk_of<3>({&x_, &y_, &out_})),
          function_(function) {}

    void run(Bases bases, int threads) const override {
        const float *x = start<float>(x_, bases), *y = start<float>(y_, bases);
        float* out = start<float>(out_, bases);
        const ptrdiff_t by_x = walk_.stride[0], by_y = walk_.stride[1], by_out = walk_.stride[2];
        share(walk_, threads, [&](const Offsets<3>& at, size_t count) {
            const float *a = x + at[0], *b = y + at[1];
            float* to = out + at[2];
            // Loops that the compiler can turn into vectors.
            if (by_x == 1 && by_y == 1 && by_out == 1)
                for (size_t i = 0; i < count; ++i) to[i] = function_(a[i], b[i]);
            else if (by_x == 1 && by_y == 0 && by_out == 1)
                for (size_t i = 0; i < count; ++i) to[i] = function_(a[i], *b);
            else
                for (size_t i = 0; i < count; ++i, a += by_x, b += by_y, to += by_out) *to = function_(*a, *b);
        });
    }

  private:
    View x_, y_, out_;
    Walk<3> walk_;
    Function function_;
};

template <class Function>
StepPointer binary(View x, View y, View out, Function function) {
    return std::make_unique<BinaryStep<Function>>(std::move(x), std::move(y), std::move(out), function);
}

template <class Function>
class UnaryStep : public Step {
  public:
    UnaryStep(View x, View out, Function function)
        : x_(std::move(x)), out_(std::move(out)), walk_(walk_of<2>({&x_, &out_})), function_(function) {}

    void run(Bases bases, int threads) const override {
        const float* x = start<float>(x_, bases);
        float* out = start<float>(out_, bases);
        share(walk_, threads, [&](const Offsets<2>& at, size_t count) {
            const float* a = x + at[0];
            float* to = out + at[1];
            if (walk_.stride[0] == 1 && walk_.stride[1] == 1)
                for (size_t i = 0; i < count; ++i) to[i] = function_(a[i]);
            else
                for (size_t i = 0; i < count; ++i, a += walk_.stride[0], to += walk_.stride[1]) *to = function_(*a);
        });
    }

  private:
    View x_, out_;
    Walk<2> walk_;
    Function function_;
};

template <class Function>
StepPointer unary(View x, View out, Function function) {
    return std::make_unique<UnaryStep<Function>>(std::move(x), std::move(out), function);
}

// Of a function in float64 that is rounded once.
template <class Function>
StepPointer wide(View x, View out, Function function) {
    return unary(std::move(x), std::move(out), [function](float v) { return static_cast<float>(function(static_cast<double>(v))); });
}

// What becomes of the last dimensions of x for each element of out.
class ReduceStep : public Step {
  public:
    ReduceStep(View x, View out, size_t axes, bool mean) : x_(std::move(x)), out_(std::move(out)), mean_(mean) {
        if (axes == 0 || axes > x_.shape.size() || x_.shape.size() - axes != out_.shape.size())
            throw std::invalid_argument("no dimensions are left");
        View kept = x_, gone = x_;
        const ptrdiff_t split = static_cast<ptrdiff_t>(x_.shape.size() - axes);
        kept.shape.assign(x_.shape.begin(), x_.shape.begin() + split);
        kept.strides.assign(x_.strides.begin(), x_.strides.begin() + split);
        gone.shape.assign(x_.shape.begin() + split, x_.shape.end());
        gone.strides.assign(x_.strides.begin() + split, x_.strides.end());
        if (kept.shape != out_.shape) throw std::invalid_argument("views of one shape are needed");
        kept_ = walk_of<2>({&kept, &out_});
        gone_ = walk_of<1>({&gone});
    }

    void run(Bases bases, int threads) const override {
        const float* x = start<float>(x_, bases);
        float* out = start<float>(out_, bases);
        share(kept_, threads, [&](const Offsets<2>& at, size_t count) {
            for (size_t done = 0; done < count; done += group) {
                const ptrdiff_t first = static_cast<ptrdiff_t>(done);
                reduce(x + at[0] + first * kept_.stride[0], std::min(group, count - done), out + at[1] + first * kept_.stride[1]);
            }
        });
    }

  private:
    // So many results at once: where they lie side by side, as channels do, so do the values that they are made of.
    static constexpr size_t group = 64;

    void reduce(const float* x, size_t count, float* out) const {
        double sum[group] = {};
        float largest[group];
        for (size_t n = 0; n < count; ++n) largest[n] = x[static_cast<ptrdiff_t>(n) * kept_.stride[0]];
        for (size_t i = 0; i < gone_.outer; ++i) {
            const float* from = x + gone_.at(i)[0];
            for (size_t j = 0; j < gone_.inner; ++j, from += gone_.stride[0]) {
                if (kept_.stride[0] == 1)
                    take(from, 1, count, sum, largest);
                else
                    take(from, kept_.stride[0], count, sum, largest);
            }
        }
        for (size_t n = 0; n < count; ++n) {
            const double mean = sum[n] / static_cast<double>(gone_.outer * gone_.inner);
            out[static_cast<ptrdiff_t>(n) * kept_.stride[1]] = mean_ ? static_cast<float>(mean) : largest[n];
        }
    }

    void take(const float* from, ptrdiff_t stride, size_t count, double* sum, float* largest) const {
        if (mean_)
            for (size_t n = 0; n < count; ++n) sum[n] += from[static_cast<ptrdiff_t>(n) * stride];
        else
            for (size_t n = 0; n < count; ++n) {
                const float value = from[static_cast<ptrdiff_t>(n) * stride];
                // NaN stays, as it does in NumPy.
                largest[n] = value > largest[n] || value != value ? value : largest[n];
            }
    }

    View x_, out_;
    bool mean_;
    Walk<2> kept_;
    Walk<1> gone_;
};

double hard(double x) { return std::min(std::max(x + 3.0, 0.0), 6.0); }

}  // namespace

StepPointer copy_step(View x, View out) {
    if (x.size == 1) return std::make_unique<CopyStep<uint8_t>>(std::move(x), std::move(out));
    return std::make_unique<CopyStep<float>>(std::move(x), std::move(out));
}

StepPointer fill_step(View out, float value) { return std::make_unique<FillStep>(std::move(out), value); }

StepPointer binary_step(const std::string& kind, View x, View y, View out) {
    if (kind == "add") return binary(std::move(x), std::move(y), std::move(out), [](float a, float b) { return a + b; });
    if (kind == "subtract") return binary(std::move(x), std::move(y), std::move(out), [](float a, float b) { return a - b; });
    if (kind == "multiply") return binary(std::move(x), std::move(y), std::move(out), [](float a, float b) { return a * b; });
    if (kind == "divide") return binary(std::move(x), std::move(y), std::move(out), [](float a, float b) { return a / b; });
    throw std::invalid_argument("no arithmetic is called " + kind);
}

StepPointer unary_step(const std::string& kind, View x, View out, float low, float high) {
    if (kind == "relu") return unary(std::move(x), std::move(out), [](float v) { return v <= 0.0F ? 0.0F : v; });
    if (kind == "clip")
        return unary(std::move(x), std::move(out), [low, high](float v) { return std::min(std::max(v, low), high); });
    if (kind == "sigmoid") return wide(std::move(x), std::move(out), [](double v) { return 1.0 / (1.0 + std::exp(-v)); });
    if (kind == "silu") return wide(std::move(x), std::move(out), [](double v) { return v / (1.0 + std::exp(-v)); });
    if (kind == "tanh") return wide(std::move(x), std::move(out), [](double v) { return std::tanh(v); });
    if (kind == "hardsigmoid") return wide(std::move(x), std::move(out), [](double v) { return hard(v) / 6.0; });
    if (kind == "hardswish") return wide(std::move(x), std::move(out), [](double v) { return v * hard(v) / 6.0; });
    if (kind == "gelu_tanh")
        return wide(std::move(x), std::move(out), [](double v) {
            return 0.5 * v * (1.0 + std::tanh(0.79788456080286541 * (v + 0.044715 * v * v * v)));
        });
    throw std::invalid_argument("no function is called " + kind);
}

StepPointer mean_step(View x, View out, size_t axes) {
    return std::make_unique<ReduceStep>(std::move(x), std::move(out), axes, true);
}

StepPointer largest_step(View x, View out) {
    return std::make_unique<ReduceStep>(std::move(x), std::move(out), size_t{2}, false);
}

}  // namespace halfbyte
