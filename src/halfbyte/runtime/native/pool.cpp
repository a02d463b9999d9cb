#include "pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace halfbyte {
namespace {

// How often a waiting thread looks before it lets the system put it to sleep: about 20 microseconds. The gap between
// two layers of a network is shorter, and sleeping and waking takes longer.
constexpr int looks = 2000;

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#else
    std::this_thread::yield();
#endif
}

class Pool {
  public:
    void run(size_t parts, int threads, PartFunction function, void* context) {
        const std::unique_lock<std::mutex> turn(turn_, std::try_to_lock);
        if (!turn.owns_lock()) {
            for (size_t part = 0; part < parts; ++part) function(context, part);
            return;
        }
        const size_t most = static_cast<size_t>(std::min(threads, most_threads));
        const int helpers = std::min(static_cast<int>(std::min(most, parts)) - 1, grown_to(static_cast<int>(most) - 1));
        {
            const std::lock_guard<std::mutex> lock(sleep_);
            function_ = function;
            context_ = context;
            parts_ = parts;
            next_.store(0, std::memory_order_relaxed);
            waiting_.store(helpers, std::memory_order_relaxed);
            const uint64_t number = round_.load(std::memory_order_relaxed) / most_threads + 1;
            round_.store(number * most_threads + static_cast<uint64_t>(helpers), std::memory_order_release);
        }
        wake_.notify_all();
        take_parts();
        for (int i = 0; waiting_.load(std::memory_order_acquire) > 0; ++i) {
            if (i < looks)
                pause();
            else
                std::this_thread::yield();
        }
        if (failed_ != nullptr) std::rethrow_exception(std::exchange(failed_, nullptr));
    }

  private:
    // Starts workers until there are `count`; how many there are, fewer where the system gives no more threads.
    int grown_to(int count) {
        try {
            for (; workers_ < count; ++workers_) std::thread(&Pool::work, this, workers_, round_.load()).detach();
        } catch (const std::system_error&) {
        }
        return std::min(workers_, count);
    }

    void take_parts() {
        try {
            for (size_t part; (part = next_.fetch_add(1, std::memory_order_relaxed)) < parts_;) function_(context_, part);
        } catch (...) {
            // Memory ran out: the other parts are left, and the caller is told when all threads have answered.
            next_.store(parts_, std::memory_order_relaxed);
            const std::lock_guard<std::mutex> lock(sleep_);
            if (failed_ == nullptr) failed_ = std::current_exception();
        }
    }

    void work(int own, uint64_t seen) {
        for (;;) {
            for (int i = 0; i < looks && round_.load(std::memory_order_acquire) == seen; ++i) pause();
            if (round_.load(std::memory_order_acquire) == seen) {
                std::unique_lock<std::mutex> lock(sleep_);
                wake_.wait(lock, [&] { return round_.load(std::memory_order_acquire) != seen; });
            }
            seen = round_.load(std::memory_order_acquire);
            if (own >= static_cast<int>(seen % most_threads)) continue;
            take_parts();
            waiting_.fetch_sub(1, std::memory_order_release);
        }
    }

    std::mutex turn_, sleep_;
    std::condition_variable wake_;
    int workers_ = 0;
    // The round's number times `most_threads`, and how many workers help in it. One word: a worker that is not among them
    // reads nothing else, so that nobody waits for it, and it may miss rounds. One that is keeps the round open.
    std::atomic<uint64_t> round_{0};
    std::atomic<size_t> next_{0};
    std::atomic<int> waiting_{0};
    PartFunction function_ = nullptr;
    void* context_ = nullptr;
    size_t parts_ = 0;
    std::exception_ptr failed_;
};

std::atomic<Pool*>& pool() {
    // Never destroyed: its threads may outlive everything else.
    static std::atomic<Pool*> current{[] {
#if defined(__unix__) || defined(__APPLE__)
        // A forked child has none of its parent's threads; it begins with a pool of its own.
        pthread_atfork(nullptr, nullptr, [] { pool().store(new Pool); });
#endif
        return new Pool;
    }()};
    return current;
}

}  // namespace

void run_parts(size_t parts, int threads, PartFunction function, void* context) {
    pool().load()->run(parts, threads, function, context);
}

}  // namespace halfbyte
