// What stands between a convolution and the next: a norm's scale and shift, a sum, ReLU and a quantizer, in one pass.
#include <algorithm>
#include <stdexcept>

#include "pool.h"
#include "product_rows.h"
#include "steps.h"
#include "walk.h"

namespace halfbyte {
namespace {

// Values that stay in the first-level cache between the function and its quantizer.
constexpr size_t piece = 2048;

class MapStep : public Step {
  public:
    explicit MapStep(MapOptions options) : o_(std::move(options)), columns_(o_.scale.empty() ? 1 : o_.scale.size()) {
        require(o_.scale.size() == o_.shift.size(), "a scale and a shift for each column are needed");
        for (const View* view : {&o_.x, o_.added ? &o_.y : &o_.x, &o_.out}) {
            const Walk<1> walk = walk_of<1>({view});
            require(view->shape == o_.out.shape, "views of one shape are needed");
            require(walk.outer == 1 && (walk.inner == 1 || walk.stride[0] == 1), "rows must be contiguous");
            // In the order of the dimensions, so that one place is one element in all views.
            ptrdiff_t expected = 1;
            for (size_t i = view->shape.size(); i-- > 0; expected *= static_cast<ptrdiff_t>(view->shape[i]))
                require(view->shape[i] == 1 || view->strides[i] == expected, "rows must be contiguous");
            elements_ = walk.inner;
        }
        require(elements_ % columns_ == 0 && (o_.scale.empty() || o_.out.shape.back() == columns_), "columns do not fit");
    }

    void run(Bases bases, int threads) const override {
        const Map map{start<float>(o_.x, bases), o_.added ? start<float>(o_.y, bases) : nullptr, columns_,
                      o_.scale.empty() ? nullptr : o_.scale.data(), o_.shift.empty() ? nullptr : o_.shift.data(), o_.relu};
        const size_t rows = elements_ / columns_, parts = std::min(rows, static_cast<size_t>(threads));
        run_parallel(parts, threads, [&](size_t part) { work(map, rows * part / parts, rows * (part + 1) / parts, bases); });
    }

  private:
    void work(const Map& map, size_t begin, size_t end, Bases bases) const {
        const RowKernels& k = active_kernels().rows;
        if (!o_.coded) return k.map(map, begin, end - begin, start<float>(o_.out, bases) + begin * map.columns);
        uint8_t* codes = start<uint8_t>(o_.out, bases);
        const size_t at_once = std::max<size_t>(1, piece / map.columns);
        float* values = reinterpret_cast<float*>(memory_of_thread(0).ensure(at_once * map.columns * sizeof(float)));
        for (size_t row = begin; row < end; row += at_once) {
            const size_t count = std::min(at_once, end - row);
            k.map(map, row, count, values);
            k.quantize(values, count * map.columns, o_.uniform, codes + row * map.columns);
        }
    }

    MapOptions o_;
    size_t columns_, elements_ = 1;
};

}  // namespace

StepPointer map_step(MapOptions options) { return std::make_unique<MapStep>(std::move(options)); }

}  // namespace halfbyte
