// Vectors of floats and the two inner products that everything else is made of.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

namespace kd {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRows = 12;  // 24 accumulators of 32 registers
#else
constexpr int kLanes = 8;
constexpr int kRows = 6;  // 12 accumulators of 16 registers
#endif
constexpr int kOuterRows = 4;
constexpr int64_t kNearFloats = 1 << 12;  // half of a small first-level cache

typedef float Vec __attribute__((vector_size(kLanes * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(kLanes * sizeof(float)), aligned(sizeof(float)), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const Unaligned*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Unaligned*>(p) = v; }

// Columns of a matrix are taken in panels as wide as two vectors, or one where channels are no multiple of two.
inline int panel_width(int64_t columns) { return columns % (2 * kLanes) == 0 ? 2 * kLanes : kLanes; }

// sum[m][:] += sum_k rows[m][k] * panel[k][:]
template <int M, int N>
inline void inner(const float* const* rows, int64_t depth, const float* panel, Vec (&sum)[M][N]) {
  for (int64_t k = 0; k < depth; ++k, panel += N * kLanes) {
    Vec b[N];
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) b[j] = load(panel + j * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const float a = rows[m][k];
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) sum[m][j] += a * b[j];
    }
  }
}

// sum[m][:] += sum_k left[k * left_step + m] * right[k * right_step + :]
template <int M, int N>
inline void outer(const float* left, int64_t left_step, const float* right, int64_t right_step, int64_t depth,
                  float* sum, int64_t sum_step) {
  Vec acc[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) acc[m][j] = load(sum + m * sum_step + j * kLanes);
  for (int64_t k = 0; k < depth; ++k, left += left_step, right += right_step) {
    Vec b[N];
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) b[j] = load(right + j * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
      for (int j = 0; j < N; ++j) acc[m][j] += left[m] * b[j];
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m)
#pragma GCC unroll 2
    for (int j = 0; j < N; ++j) store(sum + m * sum_step + j * kLanes, acc[m][j]);
}

// Calls f with std::integral_constant<int, m>, 1 <= m <= Max.
template <int Max, typename F>
inline void with_constant(int m, const F& f) {
  if constexpr (Max > 1) {
    if (m < Max) return with_constant<Max - 1>(m, f);
  }
  f(std::integral_constant<int, Max>{});
}

// sum [rows, columns] += left [depth, rows] transposed times right [depth, columns]; columns a multiple of kLanes.
// In pieces of `depth` that stay in the nearest cache while every pair of rows and columns passes over them.
inline void add_outer_product(const float* left, int64_t left_step, int64_t rows, const float* right,
                              int64_t right_step, int64_t columns, int64_t depth, float* sum) {
  const int width = panel_width(columns);
  const int64_t piece = std::max<int64_t>(32, kNearFloats / (rows + columns));
  for (int64_t begin = 0; begin < depth; begin += piece) {
    const int64_t count = std::min(piece, depth - begin);
    for (int64_t o = 0; o < columns; o += width) {
      for (int64_t c = 0; c < rows; c += kOuterRows) {
        with_constant<kOuterRows>(static_cast<int>(std::min<int64_t>(kOuterRows, rows - c)), [&](auto m) {
          const float *a = left + begin * left_step + c, *b = right + begin * right_step + o;
          float* target = sum + c * columns + o;
          if (width == 2 * kLanes) {
            outer<m(), 2>(a, left_step, b, right_step, count, target, columns);
          } else {
            outer<m(), 1>(a, left_step, b, right_step, count, target, columns);
          }
        });
      }
    }
  }
}

}  // namespace kd
