/* The C interface of edge4d's operators. Every symbol begins with edge4d_.
 *
 * An operator takes one plain struct: its `size` first (sizeof, so that a struct of another version is refused), then the
 * sizes of its tensors, its attributes, and the tensors themselves, dense and row-major, owned by the caller.
 * The names are those of kernels/ops.py; the numbers are those of CONVENTIONS.md.
 * libedge4d_kernels holds the functions edge4d_cpu_*, libedge4d_cuda those called edge4d_cuda_*; both hold the rest.
 * Functions return a status; edge4d_last_error says more, for the calling thread, until its next call.
 * Calls from several threads at once are fine. */
#ifndef EDGE4D_H
#define EDGE4D_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE4D_API __attribute__((visibility("default")))
#define EDGE4D_ABI_VERSION 2

enum edge4d_status {
  EDGE4D_OK = 0,
  EDGE4D_INVALID = 1,       /* sizes, attributes or pointers that cannot be */
  EDGE4D_OUT_OF_MEMORY = 2,
  EDGE4D_TOO_MANY_PAIRS = 3, /* an image needs 2^31 Gaussian-tile pairs or more */
  EDGE4D_CUDA_ERROR = 4      /* the driver refused; edge4d_last_error has its words */
};

enum edge4d_dtype { EDGE4D_FLOAT32 = 0, EDGE4D_FLOAT16 = 1, EDGE4D_UINT8 = 2 };

enum edge4d_output { EDGE4D_IMAGE = 1, EDGE4D_ALPHA = 2, EDGE4D_DEPTH = 4 };

typedef struct edge4d_gaussian_rasterize {
  uint64_t size;
  /* B, V, N, C; K coefficients per Gaussian and channel, 0 when colors are [B, N, C] */
  int32_t batch, cameras, gaussians, channels, coefficients;
  int32_t dtype; /* of means, quats, scales, opacities and colors: float32 or float16 */
  int32_t width, height;
  float near, far, eps2d;
  int32_t antialiased;
  float compensation_floor, alpha_max;
  int32_t sh_degree, max_pairs, outputs, out_dtype, fast;
  const void *means;      /* [B, N, 3] */
  const void *quats;      /* [B, N, 4] */
  const void *scales;     /* [B, N, 3] */
  const void *opacities;  /* [B, N] */
  const void *colors;     /* [B, N, C] or [B, N, K, 3] */
  const float *viewmats;  /* [B, V, 4, 4] */
  const float *Ks;        /* [B, V, 3, 3] */
  const float *background; /* [C] */
  void *image;            /* [B, V, H, W, C] of out_dtype */
  void *alpha;            /* [B, V, H, W, 1] of out_dtype; float32 when that is uint8 */
  void *depth;            /* [B, V, H, W, 1] as alpha */
  int32_t *stats;         /* [B, V, 5] */
} edge4d_gaussian_rasterize;

typedef struct edge4d_knn_interpolate {
  uint64_t size;
  int32_t query_count, point_count, frames, channels; /* Q, M, T, C */
  int32_t k;
  float beta;
  int32_t radius_mask;
  const float *queries;  /* [Q, 3] */
  const float *points;   /* [M, 3] */
  const float *values;   /* [T, M, C] */
  float *interpolated;   /* [T, Q, C] */
  int32_t *indices;      /* [Q, k] */
  float *weights;        /* [Q, k] */
} edge4d_knn_interpolate;

typedef struct edge4d_farthest_point_sample {
  uint64_t size;
  int32_t point_count, count; /* N, L */
  const float *points;        /* [N, 3] */
  int32_t *indices;           /* [L] */
} edge4d_farthest_point_sample;

/* Tables hold rows of other tensors. An index that is not 0 .. N - 1 stands for no row: nothing is read there. */
typedef struct edge4d_voxel_neighbours {
  uint64_t size;
  int32_t voxel_count, resolution; /* N */
  const int32_t *coords;           /* [N, 3] */
  int32_t *neighbours;             /* [N, 27] */
} edge4d_voxel_neighbours;

typedef struct edge4d_submanifold_convolution {
  uint64_t size;
  int32_t voxel_count, inputs, outputs; /* N, C, D */
  int32_t dtype;                        /* of features, weight, bias and convolved: float32 or float16 */
  const void *features;                 /* [N, C] */
  const int32_t *neighbours;            /* [N, 27] */
  const void *weight;                   /* [27, C, D] */
  const void *bias;                     /* [D] */
  void *convolved;                      /* [N, D] */
} edge4d_submanifold_convolution;

typedef struct edge4d_gather_mean {
  uint64_t size;
  int32_t row_count, channels, mean_count, most_rows; /* N, C, M, K */
  int32_t zeros;
  int32_t dtype;        /* of features and means: float32 or float16 */
  const void *features; /* [N, C] */
  const int32_t *table; /* [M, K] */
  void *means;          /* [M, C] */
} edge4d_gather_mean;

typedef struct edge4d_window_attention {
  uint64_t size;
  int32_t row_count, window_count, longest, heads, channels; /* N, W, K, H, D */
  int32_t dtype;          /* of qkv and attended: float32 or float16 */
  const void *qkv;        /* [N, 3, H, D] */
  const int32_t *windows; /* [W, K] */
  void *attended;         /* [N, H, D] */
} edge4d_window_attention;

/* One term of a scene's motion: `Poly` or `Delta` of runtime/motion.py, whose formulas it follows. */
enum edge4d_motion_kind { EDGE4D_POLY = 1, EDGE4D_DELTA = 2 };
enum edge4d_rotation { EDGE4D_ADD = 0, EDGE4D_MUL_LEFT = 1, EDGE4D_MUL_RIGHT = 2 };
enum edge4d_activation { EDGE4D_IDENTITY = 0, EDGE4D_EXP = 1, EDGE4D_SOFTPLUS = 2, EDGE4D_SIGMOID = 3 };
enum { EDGE4D_MAX_MOTION_TERMS = 4 };

typedef struct edge4d_motion_term {
  int32_t kind;
  /* Poly */
  int32_t groups, linear_terms, angular_terms; /* M, P, Q */
  const float *centres; /* [M, 3] */
  const float *linear;  /* [M, P, 3] */
  const float *angular; /* [M, Q, 3] */
  /* Delta */
  int32_t raw;                     /* 1: added before the activations */
  int32_t rotation;                /* edge4d_rotation */
  int32_t linear_interpolation;    /* 0: holds the latest sample */
  int32_t samples, rows, channels; /* T, n, C */
  int32_t dtype;                   /* of data: float32 or float16 */
  /* first channels of what it changes, -1: leaves it */
  int32_t means_at, quats_at, scales_at, opacities_at, colors_at;
  const double *times;         /* [T] seconds, increasing */
  const void *data;            /* [T, n, C] */
  const int32_t *row_of;       /* [N] row of each Gaussian in data, -1: none; null: row i is Gaussian i */
} edge4d_motion_term;

/* A scene's Gaussians at a time: stored values, through its terms and activations, to what GaussianRasterize takes.
 * An output that is null is not written. Outputs must not overlap inputs. */
typedef struct edge4d_move_gaussians {
  uint64_t size;
  int32_t gaussians, coefficients; /* N; K, 0 when colors are [N, 3] */
  int32_t dtype;                   /* of the outputs: float32 or float16 */
  int32_t scale_activation, opacity_activation;
  float scale_bias, scale_floor, opacity_bias;
  float quat_bias[4];
  int32_t term_count;
  edge4d_motion_term terms[EDGE4D_MAX_MOTION_TERMS];
  const double *time;      /* one number, seconds */
  const int32_t *groups;   /* [N]; null: all static */
  const float *means, *quats, *scales, *opacities, *colors;
  void *moved_means, *moved_quats, *moved_scales, *moved_opacities, *moved_colors;
} edge4d_move_gaussians;

/* One step of a sampler, `Step` of runtime/samplers.py: data = alpha x - sigma velocity, then
 * x = keep x + current data + previous (the data before). */
typedef struct edge4d_sampler_step {
  uint64_t size;
  int64_t count;         /* numbers of velocity, x and data each */
  const float *step;     /* [6]: model time, alpha, sigma, keep, current, previous */
  const float *velocity; /* [count] what the network said of x */
  float *x;              /* [count] read, and overwritten */
  float *data;           /* [count] that of the step before, read and overwritten */
} edge4d_sampler_step;

EDGE4D_API int32_t edge4d_abi_version(void);
EDGE4D_API const char *edge4d_last_error(void);

/* The instruction set that the CPU kernels use on this machine: "avx512", "avx2" or "baseline". */
EDGE4D_API const char *edge4d_cpu_instructions(void);

/* `threads`: 0 uses every core that the process may use. The result does not depend on it, bit for bit. */
EDGE4D_API int32_t edge4d_cpu_gaussian_rasterize(const edge4d_gaussian_rasterize *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_knn_interpolate(const edge4d_knn_interpolate *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_farthest_point_sample(const edge4d_farthest_point_sample *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_voxel_neighbours(const edge4d_voxel_neighbours *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_submanifold_convolution(const edge4d_submanifold_convolution *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_gather_mean(const edge4d_gather_mean *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_window_attention(const edge4d_window_attention *call, int32_t threads);

/* On the GPU every tensor is device memory, aligned to 16 bytes, and `stream` is a cudaStream_t. A call puts work into the
 * stream and returns: it waits for nothing, allocates nothing and reads no host memory later, so it can be captured into
 * a CUDA graph and run in a TensorRT plugin. `workspace` is device memory of at least as many bytes as the function with
 * that name says for the same sizes and attributes, aligned to 256 bytes; its content does not matter, and it belongs to
 * the call until its work is done. The same inputs give the same bits on the same device.
 * GaussianRasterize needs max_pairs > 0 here. An image that needs more holds the background alone, and its stats say so;
 * pairs needed stop counting at 2^31 - 1. */
EDGE4D_API uint64_t edge4d_cuda_gaussian_rasterize_workspace(const edge4d_gaussian_rasterize *call);
EDGE4D_API int32_t edge4d_cuda_gaussian_rasterize(const edge4d_gaussian_rasterize *call, void *workspace,
                                                  uint64_t workspace_bytes, void *stream);
EDGE4D_API uint64_t edge4d_cuda_knn_interpolate_workspace(const edge4d_knn_interpolate *call);
EDGE4D_API int32_t edge4d_cuda_knn_interpolate(const edge4d_knn_interpolate *call, void *workspace,
                                               uint64_t workspace_bytes, void *stream);
EDGE4D_API uint64_t edge4d_cuda_farthest_point_sample_workspace(const edge4d_farthest_point_sample *call);
EDGE4D_API int32_t edge4d_cuda_farthest_point_sample(const edge4d_farthest_point_sample *call, void *workspace,
                                                     uint64_t workspace_bytes, void *stream);
EDGE4D_API uint64_t edge4d_cuda_voxel_neighbours_workspace(const edge4d_voxel_neighbours *call);
EDGE4D_API int32_t edge4d_cuda_voxel_neighbours(const edge4d_voxel_neighbours *call, void *workspace,
                                                uint64_t workspace_bytes, void *stream);
EDGE4D_API uint64_t edge4d_cuda_submanifold_convolution_workspace(const edge4d_submanifold_convolution *call);
EDGE4D_API int32_t edge4d_cuda_submanifold_convolution(const edge4d_submanifold_convolution *call, void *workspace,
                                                       uint64_t workspace_bytes, void *stream);
EDGE4D_API uint64_t edge4d_cuda_gather_mean_workspace(const edge4d_gather_mean *call);
EDGE4D_API int32_t edge4d_cuda_gather_mean(const edge4d_gather_mean *call, void *workspace,
                                           uint64_t workspace_bytes, void *stream);
EDGE4D_API uint64_t edge4d_cuda_window_attention_workspace(const edge4d_window_attention *call);
EDGE4D_API int32_t edge4d_cuda_window_attention(const edge4d_window_attention *call, void *workspace,
                                                uint64_t workspace_bytes, void *stream);
EDGE4D_API int32_t edge4d_cuda_move_gaussians(const edge4d_move_gaussians *call, void *stream);
EDGE4D_API int32_t edge4d_cuda_sampler_step(const edge4d_sampler_step *call, void *stream);

#ifdef __cplusplus
}
#endif

#endif
