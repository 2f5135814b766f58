// Loops spread over the threads of XLA's own pool.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>

#include "xla/ffi/api/ffi.h"

namespace kd {

// Calls body(i) for every i in [0, count), in any order, and returns when all are done. The caller works too, and
// waits only for units somebody has begun: it may itself be running on a thread of the pool, whose others may be busy.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, const Body& body) {
  struct State {
    State(const Body& body, int64_t count) : body(body), count(count) {}
    void work() {
      for (int64_t i; (i = next.fetch_add(1)) < count;) {
        body(i);
        if (done.fetch_add(1) + 1 == count) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_one();
        }
      }
    }
    const Body& body;  // not touched once all units are taken
    const int64_t count;
    std::atomic<int64_t> next{0}, done{0};
    std::mutex mutex;
    std::condition_variable finished;
  };
  auto state = std::make_shared<State>(body, count);
  const int64_t helpers = std::min(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule([state] { state->work(); });
  state->work();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->done.load() == count; });
}

// Aligned memory that is not initialised.
class Buffer {
 public:
  explicit Buffer(int64_t floats)
      : data_(static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64))) {
    if (data_ == nullptr) throw std::bad_alloc();
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  float* get() const { return data_; }

 private:
  float* data_;
};

}  // namespace kd
