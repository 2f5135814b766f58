// InstanceNorm followed by LeakyReLU, and their gradient: each reads its arrays twice and writes once.
//
// Arrays are [N, voxels, channels]. Sums are taken over pieces whose number does not depend on the threads, so a
// result does not either; variances of pieces around their own means are combined as in Chan, Golub and LeVeque 1983.
#pragma once

#include <algorithm>
#include <cmath>

#include "parallel.h"
#include "simd.h"

namespace kd {

struct Pieces {
  int64_t batch, voxels, channels, size, per_image;

  Pieces(int64_t batch, int64_t voxels, int64_t channels) : batch(batch), voxels(voxels), channels(channels) {
    size = std::max<int64_t>(1, (1 << 15) / channels);  // 128 KiB
    per_image = (voxels + size - 1) / size;
  }
  int64_t count() const { return batch * per_image; }
  int64_t begin(int64_t piece) const { return (piece / per_image * voxels + piece % per_image * size) * channels; }
  int64_t length(int64_t piece) const { return std::min(size, voxels - piece % per_image * size); }
};

inline Vec leaky(Vec z, float slope) { return z > 0 ? z : slope * z; }

inline void instance_norm(xla::ffi::ThreadPool& pool, const float* x, const float* scale, const float* shift,
                          const Pieces& p, float epsilon, float slope, float* y, float* mean, float* inverse) {
  const int64_t channels = p.channels;
  const Buffer moments(p.count() * 2 * channels);
  parallel_for(pool, p.count(), [&](int64_t piece) {
    const float* from = x + p.begin(piece);
    const int64_t length = p.length(piece);
    float* target = moments.get() + piece * 2 * channels;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vec origin = load(from + c);  // sums of what differs from it lose nothing to a large mean
      Vec sum = {}, squares = {};
      for (int64_t v = 0; v < length; ++v) sum += load(from + v * channels + c) - origin;
      const Vec centre = origin + sum / static_cast<float>(length);
      for (int64_t v = 0; v < length; ++v) {
        const Vec d = load(from + v * channels + c) - centre;
        squares += d * d;
      }
      store(target + c, centre);
      store(target + channels + c, squares);
    }
  });
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      double average = 0, squares = 0;
      int64_t seen = 0;
      for (int64_t piece = n * p.per_image; piece < (n + 1) * p.per_image; ++piece) {
        const double length = p.length(piece), gap = moments.get()[piece * 2 * channels + c] - average;
        squares += moments.get()[(piece * 2 + 1) * channels + c] + gap * gap * seen * length / (seen + length);
        seen += p.length(piece);
        average += gap * length / seen;
      }
      mean[n * channels + c] = average;
      inverse[n * channels + c] = 1 / std::sqrt(squares / p.voxels + epsilon);
    }
  }
  parallel_for(pool, p.count(), [&](int64_t piece) {
    const int64_t n = piece / p.per_image, length = p.length(piece);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vec m = load(mean + n * channels + c), a = load(inverse + n * channels + c) * load(scale + c);
      const Vec b = load(shift + c);
      for (int64_t v = 0; v < length; ++v) {
        const int64_t at = p.begin(piece) + v * channels + c;
        store(y + at, leaky((load(x + at) - m) * a + b, slope));
      }
    }
  });
}

// Gradients of x, scale and shift from that of y.
inline void instance_norm_gradient(xla::ffi::ThreadPool& pool, const float* x, const float* scale, const float* shift,
                                   const float* mean, const float* inverse, const float* dy, const Pieces& p,
                                   float slope, float* dx, float* dscale, float* dshift) {
  const int64_t channels = p.channels;
  const Buffer partial(p.count() * 2 * channels), totals(p.batch * 2 * channels);
  // Of voxel and channels at `at`: x normalised, and the gradient at the norm's output.
  const auto at_norm = [&](int64_t at, Vec m, Vec r, Vec a, Vec b, Vec& normal, Vec& g) {
    normal = (load(x + at) - m) * r;
    const Vec d = load(dy + at);
    g = normal * a + b > 0 ? d : slope * d;
  };
  parallel_for(pool, p.count(), [&](int64_t piece) {
    const int64_t n = piece / p.per_image, length = p.length(piece);
    float* target = partial.get() + piece * 2 * channels;
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vec m = load(mean + n * channels + c), r = load(inverse + n * channels + c);
      const Vec a = load(scale + c), b = load(shift + c);
      Vec sum = {}, along = {}, normal, g;
      for (int64_t v = 0; v < length; ++v) {
        at_norm(p.begin(piece) + v * channels + c, m, r, a, b, normal, g);
        sum += g;
        along += g * normal;
      }
      store(target + c, sum);
      store(target + channels + c, along);
    }
  });
  std::fill_n(dscale, channels, 0.0f);
  std::fill_n(dshift, channels, 0.0f);
  for (int64_t n = 0; n < p.batch; ++n) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0, along = 0;
      for (int64_t piece = n * p.per_image; piece < (n + 1) * p.per_image; ++piece) {
        sum += partial.get()[piece * 2 * channels + c];
        along += partial.get()[(piece * 2 + 1) * channels + c];
      }
      dshift[c] += sum;
      dscale[c] += along;
      totals.get()[n * 2 * channels + c] = sum / p.voxels;
      totals.get()[(n * 2 + 1) * channels + c] = along / p.voxels;
    }
  }
  parallel_for(pool, p.count(), [&](int64_t piece) {
    const int64_t n = piece / p.per_image, length = p.length(piece);
    for (int64_t c = 0; c < channels; c += kLanes) {
      const Vec m = load(mean + n * channels + c), r = load(inverse + n * channels + c);
      const Vec a = load(scale + c), b = load(shift + c);
      const Vec sum = load(totals.get() + n * 2 * channels + c), along = load(totals.get() + (n * 2 + 1) * channels + c);
      Vec normal, g;
      for (int64_t v = 0; v < length; ++v) {
        const int64_t at = p.begin(piece) + v * channels + c;
        at_norm(at, m, r, a, b, normal, g);
        store(dx + at, r * a * (g - sum - normal * along));
      }
    }
  });
}

}  // namespace kd
