// edge4d_cuda_move_gaussians: a scene's Gaussians at a time, which lies in GPU memory: a graph is replayed at any time.
//
// One thread per Gaussian; a thread reads and writes some 100 bytes and computes little, so memory decides. Colours are
// handled number by number instead, since up to 48 per Gaussian would be strided accesses: a block's numbers are
// neighbours, and so are its threads. Deltas are sampled per number there; only the first three of a Gaussian have any.

#include <cuda_runtime.h>

#include "launch.cuh"
#include "motion.cuh"

namespace edge4d {
namespace {

constexpr int threads = 256;

__device__ void load3(const float* values, int i, float (&out)[3]) {
  for (int k = 0; k < 3; ++k) out[k] = values[3 * static_cast<int64_t>(i) + k];
}

__device__ Gaussian load(const edge4d_move_gaussians& call, int i) {
  Gaussian g = {};
  if (call.means) load3(call.means, i, g.mean);
  if (call.scales) load3(call.scales, i, g.scale);
  if (call.opacities) g.opacity = call.opacities[i];
  if (call.quats) {
    const float4 q = reinterpret_cast<const float4*>(call.quats)[i];
    g.quat[0] = q.x, g.quat[1] = q.y, g.quat[2] = q.z, g.quat[3] = q.w;
  }
  return g;
}

template <class T>
__device__ void store3(void* values, int i, const float (&in)[3]) {
  for (int k = 0; k < 3; ++k) static_cast<T*>(values)[3 * static_cast<int64_t>(i) + k] = T(in[k]);
}

__device__ void store_quat(float* quats, int i, const float (&q)[4]) {
  reinterpret_cast<float4*>(quats)[i] = {q[0], q[1], q[2], q[3]};
}

__device__ void store_quat(__half* quats, int i, const float (&q)[4]) {
  __half2* pairs = reinterpret_cast<__half2*>(quats) + 2 * static_cast<int64_t>(i);
  pairs[0] = __floats2half2_rn(q[0], q[1]);
  pairs[1] = __floats2half2_rn(q[2], q[3]);
}

template <class T>
__device__ void store(const edge4d_move_gaussians& call, int i, const Gaussian& g) {
  if (call.moved_means) store3<T>(call.moved_means, i, g.mean);
  if (call.moved_scales) store3<T>(call.moved_scales, i, g.scale);
  if (call.moved_opacities) static_cast<T*>(call.moved_opacities)[i] = T(g.opacity);
  if (call.moved_quats) store_quat(static_cast<T*>(call.moved_quats), i, g.quat);
}

// T: of the outputs, float or __half.
template <class T>
__global__ void __launch_bounds__(threads) move_gaussians(const __grid_constant__ edge4d_move_gaussians call) {
  const unsigned i = blockIdx.x * threads + threadIdx.x;  // unsigned: the last block may go beyond 2^31
  if (i >= static_cast<unsigned>(call.gaussians)) return;
  Gaussian g = load(call, i);
  move(call, i, *call.time, g);
  store<T>(call, i, g);
}

template <class T>
__global__ void __launch_bounds__(threads)
    move_colors(const __grid_constant__ edge4d_move_gaussians call, int64_t count, int per_gaussian) {
  const int64_t at = static_cast<int64_t>(blockIdx.x) * threads + threadIdx.x;
  if (at >= count) return;
  const int i = static_cast<int>(at / per_gaussian), number = static_cast<int>(at % per_gaussian);
  static_cast<T*>(call.moved_colors)[at] = T(moved_color(call, i, number, *call.time, call.colors[at]));
}

// ---- host -----------------------------------------------------------------------------------------------------------

void require(bool holds, const char* what) {
  if (!holds) refuse(what);
}

void check_poly(const edge4d_motion_term& term) {
  require(term.groups > 0 && term.linear_terms >= 0 && term.angular_terms >= 0, "a polynomial's size cannot be");
  require(term.centres && (term.linear || !term.linear_terms) && (term.angular || !term.angular_terms),
          "a polynomial's pointer is null");
}

void check_delta(const edge4d_motion_term& term, int gaussians) {
  require(term.samples > 0 && term.rows >= 0 && term.channels > 0, "a delta's size cannot be");
  require(term.times && (term.data || term.rows == 0), "a delta's pointer is null");
  require(term.row_of || term.rows == gaussians, "a delta without row_of needs a row for each Gaussian");
  require(term.dtype == EDGE4D_FLOAT32 || term.dtype == EDGE4D_FLOAT16, "a delta's data are float32 or float16");
  require(term.rotation >= EDGE4D_ADD && term.rotation <= EDGE4D_MUL_RIGHT, "a delta's rotation is unknown");
  require(!term.raw || term.rotation == EDGE4D_ADD, "raw quaternions cannot be multiplied: they have no length yet");
  const auto fits = [&](int first, int width) {
    return first == -1 || (first >= 0 && first <= term.channels - width);
  };
  require(fits(term.means_at, 3) && fits(term.quats_at, 4) && fits(term.scales_at, 3) && fits(term.opacities_at, 1) &&
              fits(term.colors_at, 3),
          "a delta has fewer channels than it changes");
}

void check(const edge4d_move_gaussians& call) {
  require(call.gaussians >= 0 && call.coefficients >= 0, "a size is negative");
  require(call.dtype == EDGE4D_FLOAT32 || call.dtype == EDGE4D_FLOAT16, "moved Gaussians are float32 or float16");
  require(call.scale_activation >= EDGE4D_IDENTITY && call.scale_activation <= EDGE4D_SOFTPLUS,
          "scales have no such activation");
  require(call.opacity_activation == EDGE4D_IDENTITY || call.opacity_activation == EDGE4D_SIGMOID,
          "opacities have no such activation");
  require(call.term_count >= 0 && call.term_count <= EDGE4D_MAX_MOTION_TERMS, "there are too many motion terms");
  require(call.time && (call.means || !call.moved_means) && (call.quats || !call.moved_quats) &&
              (call.scales || !call.moved_scales) && (call.opacities || !call.moved_opacities) &&
              (call.colors || !call.moved_colors),
          "a pointer is null");
  for (int k = 0; k < call.term_count; ++k) {
    const edge4d_motion_term& term = call.terms[k];
    require(term.kind == EDGE4D_POLY || term.kind == EDGE4D_DELTA, "a motion term is of an unknown kind");
    term.kind == EDGE4D_POLY ? check_poly(term) : check_delta(term, call.gaussians);
  }
}

template <class T>
void launch(const edge4d_move_gaussians& call, cudaStream_t stream) {
  if (call.moved_means || call.moved_quats || call.moved_scales || call.moved_opacities) {
    move_gaussians<T><<<(call.gaussians - 1) / threads + 1, threads, 0, stream>>>(call);
  }
  if (call.moved_colors) {
    const int per_gaussian = 3 * (call.coefficients ? call.coefficients : 1);
    const int64_t count = static_cast<int64_t>(call.gaussians) * per_gaussian;
    const int64_t blocks = (count - 1) / threads + 1;
    require(blocks <= INT32_MAX, "there are too many colours");  // gridDim.x ends there
    move_colors<T><<<static_cast<unsigned>(blocks), threads, 0, stream>>>(call, count, per_gaussian);
  }
}

void run(const edge4d_move_gaussians* call, cudaStream_t stream) {
  require(call && call->size == sizeof *call, "the parameter struct is of another version");
  if (call->gaussians == 0) return;
  check(*call);
  call->dtype == EDGE4D_FLOAT16 ? launch<__half>(*call, stream) : launch<float>(*call, stream);
  check_cuda(cudaGetLastError());
}

}  // namespace
}  // namespace edge4d

int32_t edge4d_cuda_move_gaussians(const edge4d_move_gaussians* call, void* stream) {
  return edge4d::status_of([&] { edge4d::run(call, static_cast<cudaStream_t>(stream)); });
}
