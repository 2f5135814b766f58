// 3-D convolutions of stride 1 with 3 x 3 taps in the plane, by Winograd's minimal filtering F(4 x 4, 3 x 3).
//
// Lavin and Gray 2016, "Fast algorithms for convolutional neural networks": a tile of 4 x 4 outputs costs 36 products
// in place of 144. Depth taps are summed in the transformed domain, so one transform of a slice serves all of them.
// Blocks of tiles small enough for the cache are transformed, multiplied and transformed back.
//
// Transformed inputs are [36, slice, tile, channel], kernels [36, panel of features, depth tap, channel, feature].
#pragma once

#include <algorithm>

#include "parallel.h"
#include "shape.h"
#include "simd.h"

namespace kd {

constexpr int kTile = 4, kPoints = 6;
constexpr int64_t kThreadFloats = 3 << 16;  // transformed values of a block that one thread works on alone
constexpr int64_t kSharedFloats = 1 << 20;  // of one that all threads share
constexpr int64_t kRowsTogether = 8 * kRows;  // rows that go through all panels while they are in the nearest cache
constexpr int64_t kSkew = 16;              // keeps the 36 planes out of one another's cache sets

inline bool winograd_applies(const Shape& s) {
  return s.kernel[1] == 3 && s.kernel[2] == 3 && s.stride == Triple{1, 1, 1} && s.channels % kLanes == 0 &&
         s.features % kLanes == 0;
}

// B^T of F(4, 3).
template <typename T>
inline void transform_input(const T* d, int64_t step, T* out, int64_t out_step) {
  const T d0 = d[0], d1 = d[step], d2 = d[2 * step], d3 = d[3 * step], d4 = d[4 * step], d5 = d[5 * step];
  const T a = d4 - 4.0f * d2, b = d3 - 4.0f * d1, e = d4 - d2, f = 2.0f * (d3 - d1);
  out[0] = 4.0f * d0 - 5.0f * d2 + d4;
  out[out_step] = a + b;
  out[2 * out_step] = a - b;
  out[3 * out_step] = e + f;
  out[4 * out_step] = e - f;
  out[5 * out_step] = 4.0f * d1 - 5.0f * d3 + d5;
}

// A^T.
template <typename T>
inline void transform_output(const T* m, int64_t step, T* out, int64_t out_step) {
  const T sum12 = m[step] + m[2 * step], dif12 = m[step] - m[2 * step];
  const T sum34 = m[3 * step] + m[4 * step], dif34 = m[3 * step] - m[4 * step];
  out[0] = m[0] + sum12 + sum34;
  out[out_step] = dif12 + 2.0f * dif34;
  out[2 * out_step] = sum12 + 4.0f * sum34;
  out[3 * out_step] = dif12 + 8.0f * dif34 + m[5 * step];
}

// A.
template <typename T>
inline void transform_output_gradient(const T* y, int64_t step, T* out, int64_t out_step) {
  const T even = y[0] + y[2 * step], odd = y[step] + y[3 * step];
  const T even2 = y[0] + 4.0f * y[2 * step], odd2 = 2.0f * y[step] + 8.0f * y[3 * step];
  out[0] = y[0];
  out[out_step] = even + odd;
  out[2 * out_step] = even - odd;
  out[3 * out_step] = even2 + odd2;
  out[4 * out_step] = even2 - odd2;
  out[5 * out_step] = y[3 * step];
}

// G.
template <typename T>
inline void transform_kernel(const T* g, int64_t step, T* out, int64_t out_step) {
  const T ends = g[0] + g[2 * step], ends4 = g[0] + 4.0f * g[2 * step];
  out[0] = 0.25f * g[0];
  out[out_step] = (-1.0f / 6) * (ends + g[step]);
  out[2 * out_step] = (-1.0f / 6) * (ends - g[step]);
  out[3 * out_step] = (1.0f / 24) * (ends4 + 2.0f * g[step]);
  out[4 * out_step] = (1.0f / 24) * (ends4 - 2.0f * g[step]);
  out[5 * out_step] = g[2 * step];
}

// G^T.
template <typename T>
inline void transform_kernel_gradient(const T* u, int64_t step, T* out, int64_t out_step) {
  const T sum12 = u[step] + u[2 * step], dif12 = u[step] - u[2 * step];
  const T sum34 = u[3 * step] + u[4 * step], dif34 = u[3 * step] - u[4 * step];
  out[0] = 0.25f * u[0] - (1.0f / 6) * sum12 + (1.0f / 24) * sum34;
  out[out_step] = (1.0f / 12) * dif34 - (1.0f / 6) * dif12;
  out[2 * out_step] = (1.0f / 6) * (sum34 - sum12) + u[5 * step];
}

// How tiles are taken together: all of `slices` by `tile_rows` rows of tiles at a time.
struct Blocks {
  int64_t tiles_h, tiles_w, slices, tile_rows, count_d, count_h;

  Blocks(const Shape& s, int64_t halo, int64_t floats, int64_t most_slices) {
    tiles_h = (s.out[1] + kTile - 1) / kTile;
    tiles_w = (s.out[2] + kTile - 1) / kTile;
    slices = std::min<int64_t>(s.out[0], most_slices);
    const int64_t row = kPoints * kPoints * tiles_w * ((slices + halo) * s.channels + slices * s.features);
    tile_rows = std::clamp<int64_t>(floats / row, 1, tiles_h);
    count_d = (s.out[0] + slices - 1) / slices;
    count_h = (tiles_h + tile_rows - 1) / tile_rows;
  }
  int64_t count(const Shape& s) const { return s.batch * count_d * count_h; }
  int64_t tiles() const { return tile_rows * tiles_w; }
};

// One of those blocks.
struct Block {
  int64_t n, d, slices, row, rows, tiles;  // tiles: of one slice

  Block(const Shape& s, const Blocks& b, int64_t index) {
    row = index % b.count_h * b.tile_rows;
    d = index / b.count_h % b.count_d * b.slices;
    n = index / b.count_h / b.count_d;
    rows = std::min(b.tile_rows, b.tiles_h - row);
    slices = std::min(b.slices, s.out[0] - d);
    tiles = rows * b.tiles_w;
  }
};

// A row of tiles of slice `z` of `x` [D, H, W, C] in the transformed domain: Points x Points planes, `plane` apart,
// of [tile, channel]. Tiles of Size x Size begin at multiples of 4 less `margin`; beyond the border are zeros.
template <int Size, typename Transform>
inline void transform_tiles(const float* x, const Triple& size, int64_t channels, int64_t z, int64_t tile_row,
                            int64_t tiles, int64_t margin, float* out, int64_t plane, const float* zeros,
                            const Transform& transform) {
  for (int64_t tile = 0; tile < tiles; ++tile, out += channels) {
    const float* source[Size][Size];
    for (int i = 0; i < Size; ++i) {
      const int64_t h = kTile * tile_row - margin + i;
      for (int j = 0; j < Size; ++j) {
        const int64_t w = kTile * tile - margin + j;
        const bool inside = z >= 0 && z < size[0] && h >= 0 && h < size[1] && w >= 0 && w < size[2];
        source[i][j] = inside ? x + ((z * size[1] + h) * size[2] + w) * channels : zeros;
      }
    }
    for (int64_t c = 0; c < channels; c += kLanes) {
      Vec line[Size], half[Size][kPoints], column[kPoints];
#pragma GCC unroll 6
      for (int i = 0; i < Size; ++i) {
#pragma GCC unroll 6
        for (int j = 0; j < Size; ++j) line[j] = load(source[i][j] + c);
        transform(line, 1, half[i], 1);
      }
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) {
        transform(&half[0][j], kPoints, column, 1);
#pragma GCC unroll 6
        for (int i = 0; i < kPoints; ++i) store(out + (i * kPoints + j) * plane + c, column[i]);
      }
    }
  }
}

// Kernels [kd, 3, 3, C, O] in the transformed domain; with `flip` those of the input's gradient, whose channels and
// features change places.
inline void transform_kernels(xla::ffi::ThreadPool& pool, const float* kernel, int64_t taps, int64_t channels,
                              int64_t features, bool flip, float* out) {
  const int64_t rows = flip ? features : channels, columns = flip ? channels : features;
  const int width = panel_width(columns);
  parallel_for(pool, columns / width * taps, [&](int64_t unit) {
    const int64_t first = unit / taps * width, tap = unit % taps;
    float lines[9][2 * kLanes];
    for (int64_t row = 0; row < rows; ++row) {
      for (int k = 0; k < 9; ++k) {
        const float* source = kernel + ((flip ? taps - 1 - tap : tap) * 9 + (flip ? 8 - k : k)) * channels * features;
        for (int j = 0; j < width; ++j) {
          lines[k][j] = flip ? source[(first + j) * features + row] : source[row * features + first + j];
        }
      }
      for (int j = 0; j < width; j += kLanes) {
        Vec line[3], half[3][kPoints], column[kPoints];
        for (int a = 0; a < 3; ++a) {
          for (int b = 0; b < 3; ++b) line[b] = load(&lines[3 * a + b][j]);
          transform_kernel(line, 1, half[a], 1);
        }
        for (int b = 0; b < kPoints; ++b) {
          transform_kernel(&half[0][b], kPoints, column, 1);
          for (int a = 0; a < kPoints; ++a) {
            const int64_t point = a * kPoints + b;
            store(out + ((point * columns + first) * taps + tap * width) * rows + row * width + j, column[a]);
          }
        }
      }
    }
  });
}

// products [slice and tile, features] = sum over depth taps of inputs [slice + tap and tile, channels] @ kernels
template <int N>
inline void multiply(const float* inputs, int64_t rows, int64_t tiles, int64_t channels, const float* kernels,
                     int64_t taps, float* products, int64_t features) {
  constexpr int width = N * kLanes;
  for (int64_t begin = 0; begin < rows; begin += kRowsTogether) {
    const int64_t end = std::min(begin + kRowsTogether, rows);
    for (int64_t panel = 0; panel < features; panel += width) {
      for (int64_t first = begin; first < end; first += kRows) {
        with_constant<kRows>(static_cast<int>(std::min<int64_t>(kRows, end - first)), [&](auto count) {
          Vec sum[count()][N] = {};
          for (int64_t tap = 0; tap < taps; ++tap) {
            const float* source[count()];
            for (int m = 0; m < count(); ++m) source[m] = inputs + (first + m + tap * tiles) * channels;
            inner<count(), N>(source, channels, kernels + (panel * taps + tap * width) * channels, sum);
          }
          for (int m = 0; m < count(); ++m)
            for (int j = 0; j < N; ++j) store(products + (first + m) * features + panel + j * kLanes, sum[m][j]);
        });
      }
    }
  }
}

// Outputs [D, H, W, O] of a row of tiles from their products.
inline void untransform_tiles(const float* products, int64_t plane, const Triple& size, int64_t features, int64_t z,
                              int64_t tile_row, int64_t tiles, float* y) {
  const int64_t lines = std::min<int64_t>(kTile, size[1] - kTile * tile_row);
  for (int64_t tile = 0; tile < tiles; ++tile, products += features) {
    const int64_t columns = std::min<int64_t>(kTile, size[2] - kTile * tile);
    float* target = y + ((z * size[1] + kTile * tile_row) * size[2] + kTile * tile) * features;
    for (int64_t o = 0; o < features; o += kLanes) {
      Vec column[kPoints], half[kTile][kPoints], line[kTile];
#pragma GCC unroll 6
      for (int j = 0; j < kPoints; ++j) {
#pragma GCC unroll 6
        for (int i = 0; i < kPoints; ++i) column[i] = load(products + (i * kPoints + j) * plane + o);
        transform_output(column, 1, &half[0][j], kPoints);
      }
      for (int64_t i = 0; i < lines; ++i) {
        transform_output(half[i], 1, line, 1);
        for (int64_t j = 0; j < columns; ++j) store(target + (i * size[2] + j) * features + o, line[j]);
      }
    }
  }
}

// y [N, D, H, W, O] from x [N, D, H, W, C] and the kernel, or with `flip` the gradient of x from that of y: then the
// shape's channels are those of y. Where there are blocks enough each thread takes its own, else they share each.
inline void winograd_convolution(xla::ffi::ThreadPool& pool, const float* x, const float* kernel, const Shape& s,
                                 bool flip, float* y) {
  const int64_t taps = s.kernel[0], halo = taps - 1, points = kPoints * kPoints;
  const Buffer kernels(points * taps * s.channels * s.features), zeros(s.channels);
  std::fill_n(zeros.get(), s.channels, 0.0f);
  transform_kernels(pool, kernel, taps, flip ? s.features : s.channels, flip ? s.channels : s.features, flip,
                    kernels.get());
  const int64_t volume = s.in[0] * s.in[1] * s.in[2];
  const auto run = [&](const Blocks& blocks, int64_t index, const auto& each) {
    const Block b(s, blocks, index);
    const int64_t plane_in = (b.slices + halo) * b.tiles * s.channels + kSkew;
    const int64_t plane_out = b.slices * b.tiles * s.features + kSkew;
    const Buffer inputs(points * plane_in), products(points * plane_out);
    each((b.slices + halo) * b.rows, [&](int64_t unit) {
      const int64_t slice = unit / b.rows, row = unit % b.rows;
      transform_tiles<kPoints>(x + b.n * volume * s.channels, s.in, s.channels, b.d + slice - halo / 2, b.row + row,
                               blocks.tiles_w, 1,
                               inputs.get() + (slice * b.tiles + row * blocks.tiles_w) * s.channels, plane_in,
                               zeros.get(), [](auto... a) { transform_input(a...); });
    });
    each(points, [&](int64_t point) {
      (panel_width(s.features) == 2 * kLanes ? multiply<2> : multiply<1>)(
          inputs.get() + point * plane_in, b.slices * b.tiles, b.tiles, s.channels,
          kernels.get() + point * taps * s.channels * s.features, taps, products.get() + point * plane_out, s.features);
    });
    each(b.slices * b.rows, [&](int64_t unit) {
      const int64_t slice = unit / b.rows, row = unit % b.rows;
      untransform_tiles(products.get() + (slice * b.tiles + row * blocks.tiles_w) * s.features, plane_out, s.out,
                        s.features, b.d + slice, b.row + row, blocks.tiles_w, y + b.n * volume * s.features);
    });
  };
  const Blocks own(s, halo, kThreadFloats, 4);
  if (own.count(s) >= 4 * pool.num_threads()) {
    const auto alone = [](int64_t count, const auto& body) {
      for (int64_t i = 0; i < count; ++i) body(i);
    };
    parallel_for(pool, own.count(s), [&](int64_t index) { run(own, index, alone); });
  } else {
    const Blocks shared(s, halo, kSharedFloats, 8);
    const auto together = [&](int64_t count, const auto& body) { parallel_for(pool, count, body); };
    for (int64_t index = 0; index < shared.count(s); ++index) run(shared, index, together);
  }
}

// Gradient of the kernel [kd, 3, 3, C, O] from x and the gradient of y.
inline void winograd_kernel_gradient(xla::ffi::ThreadPool& pool, const float* x, const float* dy, const Shape& s,
                                     float* dkernel) {
  const int64_t taps = s.kernel[0], halo = taps - 1, points = kPoints * kPoints, matrix = s.channels * s.features;
  const Blocks blocks(s, halo, kSharedFloats, 8);
  const int64_t rows_in = (blocks.slices + halo) * blocks.tiles(), rows_out = blocks.slices * blocks.tiles();
  const int64_t plane_in = rows_in * s.channels + kSkew, plane_out = rows_out * s.features + kSkew;
  const Buffer sums(points * taps * matrix), zeros(std::max(s.channels, s.features));
  const Buffer inputs(points * plane_in), gradients(points * plane_out);
  std::fill_n(zeros.get(), std::max(s.channels, s.features), 0.0f);
  const int64_t volume = s.in[0] * s.in[1] * s.in[2];
  for (int64_t index = 0; index < blocks.count(s); ++index) {
    const Block b(s, blocks, index);
    const int64_t rows_x = (b.slices + halo) * b.rows;
    parallel_for(pool, rows_x + b.slices * b.rows, [&](int64_t unit) {
      const bool of_x = unit < rows_x;
      if (!of_x) unit -= rows_x;
      const int64_t slice = unit / b.rows, row = unit % b.rows, tile = slice * b.tiles + row * blocks.tiles_w;
      if (of_x) {
        transform_tiles<kPoints>(x + b.n * volume * s.channels, s.in, s.channels, b.d + slice - halo / 2, b.row + row,
                                 blocks.tiles_w, 1, inputs.get() + tile * s.channels, plane_in, zeros.get(),
                                 [](auto... a) { transform_input(a...); });
      } else {
        transform_tiles<kTile>(dy + b.n * volume * s.features, s.out, s.features, b.d + slice, b.row + row,
                               blocks.tiles_w, 0, gradients.get() + tile * s.features, plane_out, zeros.get(),
                               [](auto... a) { transform_output_gradient(a...); });
      }
    });
    parallel_for(pool, points * taps, [&](int64_t unit) {
      const int64_t point = unit / taps, tap = unit % taps;
      float* sum = sums.get() + unit * matrix;
      if (index == 0) std::fill_n(sum, matrix, 0.0f);
      add_outer_product(inputs.get() + point * plane_in + tap * b.tiles * s.channels, s.channels, s.channels,
                        gradients.get() + point * plane_out, s.features, s.features, b.slices * b.tiles, sum);
    });
  }
  parallel_for(pool, taps * s.channels, [&](int64_t unit) {
    const int64_t tap = unit / s.channels, c = unit % s.channels;
    for (int64_t o = 0; o < s.features; o += kLanes) {
      Vec column[kPoints], half[3][kPoints], line[3];
      for (int j = 0; j < kPoints; ++j) {
        for (int i = 0; i < kPoints; ++i)
          column[i] = load(sums.get() + ((i * kPoints + j) * taps + tap) * matrix + c * s.features + o);
        transform_kernel_gradient(column, 1, &half[0][j], kPoints);
      }
      for (int i = 0; i < 3; ++i) {
        transform_kernel_gradient(half[i], 1, line, 1);
        for (int j = 0; j < 3; ++j) store(dkernel + (tap * 9 + 3 * i + j) * matrix + c * s.features + o, line[j]);
      }
    }
  });
}

}  // namespace kd
