/* C interface of SageAttention2++: the region between the qkv and the output GEMM of self-attention,
 * with queries and keys in int8 and probabilities and values in e4m3.
 *
 * Part of libfastwan_plugins.so; statuses, messages and rules are those of fastwan_plugins.h. It runs
 * on compute capability 8.9, 9.0, 12.0 and 12.1.
 */
#ifndef FASTWAN_SAGE2_H
#define FASTWAN_SAGE2_H

#include "fastwan_plugins.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Which rows of queries and keys share a scale, and how int8 is rounded. */
typedef enum {
  /* Rows r, r+8, r+16, r+24 of 32 queries; rows 2t, 2t+1, 2t+8, 2t+9, .. of 64 keys. Published for
   * compute capability 8.9. */
  FASTWAN_SAGE2_PER_THREAD = 1,
  /* 32 queries; 64 keys. Published for compute capability 12.0 and 12.1. */
  FASTWAN_SAGE2_PER_WARP = 2
} fastwan_sage2_granularity;

/* Beside the granularity in a `mode`: one more input, the last, row_scale [B,L] fp32. Each row of qkv
 * is multiplied by its own and rounded to bf16 before anything else. */
#define FASTWAN_SAGE2_ROW_SCALED 0x100u

/* inputs: qkv [B,L,3C] bf16, qkv_scale [3] fp32, qkv_bias [3C] bf16, q_norm [C] bf16, k_norm [C] bf16,
 *         rope_cos [L,64] fp32, rope_sin [L,64] fp32;
 * outputs: [B,L,C] bf16, rows from num_tokens on are zero. C = 128 num_heads. */
typedef struct {
  uint32_t struct_bytes; /* sizeof(fastwan_sage2_desc) */
  uint32_t mode;         /* a fastwan_sage2_granularity, and FASTWAN_SAGE2_ROW_SCALED or not */
  int32_t batch;         /* B */
  int32_t length;        /* L, rows of qkv and of the output */
  int32_t num_tokens;    /* rows that are tokens, 1 .. L */
  int32_t num_heads;     /* 1 .. FASTWAN_MAX_HEADS */
  float eps;             /* of the RMS norm */
  float softmax_scale;   /* 1/sqrt(128) in FastWan */
} fastwan_sage2_desc;

/* Byte offsets in the workspace. Lp = num_tokens rounded up to 128, S = num_tokens / 32 rounded up. A
 * tile lies as the attention wants it in shared memory: pieces of 16 bytes change places in a row, so
 * that 8 rows lie in different banks. */
typedef struct {
  int64_t padded_tokens; /* Lp */
  int64_t q;             /* [B,H,Lp/128] tiles of 128 queries x 128 bytes, int8 */
  int64_t q_scale;       /* [B,H,Lp/32,8] or, per warp, [B,H,Lp/32], fp32 */
  int64_t k;             /* [B,H,Lp/64] tiles of 64 keys x 128 bytes, int8 */
  int64_t k_scale;       /* [B,H,Lp/64,4] or, per warp, [B,H,Lp/64], fp32 */
  int64_t v;             /* [B,H,Lp/64] tiles of 128 channels x 64 tokens: e4m3, on 9.0 fp16 */
  int64_t inverse_norm;  /* [2,B,Lp] fp32: of q, of k */
  int64_t k_sum;         /* [B,S,C] fp32: sums of 32 tokens */
  int64_t v_max;         /* [B,S,C] fp32: largest magnitudes of 32 tokens */
  int64_t k_mean;        /* [B,C] fp32, rounded to bf16 */
  int64_t v_factor;      /* [B,C] fp32: 2.25 / largest magnitude, 0 for a channel of zeros */
  int64_t v_scale;       /* [B,C] fp32: largest magnitude / 2.25 */
  int64_t total;
} fastwan_sage2_layout;

/* FASTWAN_OK when `device` runs the region, FASTWAN_UNSUPPORTED_DEVICE when it does not. */
FASTWAN_API int fastwan_sage2_device_supported(int device);

/* The same on every device: there is room for values in fp16. */
FASTWAN_API int fastwan_sage2_workspace_bytes(const fastwan_sage2_desc* desc, size_t* bytes);
FASTWAN_API int fastwan_sage2_enqueue(const fastwan_sage2_desc* desc, const void* const* inputs,
                                      void* const* outputs, void* workspace, size_t workspace_bytes,
                                      void* stream);

/* Its two halves, for tests and measurements. */
FASTWAN_API int fastwan_sage2_layout_of(const fastwan_sage2_desc* desc, fastwan_sage2_layout* layout);
FASTWAN_API int fastwan_sage2_prologue_enqueue(const fastwan_sage2_desc* desc,
                                               const void* const* inputs, void* const* outputs,
                                               void* workspace, size_t workspace_bytes, void* stream);
FASTWAN_API int fastwan_sage2_attention_enqueue(const fastwan_sage2_desc* desc, void* const* outputs,
                                                void* workspace, size_t workspace_bytes, void* stream);

#ifdef __cplusplus
}
#endif

#endif
