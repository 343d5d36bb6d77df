/* C interface of the glue: what stands between two GEMMs whose operands are FP4, one kernel a node.
 *
 * Part of libfastwan_plugins.so; statuses, messages and rules are those of fastwan_plugins.h. All
 * tensors are contiguous with a batch of 1. FP4 operands are written as codes, two a byte with the
 * even element in the low nibble, and one e4m3 scale for 16 neighbours, row-major. A value must be
 * finite or infinite, which saturates; what NaN becomes is not defined.
 */
#ifndef FASTWAN_GLUE_H
#define FASTWAN_GLUE_H

#include "fastwan_plugins.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum {
  /* inputs: y [L,F] bf16, bias [F] bf16; outputs: codes [L,F/2], scales [L,F/16] of
   * bf16(gelu_tanh(bf16(y + bias))). */
  FASTWAN_GLUE_GELU_QUANTIZE = 1,
  /* inputs: x [L,C] bf16; outputs: codes [L,C/2], scales [L,C/16]. */
  FASTWAN_GLUE_QUANTIZE = 2,
  /* inputs: y [L,C] bf16, bias [C] bf16, hidden [L,C] bf16, gate [C] fp32 with FASTWAN_GLUE_GATE
   *         only, scale [C] fp32, shift [C] fp32;
   * outputs: hidden [L,C] bf16, codes [L,C/2], scales [L,C/16]. C is a multiple of 128. */
  FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE = 3,
  /* inputs: y [L,C] bf16, bias [C] bf16, norm_weight [C] bf16, k [Lk,C] bf16, v [H,Lk,128] bf16,
   *         key_bias [Lk] fp32, added to the logits, key_tiles [1] int32, tiles of 64 keys to read;
   * outputs: codes [L,C/2], scales [L,C/16]. C = 128 H, Lk is a multiple of 64. */
  FASTWAN_GLUE_CROSS_ATTENTION = 4,
  /* inputs: x [L,C] bf16, scale [C] fp32, shift [C] fp32;
   * outputs: codes [L,C/2], scales [L,C/16]. C is a multiple of 128. */
  FASTWAN_GLUE_NORM_QUANTIZE = 5,
  /* inputs: those of FASTWAN_GLUE_RESIDUAL_NORM_QUANTIZE; outputs: the modulated norm [L,C] bf16. */
  FASTWAN_GLUE_RESIDUAL_NORM = 6
} fastwan_glue_kind;

#define FASTWAN_GLUE_ADD_ONE 1u /* the norm is multiplied by 1 + scale, not by scale */
#define FASTWAN_GLUE_GATE 2u    /* there is a gate, of a residual */
#define FASTWAN_GLUE_SCALE 4u   /* one more input, the last: a factor of y, [1] fp32, for
                                 * FASTWAN_GLUE_GELU_QUANTIZE, _RESIDUAL_NORM_QUANTIZE,
                                 * _RESIDUAL_NORM and _CROSS_ATTENTION: bf16(y * factor) takes the
                                 * place of y */

typedef struct {
  uint32_t struct_bytes; /* sizeof(fastwan_glue_desc) */
  uint32_t kind;         /* fastwan_glue_kind */
  int32_t rows;          /* L */
  int32_t columns;       /* F or C, a multiple of 16 */
  int32_t keys;          /* Lk, of FASTWAN_GLUE_CROSS_ATTENTION only */
  float eps;             /* of the norm; 0 where the kind has none */
  float softmax_scale;   /* of FASTWAN_GLUE_CROSS_ATTENTION only */
  uint32_t flags;        /* FASTWAN_GLUE_*; the first two of a kind with a layer norm only */
} fastwan_glue_desc;

/* These kernels run wherever the prologue does, and none needs a workspace. */
FASTWAN_API int fastwan_glue_workspace_bytes(const fastwan_glue_desc* desc, size_t* bytes);
FASTWAN_API int fastwan_glue_enqueue(const fastwan_glue_desc* desc, const void* const* inputs,
                                     void* const* outputs, void* workspace, size_t workspace_bytes,
                                     void* stream);

#ifdef __cplusplus
}
#endif

#endif
