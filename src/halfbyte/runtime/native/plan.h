// A network as a list of steps on views of memory, run without allocation and without Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"

namespace halfbyte {

// Where values lie: made in this inference, made at load, the image, the result.
enum Place { in_arena = 0, in_constants = 1, in_image = 2, in_result = 3, places = 4 };

// An array in one of the places; offset and strides count elements of `size` bytes.
struct View {
    int place = in_arena;
    size_t size = 4;
    ptrdiff_t offset = 0;
    std::vector<size_t> shape;
    std::vector<ptrdiff_t> strides;

    size_t elements() const;
    // The first and the last element that the view has.
    ptrdiff_t lowest() const;
    ptrdiff_t highest() const;
};

using Bases = uint8_t* const*;

class Step {
  public:
    virtual ~Step() = default;
    virtual void run(Bases bases, int threads) const = 0;
};

class Plan {
  public:
    // Bytes of an arena, of one image and of one result; `constants` are copied.
    Plan(size_t arena_bytes, size_t input_bytes, size_t output_bytes, const uint8_t* constants, size_t constant_bytes);

    void add(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }
    // Throws std::invalid_argument where a view leaves its place, or is none of elements of `size` bytes.
    void check(const View& view, size_t size, bool written) const;
    // Throws std::invalid_argument where two views that were checked may share memory.
    static void check_apart(const View& out, const View& in);

    // Results of `images` images one behind the other. Several callers may run at once.
    void run(const float* images, size_t count, float* results, int threads) const;
    size_t bytes(int place) const { return bytes_[place]; }
    size_t steps() const { return steps_.size(); }

  private:
    void run_one(const float* image, float* result, int threads) const;
    std::unique_ptr<Buffer> borrow() const;
    void give_back(std::unique_ptr<Buffer> memory) const;

    size_t bytes_[places];
    Buffer constants_;
    std::vector<std::unique_ptr<Step>> steps_;
    mutable std::mutex mutex_;
    mutable std::vector<std::unique_ptr<Buffer>> idle_;
};

template <class T>
T* start(const View& view, Bases bases) {
    return reinterpret_cast<T*>(bases[view.place]) + view.offset;
}

}  // namespace halfbyte
