// A pool of threads that lives as long as the process: work is handed out in parts, without allocation.
#pragma once

#include <cstddef>

namespace halfbyte {

using PartFunction = void (*)(void* context, size_t part);

// Calls `function` for parts 0 .. parts - 1, in the calling thread and up to threads - 1 others, and returns when all
// are done; what a part throws (the first, where
// there are several) is thrown then. Where the pool is busy with another caller's work, this caller does its own alone.
void run_parts(size_t parts, int threads, PartFunction function, void* context);

template <class Work>
void run_parallel(size_t parts, int threads, const Work& work) {
    if (threads <= 1 || parts <= 1) {
        for (size_t part = 0; part < parts; ++part) work(part);
        return;
    }
    run_parts(
        parts, threads, [](void* context, size_t part) { (*static_cast<const Work*>(context))(part); },
        const_cast<void*>(static_cast<const void*>(&work)));
}

constexpr int most_threads = 256;

}  // namespace halfbyte
