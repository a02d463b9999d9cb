// Steps that go row by row, with the quantizer that follows.
#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "steps.h"
#include "walk.h"

namespace halfbyte {
namespace {

constexpr size_t piece = 2048;

class RowStep : public Step {
  public:
    explicit RowStep(RowStepOptions options) : o_(std::move(options)), walk_(walk_of<2>({&o_.x, &o_.out})) {
        const bool by_row = this->by_row();
        if (by_row && o_.x.shape.empty()) throw std::invalid_argument("rows need a dimension");
        columns_ = by_row ? o_.x.shape.back() : walk_.inner;
        if (walk_.inner > 1 && (walk_.stride[0] != 1 || walk_.stride[1] != 1))
            throw std::invalid_argument("rows must be contiguous");
        if (by_row && (walk_.inner % columns_ != 0 || (columns_ > 1 && (o_.x.strides.back() != 1 || o_.out.strides.back() != 1))))
            throw std::invalid_argument("the last dimension must be contiguous");
        if (o_.kind == Source::Kind::norm && (o_.weight.size() != columns_ || o_.bias.size() != columns_))
            throw std::invalid_argument("a norm needs a weight and a bias for each column");
        if (!o_.table.empty() && o_.table.size() != 65536) throw std::invalid_argument("a table has 65536 codes");
        if (!o_.table.empty()) log_ = log_steps_of(o_.table.data());
    }

    void run(Bases bases, int threads) const override {
        const float* x = start<float>(o_.x, bases);
        uint8_t* codes = o_.coded ? start<uint8_t>(o_.out, bases) : nullptr;
        float* floats = o_.coded ? nullptr : start<float>(o_.out, bases);
        if (walk_.outer > 1 || !by_row()) {
            share(walk_, threads, [&](const Offsets<2>& at, size_t count) {
                if (by_row()) return rows(x + at[0], 0, count / columns_, columns_, moved(codes, at[1]), moved(floats, at[1]));
                // Pieces that stay in the first-level cache between the function and its quantizer.
                for (size_t done = 0; done < count; done += piece) {
                    const ptrdiff_t skip = static_cast<ptrdiff_t>(done);
                    const size_t columns = std::min(piece, count - done);
                    rows(x + at[0] + skip, 0, 1, columns, moved(codes, at[1] + skip), moved(floats, at[1] + skip));
                }
            });
            return;
        }
        const size_t all = walk_.inner / columns_, parts = std::min(all, static_cast<size_t>(threads));
        run_parallel(parts, threads, [&](size_t part) {
            rows(x, all * part / parts, all * (part + 1) / parts, columns_, codes, floats);
        });
    }

  private:
    // Only one of codes and floats is there.
    template <class T>
    static T* moved(T* to, ptrdiff_t by) { return to == nullptr ? nullptr : to + by; }
    bool by_row() const { return o_.kind == Source::Kind::norm || o_.kind == Source::Kind::softmax; }

    void rows(const float* x, size_t begin, size_t end, size_t columns, uint8_t* codes, float* floats) const {
        Source source{};
        source.kind = o_.kind;
        source.x = x;
        source.rows = end;
        source.columns = columns;
        source.norm = Norm{columns, o_.weight.data(), o_.bias.data(), o_.eps};
        source.factor = o_.factor;
        if (!o_.coded) return compute_rows(source, begin, end, floats);
        Target target{};
        target.uniform = o_.uniform;
        target.table = PrefixTable{o_.table.empty() ? nullptr : o_.table.data(), o_.shift, &log_};
        compute_code_rows(source, target, begin, end, codes);
    }

    RowStepOptions o_;
    Walk<2> walk_;
    size_t columns_;
    LogSteps log_;
};

class RmsStep : public Step {
  public:
    RmsStep(View x, View out, std::vector<float> weight, std::vector<float> bias, double eps)
        : x_(std::move(x)), out_(std::move(out)), weight_(std::move(weight)), bias_(std::move(bias)), eps_(eps),
          walk_(walk_of<2>({&x_, &out_})), columns_(x_.shape.empty() ? 0 : x_.shape.back()) {
        if (columns_ == 0 || walk_.outer != 1 || (walk_.inner > 1 && (walk_.stride[0] != 1 || walk_.stride[1] != 1)) ||
            (columns_ > 1 && (x_.strides.back() != 1 || out_.strides.back() != 1)))
            throw std::invalid_argument("rows must be contiguous");
        if (weight_.size() != columns_ || bias_.size() != columns_)
            throw std::invalid_argument("a norm needs a weight and a bias for each column");
    }

    void run(Bases bases, int) const override {
        const float* x = start<float>(x_, bases);
        float* out = start<float>(out_, bases);
        for (size_t row = 0; row < walk_.inner / columns_; ++row, x += columns_, out += columns_) {
            double sum = 0;
            for (size_t i = 0; i < columns_; ++i) sum += static_cast<double>(x[i]) * x[i];
            const double root = std::sqrt(sum / static_cast<double>(columns_) + eps_);
            for (size_t i = 0; i < columns_; ++i)
                out[i] = static_cast<float>(x[i] / root * weight_[i] + static_cast<double>(bias_[i]));
        }
    }

  private:
    View x_, out_;
    std::vector<float> weight_, bias_;
    double eps_;
    Walk<2> walk_;
    size_t columns_;
};

}  // namespace

StepPointer row_step(RowStepOptions options) { return std::make_unique<RowStep>(std::move(options)); }

StepPointer rms_step(View x, View out, std::vector<float> weight, std::vector<float> bias, double eps) {
    return std::make_unique<RmsStep>(std::move(x), std::move(out), std::move(weight), std::move(bias), eps);
}

}  // namespace halfbyte
