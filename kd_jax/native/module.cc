// The operators as XLA custom calls. Arrays are [N, D, H, W, C], kernels [kd, kh, kw, C, O], float32.

#include "direct.h"
#include "norm.h"
#include "winograd.h"

namespace ffi = xla::ffi;

namespace {

using Array = ffi::Buffer<ffi::F32, 5>;
using Result = ffi::Result<Array>;
using Strides = ffi::Span<const int64_t>;
using Dimensions = ffi::Span<const int64_t>;

kd::Triple spatial(Dimensions size) { return {size[1], size[2], size[3]}; }

// From the sizes of x, kernel and y.
kd::Shape shape_of(Dimensions x, Dimensions kernel, Dimensions y, Strides stride) {
  return {x[0], spatial(x), spatial(y), kernel[3], kernel[4], {kernel[0], kernel[1], kernel[2]},
          {stride[0], stride[1], stride[2]}};
}

// Planes so small that transforming the kernel costs more than is saved.
bool too_small(const kd::Shape& s) { return s.batch * s.out[0] * ((s.out[1] + 3) / 4) * ((s.out[2] + 3) / 4) < 8; }

bool use_winograd(const kd::Shape& s, bool allowed) { return allowed && kd::winograd_applies(s) && !too_small(s); }

ffi::Error convolution(ffi::ThreadPool pool, Array x, Array kernel, Result y, Strides stride, bool winograd) {
  const kd::Shape s = shape_of(x.dimensions(), kernel.dimensions(), y->dimensions(), stride);
  const auto run = use_winograd(s, winograd) ? kd::winograd_convolution : kd::direct_convolution;
  run(pool, x.typed_data(), kernel.typed_data(), s, false, y->typed_data());
  return ffi::Error::Success();
}

ffi::Error input_gradient(ffi::ThreadPool pool, Array dy, Array kernel, Result dx, Strides stride, bool winograd) {
  kd::Shape s = shape_of(dx->dimensions(), kernel.dimensions(), dy.dimensions(), stride);
  std::swap(s.in, s.out);
  std::swap(s.channels, s.features);
  const auto run = use_winograd(s, winograd) ? kd::winograd_convolution : kd::direct_convolution;
  run(pool, dy.typed_data(), kernel.typed_data(), s, true, dx->typed_data());
  return ffi::Error::Success();
}

ffi::Error kernel_gradient(ffi::ThreadPool pool, Array x, Array dy, Result dkernel, Strides stride, bool winograd) {
  const kd::Shape s = shape_of(x.dimensions(), dkernel->dimensions(), dy.dimensions(), stride);
  const auto run = use_winograd(s, winograd) ? kd::winograd_kernel_gradient : kd::direct_kernel_gradient;
  run(pool, x.typed_data(), dy.typed_data(), s, dkernel->typed_data());
  return ffi::Error::Success();
}

using Vector = ffi::Buffer<ffi::F32, 1>;
using Matrix = ffi::Buffer<ffi::F32, 2>;

kd::Pieces pieces_of(Dimensions x) { return {x[0], x[1] * x[2] * x[3], x[4]}; }

ffi::Error norm(ffi::ThreadPool pool, Array x, Vector scale, Vector shift, Result y, ffi::Result<Matrix> mean,
                ffi::Result<Matrix> inverse, float epsilon, float slope) {
  kd::instance_norm(pool, x.typed_data(), scale.typed_data(), shift.typed_data(), pieces_of(x.dimensions()), epsilon,
                    slope, y->typed_data(), mean->typed_data(), inverse->typed_data());
  return ffi::Error::Success();
}

ffi::Error norm_gradient(ffi::ThreadPool pool, Array x, Vector scale, Vector shift, Matrix mean, Matrix inverse,
                         Array dy, Result dx, ffi::Result<Vector> dscale, ffi::Result<Vector> dshift, float slope) {
  kd::instance_norm_gradient(pool, x.typed_data(), scale.typed_data(), shift.typed_data(), mean.typed_data(),
                             inverse.typed_data(), dy.typed_data(), pieces_of(x.dimensions()), slope,
                             dx->typed_data(), dscale->typed_data(), dshift->typed_data());
  return ffi::Error::Success();
}

}  // namespace

// Channels must be a multiple of it.
extern "C" int64_t kd_lanes() { return kd::kLanes; }

#define KD_DEFINE(name, function)                                                                                   \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, function,                                                                     \
                                ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Array>().Ret<Array>()      \
                                    .Attr<Strides>("stride").Attr<bool>("winograd"))

KD_DEFINE(kd_convolution, convolution);
KD_DEFINE(kd_input_gradient, input_gradient);
KD_DEFINE(kd_kernel_gradient, kernel_gradient);

XLA_FFI_DEFINE_HANDLER_SYMBOL(kd_norm, norm,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Vector>().Arg<Vector>()
                                  .Ret<Array>().Ret<Matrix>().Ret<Matrix>()
                                  .Attr<float>("epsilon").Attr<float>("slope"));

XLA_FFI_DEFINE_HANDLER_SYMBOL(kd_norm_gradient, norm_gradient,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Arg<Vector>().Arg<Vector>()
                                  .Arg<Matrix>().Arg<Matrix>().Arg<Array>()
                                  .Ret<Array>().Ret<Vector>().Ret<Vector>().Attr<float>("slope"));
