// Going through several views of one shape at once, in the order in which the last of them lies in memory.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "plan.h"
#include "pool.h"

namespace halfbyte {

template <size_t N>
using Offsets = std::array<ptrdiff_t, N>;

// `outer` runs of `inner` elements, which lie `stride` elements apart in each view.
template <size_t N>
struct Walk {
    std::vector<size_t> shape;
    std::vector<Offsets<N>> strides;
    size_t outer = 1, inner = 1;
    Offsets<N> stride{};

    Offsets<N> at(size_t index) const {
        Offsets<N> offsets{};
        for (size_t i = shape.size(); i-- > 0;) {
            const ptrdiff_t place = static_cast<ptrdiff_t>(index % shape[i]);
            index /= shape[i];
            for (size_t n = 0; n < N; ++n) offsets[n] += place * strides[i][n];
        }
        return offsets;
    }
};

template <size_t N>
Walk<N> walk_of(const std::array<const View*, N>& views) {
    const View& last = *views[N - 1];
    for (const View* view : views)
        if (view->shape != last.shape) throw std::invalid_argument("views of one shape are needed");
    std::vector<size_t> order;
    for (size_t i = 0; i < last.shape.size(); ++i)
        if (last.shape[i] > 1) order.push_back(i);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return last.strides[a] > last.strides[b]; });
    Walk<N> walk;
    for (size_t i : order) {
        Offsets<N> own;
        for (size_t n = 0; n < N; ++n) own[n] = views[n]->strides[i];
        bool joins = !walk.shape.empty();
        for (size_t n = 0; joins && n < N; ++n)
            joins = walk.strides.back()[n] == own[n] * static_cast<ptrdiff_t>(last.shape[i]);
        if (joins) {
            walk.shape.back() *= last.shape[i];
            walk.strides.back() = own;
        } else {
            walk.shape.push_back(last.shape[i]);
            walk.strides.push_back(own);
        }
    }
    if (!walk.shape.empty()) {
        walk.inner = walk.shape.back();
        walk.stride = walk.strides.back();
        walk.shape.pop_back();
        walk.strides.pop_back();
    }
    for (size_t length : walk.shape) walk.outer *= length;
    return walk;
}

// work(offsets of each view, elements) for every run; long ones are cut where there are few.
template <size_t N, class Work>
void share(const Walk<N>& walk, int threads, const Work& work) {
    constexpr size_t worth_a_thread = 4096;
    const size_t most = std::max<size_t>(1, walk.outer * walk.inner / worth_a_thread);
    const size_t parts = std::min(static_cast<size_t>(threads), most);
    if (walk.outer == 1) {
        run_parallel(parts, threads, [&](size_t part) {
            const size_t begin = walk.inner * part / parts, end = walk.inner * (part + 1) / parts;
            Offsets<N> offsets;
            for (size_t n = 0; n < N; ++n) offsets[n] = static_cast<ptrdiff_t>(begin) * walk.stride[n];
            work(offsets, end - begin);
        });
        return;
    }
    run_parallel(std::min(parts, walk.outer), threads, [&](size_t part) {
        const size_t count = std::min(parts, walk.outer);
        for (size_t i = walk.outer * part / count; i < walk.outer * (part + 1) / count; ++i) work(walk.at(i), walk.inner);
    });
}

}  // namespace halfbyte
