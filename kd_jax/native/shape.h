// Sizes of a convolution, padded by half the (odd) kernel on every side.
#pragma once

#include <array>
#include <cstdint>

namespace kd {

using Triple = std::array<int64_t, 3>;

struct Shape {
  int64_t batch;
  Triple in;   // D, H, W of the input
  Triple out;  // of the output
  int64_t channels, features;
  Triple kernel, stride;
};

}  // namespace kd
