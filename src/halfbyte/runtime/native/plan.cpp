#include "plan.h"

#include <cstring>
#include <stdexcept>

#include "pool.h"

namespace halfbyte {

size_t View::elements() const {
    size_t count = 1;
    for (size_t length : shape) count *= length;
    return count;
}

ptrdiff_t View::lowest() const {
    ptrdiff_t at = offset;
    for (size_t i = 0; i < shape.size(); ++i)
        if (strides[i] < 0) at += strides[i] * (static_cast<ptrdiff_t>(shape[i]) - 1);
    return at;
}

ptrdiff_t View::highest() const {
    ptrdiff_t at = offset;
    for (size_t i = 0; i < shape.size(); ++i)
        if (strides[i] > 0) at += strides[i] * (static_cast<ptrdiff_t>(shape[i]) - 1);
    return at;
}

Plan::Plan(size_t arena_bytes, size_t input_bytes, size_t output_bytes, const uint8_t* data, size_t constant_bytes)
    : bytes_{arena_bytes, constant_bytes, input_bytes, output_bytes} {
    if (constant_bytes > 0) std::memcpy(constants_.ensure(constant_bytes), data, constant_bytes);
}

void Plan::check(const View& view, size_t size, bool written) const {
    if (view.place < 0 || view.place >= places || view.size != size || view.shape.size() != view.strides.size() ||
        view.shape.size() > 8 || (written && (view.place == in_constants || view.place == in_image)))
        throw std::invalid_argument("a view of another kind is needed");
    for (size_t i = 0; i < view.shape.size(); ++i)
        if (view.shape[i] == 0 || view.shape[i] > (size_t{1} << 31) || view.strides[i] > (ptrdiff_t{1} << 31) ||
            view.strides[i] < -(ptrdiff_t{1} << 31))
            throw std::invalid_argument("a view without elements, or of too many");
    if (view.offset < 0 || view.offset > (ptrdiff_t{1} << 40) || view.lowest() < 0 ||
        (static_cast<size_t>(view.highest()) + 1) * size > bytes_[view.place])
        throw std::invalid_argument("a view leaves its memory");
}

void Plan::run(const float* images, size_t count, float* results, int threads) const {
    const size_t image = bytes_[in_image] / 4, result = bytes_[in_result] / 4;
    // Enough images for all threads: each takes whole ones, which needs no waiting for each other.
    const bool by_image = count >= static_cast<size_t>(threads);
    run_parallel(count, by_image ? threads : 1, [&](size_t i) {
        run_one(images + i * image, results + i * result, by_image ? 1 : threads);
    });
}

void Plan::run_one(const float* image, float* result, int threads) const {
    std::unique_ptr<Buffer> memory = borrow();
    uint8_t* const bases[places] = {memory->data(), constants_.data(),
                                    reinterpret_cast<uint8_t*>(const_cast<float*>(image)),
                                    reinterpret_cast<uint8_t*>(result)};
    for (const std::unique_ptr<Step>& step : steps_) step->run(bases, threads);
    give_back(std::move(memory));
}

std::unique_ptr<Buffer> Plan::borrow() const {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (!idle_.empty()) {
            std::unique_ptr<Buffer> memory = std::move(idle_.back());
            idle_.pop_back();
            return memory;
        }
    }
    auto memory = std::make_unique<Buffer>();
    memory->ensure(bytes_[in_arena]);
    return memory;
}

void Plan::give_back(std::unique_ptr<Buffer> memory) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    idle_.push_back(std::move(memory));
}

}  // namespace halfbyte
