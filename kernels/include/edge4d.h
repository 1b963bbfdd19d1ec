/* The C interface of edge4d's operators. Every symbol begins with edge4d_.
 *
 * An operator takes one plain struct: its `size` first (sizeof, so that a struct of another version is refused), then the
 * sizes of its tensors, its attributes, and the tensors themselves, dense and row-major, owned by the caller.
 * The names are those of kernels/ops.py; the numbers are those of CONVENTIONS.md.
 * Functions return a status; edge4d_last_error says more, for the calling thread, until its next call.
 * Calls from several threads at once are fine. */
#ifndef EDGE4D_H
#define EDGE4D_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define EDGE4D_API __attribute__((visibility("default")))
#define EDGE4D_ABI_VERSION 1

enum edge4d_status {
  EDGE4D_OK = 0,
  EDGE4D_INVALID = 1,       /* sizes, attributes or pointers that cannot be */
  EDGE4D_OUT_OF_MEMORY = 2,
  EDGE4D_TOO_MANY_PAIRS = 3 /* an image needs 2^31 Gaussian-tile pairs or more */
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

EDGE4D_API int32_t edge4d_abi_version(void);
EDGE4D_API const char *edge4d_last_error(void);

/* The instruction set that the CPU kernels use on this machine: "avx512", "avx2" or "baseline". */
EDGE4D_API const char *edge4d_cpu_instructions(void);

/* `threads`: 0 uses every core that the process may use. The result does not depend on it, bit for bit. */
EDGE4D_API int32_t edge4d_cpu_gaussian_rasterize(const edge4d_gaussian_rasterize *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_knn_interpolate(const edge4d_knn_interpolate *call, int32_t threads);
EDGE4D_API int32_t edge4d_cpu_farthest_point_sample(const edge4d_farthest_point_sample *call, int32_t threads);

#ifdef __cplusplus
}
#endif

#endif
