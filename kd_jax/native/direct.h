// 3-D convolutions of any kernel and stride as sums of matrix products over taps, without gathering columns.
//
// An output row is a matrix [W, features]; each tap adds rows of the input, read in place, times a panel of the
// kernel. The input's gradient of a strided convolution splits its rows by their remainder: each kind of voxel is
// reached by some of the taps, so none multiplies zeros.
#pragma once

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "shape.h"
#include "simd.h"

namespace kd {

constexpr int64_t kLinesAtOnce = 4;  // output lines that share a panel of the kernel while it is in cache

// Voxels first, first + pitch, ... of the target along one axis. Number m takes source voxel m * step + offset
// through every tap.
struct Phase {
  struct Tap {
    int64_t index, offset;
  };
  int64_t first, pitch, count, step;
  std::vector<Tap> taps;
};

inline std::vector<Phase> forward_phases(int64_t size, int64_t kernel, int64_t stride) {
  Phase phase{0, 1, size, stride, {}};
  for (int64_t k = 0; k < kernel; ++k) phase.taps.push_back({k, k - kernel / 2});
  return {phase};
}

inline std::vector<Phase> gradient_phases(int64_t size, int64_t kernel, int64_t stride) {
  std::vector<Phase> phases;
  for (int64_t first = 0; first < std::min(stride, size); ++first) {
    Phase phase{first, stride, (size - first + stride - 1) / stride, 1, {}};
    for (int64_t k = 0; k < kernel; ++k) {
      const int64_t distance = first + kernel / 2 - k;
      if (distance % stride == 0) phase.taps.push_back({k, distance / stride});
    }
    phases.push_back(phase);
  }
  return phases;
}

// Kernel [kd, kh, kw, C, O] as [panel, tap, row, width]; with `flip` features are the rows, channels the columns.
inline void pack_kernel(xla::ffi::ThreadPool& pool, const float* kernel, int64_t taps, int64_t channels,
                        int64_t features, bool flip, float* out) {
  const int64_t rows = flip ? features : channels, columns = flip ? channels : features;
  const int width = panel_width(columns);
  parallel_for(pool, columns / width * taps, [&](int64_t unit) {
    const int64_t first = unit / taps * width;
    const float* source = kernel + unit % taps * channels * features;
    float* target = out + unit * rows * width;
    for (int64_t row = 0; row < rows; ++row)
      for (int j = 0; j < width; ++j)
        *target++ = flip ? source[(first + j) * features + row] : source[row * features + first + j];
  });
}

// A line of the target, [count, columns] with `pitch` voxels between rows, of the panel that begins at `first`.
template <int N>
inline void gather_line(const float* const* lines, const int64_t* line_taps, int64_t line_count, int64_t size,
                        int64_t channels, int64_t kernel_w, const Phase& w, const float* panel, const float* zeros,
                        float* target, int64_t target_step) {
  for (int64_t begin = 0; begin < w.count; begin += kRows) {
    with_constant<kRows>(static_cast<int>(std::min<int64_t>(kRows, w.count - begin)), [&](auto count) {
      Vec sum[count()][N] = {};
      for (int64_t line = 0; line < line_count; ++line) {
        for (const Phase::Tap& tap : w.taps) {
          const float* source[count()];
          for (int m = 0; m < count(); ++m) {
            const int64_t at = (begin + m) * w.step + tap.offset;
            source[m] = at >= 0 && at < size ? lines[line] + at * channels : zeros;
          }
          inner<count(), N>(source, channels,
                            panel + (line_taps[line] * kernel_w + tap.index) * channels * N * kLanes, sum);
        }
      }
      for (int m = 0; m < count(); ++m)
        for (int j = 0; j < N; ++j) store(target + (begin + m) * target_step + j * kLanes, sum[m][j]);
    });
  }
}

// y from x and the kernel; with `flip` the gradient of x from that of y: then `s.in` and `s.channels` are those of y.
inline void direct_convolution(xla::ffi::ThreadPool& pool, const float* x, const float* kernel, const Shape& s,
                               bool flip, float* y) {
  const int64_t taps = s.kernel[0] * s.kernel[1] * s.kernel[2];
  const Buffer packed(taps * s.channels * s.features), zeros(s.channels);
  std::fill_n(zeros.get(), s.channels, 0.0f);
  pack_kernel(pool, kernel, taps, flip ? s.features : s.channels, flip ? s.channels : s.features, flip, packed.get());
  std::array<std::vector<Phase>, 3> phases;
  for (int axis = 0; axis < 3; ++axis) {
    phases[axis] = (flip ? gradient_phases : forward_phases)(s.out[axis], s.kernel[axis], s.stride[axis]);
  }
  const int width = panel_width(s.features);
  const int64_t volume_in = s.in[0] * s.in[1] * s.in[2], volume_out = s.out[0] * s.out[1] * s.out[2];
  for (const Phase& d : phases[0]) {
    for (const Phase& h : phases[1]) {
      const int64_t groups = (h.count + kLinesAtOnce - 1) / kLinesAtOnce;
      parallel_for(pool, s.batch * d.count * groups, [&](int64_t unit) {
        const int64_t begin = unit % groups * kLinesAtOnce, z = unit / groups % d.count, n = unit / groups / d.count;
        const int64_t end = std::min(begin + kLinesAtOnce, h.count);
        std::vector<const float*> lines;
        std::vector<int64_t> line_taps;
        for (int64_t panel = 0; panel < s.features; panel += width) {
          for (int64_t row = begin; row < end; ++row) {
            lines.clear();
            line_taps.clear();
            for (const Phase::Tap& a : d.taps) {
              const int64_t at_d = z * d.step + a.offset;
              for (const Phase::Tap& b : h.taps) {
                const int64_t at_h = row * h.step + b.offset;
                if (at_d < 0 || at_d >= s.in[0] || at_h < 0 || at_h >= s.in[1]) continue;
                lines.push_back(x + (n * volume_in + (at_d * s.in[1] + at_h) * s.in[2]) * s.channels);
                line_taps.push_back(a.index * s.kernel[1] + b.index);
              }
            }
            const int64_t at = ((d.first + z * d.pitch) * s.out[1] + h.first + row * h.pitch) * s.out[2];
            for (const Phase& w : phases[2]) {
              (width == 2 * kLanes ? gather_line<2> : gather_line<1>)(
                  lines.data(), line_taps.data(), static_cast<int64_t>(lines.size()), s.in[2], s.channels,
                  s.kernel[2], w, packed.get() + panel * taps * s.channels, zeros.get(),
                  y + (n * volume_out + at + w.first) * s.features + panel, w.pitch * s.features);
            }
          }
        }
      });
    }
  }
}

// Gradient of the kernel from x and the gradient of y, a slice of y at a time: every tap reads it from cache.
inline void direct_kernel_gradient(xla::ffi::ThreadPool& pool, const float* x, const float* dy, const Shape& s,
                                   float* dkernel) {
  const int64_t matrix = s.channels * s.features, lines = s.kernel[0] * s.kernel[1];
  std::fill_n(dkernel, lines * s.kernel[2] * matrix, 0.0f);
  const int64_t volume_in = s.in[0] * s.in[1] * s.in[2], volume_out = s.out[0] * s.out[1] * s.out[2];
  for (int64_t slice = 0; slice < s.batch * s.out[0]; ++slice) {
    const int64_t n = slice / s.out[0], z = slice % s.out[0];
    parallel_for(pool, lines * s.kernel[2], [&](int64_t unit) {
      const int64_t tap = unit % s.kernel[2], a = unit / s.kernel[2] / s.kernel[1], b = unit / s.kernel[2] % s.kernel[1];
      const int64_t at_d = z * s.stride[0] + a - s.kernel[0] / 2, shift = tap - s.kernel[2] / 2;
      if (at_d < 0 || at_d >= s.in[0]) return;
      // Columns of y whose column of x, stride * column + shift, exists.
      const int64_t begin = shift < 0 ? (-shift + s.stride[2] - 1) / s.stride[2] : 0;
      const int64_t room = s.in[2] - shift, end = std::min(s.out[2], (room + s.stride[2] - 1) / s.stride[2]);
      if (room <= 0 || begin >= end) return;
      for (int64_t row = 0; row < s.out[1]; ++row) {
        const int64_t at_h = row * s.stride[1] + b - s.kernel[1] / 2;
        if (at_h < 0 || at_h >= s.in[1]) continue;
        const int64_t from = n * volume_in + (at_d * s.in[1] + at_h) * s.in[2] + begin * s.stride[2] + shift;
        const int64_t to = n * volume_out + (z * s.out[1] + row) * s.out[2] + begin;
        add_outer_product(x + from * s.channels, s.stride[2] * s.channels, s.channels, dy + to * s.features,
                          s.features, s.features, end - begin, dkernel + unit * matrix);
      }
    });
  }
}

}  // namespace kd
