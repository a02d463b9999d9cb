#include "plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "pool.h"

namespace halfbyte {

size_t View::elements() const {
    size_t count = 1;
    for (size_t length : shape) count *= length;
    return count;
}

namespace {

// Far below what 64 bits hold, so that sums of a few such products cannot overflow; far above what memory holds.
constexpr ptrdiff_t far = ptrdiff_t{1} << 40;
constexpr size_t most_dimensions = 8;

[[noreturn]] void refuse_view(const char* why) { throw std::invalid_argument(why); }

// Two places of what is written must not be one: threads would write it at once, and the order would decide.
void check_written(const View& view) {
    std::vector<size_t> order;
    for (size_t i = 0; i < view.shape.size(); ++i)
        if (view.shape[i] > 1) order.push_back(i);
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return view.strides[a] < view.strides[b]; });
    ptrdiff_t reached = 0;
    for (size_t i : order) {
        if (view.strides[i] <= reached) refuse_view("what is written overlaps itself");
        reached += view.strides[i] * (static_cast<ptrdiff_t>(view.shape[i]) - 1);
    }
}

}  // namespace

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
        view.shape.size() > most_dimensions || (written && (view.place == in_constants || view.place == in_image)))
        refuse_view("a view of another kind is needed");
    // Dimension by dimension: a product of all of them could overflow before it is looked at.
    size_t elements = 1;
    for (size_t i = 0; i < view.shape.size(); ++i) {
        const ptrdiff_t length = static_cast<ptrdiff_t>(view.shape[i]), stride = view.strides[i];
        if (length < 1 || length > far || view.shape[i] > static_cast<size_t>(far) / elements)
            refuse_view("a view without elements, or of too many");
        elements *= view.shape[i];
        if (length > 1 && (stride > far / (length - 1) || stride < -far / (length - 1)))
            refuse_view("a view leaves its memory");
    }
    if (view.offset < 0 || view.offset > far || view.lowest() < 0 ||
        (static_cast<size_t>(view.highest()) + 1) * size > bytes_[view.place])
        refuse_view("a view leaves its memory");
    if (written) check_written(view);
}

void Plan::check_apart(const View& out, const View& in) {
    if (out.place != in.place) return;
    const auto first = [](const View& view) { return static_cast<size_t>(view.lowest()) * view.size; };
    const auto end = [](const View& view) { return (static_cast<size_t>(view.highest()) + 1) * view.size; };
    if (first(out) < end(in) && first(in) < end(out)) refuse_view("what is written overlaps what is read");
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
