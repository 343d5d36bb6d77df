/* C interface of libfastwan_plugins.so.
 *
 * A region is what stands between two engines: one or more neighbouring nodes of the ONNX domain
 * `fastwan`. A caller describes it, asks for its workspace once, and enqueues it. No call here
 * allocates device memory, synchronises, or reads a tensor on the host, so every enqueue may be
 * captured in a CUDA graph. Functions return a fastwan_status; fastwan_last_error() says more.
 */
#ifndef FASTWAN_PLUGINS_H
#define FASTWAN_PLUGINS_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FASTWAN_API __attribute__((visibility("default")))
#else
#define FASTWAN_API
#endif

/* Raised whenever a struct or the meaning of a call changes. */
#define FASTWAN_INTERFACE_VERSION 2
#define FASTWAN_HEAD_DIM 128
#define FASTWAN_TILE 128
#define FASTWAN_MAX_HEADS 40

typedef enum {
  FASTWAN_OK = 0,
  FASTWAN_INVALID_ARGUMENT = 1,
  FASTWAN_UNSUPPORTED_DEVICE = 2,
  FASTWAN_CUDA_ERROR = 3,
  FASTWAN_WORKSPACE_TOO_SMALL = 4
} fastwan_status;

typedef enum {
  /* One node fastwan::SageAttention3.
   * inputs: qkv [B,L,3C] bf16, qkv_scale [3] fp32, qkv_bias [3C] bf16, q_norm [C] bf16,
   *         k_norm [C] bf16, rope_cos [L,64] fp32, rope_sin [L,64] fp32;
   * outputs: [B,L,C] bf16, rows from num_tokens on are zero. C = 128 num_heads. */
  FASTWAN_REGION_SAGE_ATTENTION3 = 1
} fastwan_region_kind;

/* Start the maxima of the first key tile at minus infinity instead of 0. */
#define FASTWAN_FLAG_EXACT_MAX 1u

/* Kernels of the attention. They read the same operands and are held to one reference at the same
 * limits; which is faster depends on the GPU. */
typedef enum {
  FASTWAN_ATTENTION_SAGE3 = 0,     /* fastvideo-kernel */
  FASTWAN_ATTENTION_FLASHINFER = 1 /* flashinfer */
} fastwan_attention;

typedef struct {
  uint32_t struct_bytes; /* sizeof(fastwan_region_desc) */
  uint32_t kind;         /* fastwan_region_kind */
  int32_t batch;         /* B */
  int32_t length;        /* L, rows of qkv and of the output */
  int32_t num_tokens;    /* rows that are tokens, 1 .. L */
  int32_t num_heads;     /* 1 .. FASTWAN_MAX_HEADS */
  float eps;             /* of the RMS norm */
  float softmax_scale;   /* 1/sqrt(128) in FastWan */
  uint32_t flags;        /* FASTWAN_FLAG_* */
  uint32_t implementation; /* fastwan_attention */
  int32_t processors;    /* multiprocessors that keys are divided for; 0: those of the device */
} fastwan_region_desc;

/* Byte offsets of the packed operands in the workspace of a FASTWAN_REGION_SAGE_ATTENTION3;
 * Lp = num_tokens rounded up to 128. An emulated library has the same total, but its rows of k, and
 * its pieces of v that hold a channel of 128 tokens, take turns: each has 64 bytes and lies 128 bytes
 * after the last. */
typedef struct {
  int64_t padded_tokens; /* Lp */
  int64_t q;             /* [B,H,Lp,64] e2m1 pairs */
  int64_t q_scale;       /* [B,H,Lp,8] e4m3, swizzled */
  int64_t k;             /* [B,H,Lp,64] e2m1 pairs, rows permuted inside each 32 */
  int64_t k_scale;       /* [B,H,Lp,8] e4m3, swizzled */
  int64_t v;             /* [B,H,128,Lp/2] e2m1 pairs along tokens */
  int64_t v_scale;       /* [B,H,128,Lp/16] e4m3, swizzled */
  int64_t delta_s;       /* [B,H,Lp] fp32 zeros: the kernel's additive term, unused by this model */
  int64_t total;         /* behind it, the sums of divided keys (csrc/key_split.h) */
} fastwan_sage_layout;

FASTWAN_API int fastwan_interface_version(void);
/* "name=value ..." of version, CUDA toolkit, kernel headers, architectures, TensorRT, and whether the
 * library emulates the FP4 MMA (yes, no). */
FASTWAN_API const char* fastwan_build_info(void);
/* Why the last call of this thread failed; never null. */
FASTWAN_API const char* fastwan_last_error(void);

/* FASTWAN_OK when `device` runs whole regions, FASTWAN_UNSUPPORTED_DEVICE when it does not. */
FASTWAN_API int fastwan_device_supported(int device);

FASTWAN_API int fastwan_region_workspace_bytes(const fastwan_region_desc* desc, size_t* bytes);
FASTWAN_API int fastwan_region_enqueue(const fastwan_region_desc* desc, const void* const* inputs,
                           void* const* outputs, void* workspace, size_t workspace_bytes,
                           void* stream);

/* Prologue and attention of a FASTWAN_REGION_SAGE_ATTENTION3 on their own, for tests and
 * measurements. The prologue runs on every GPU from compute capability 8.0 on, that of an emulated
 * library on 9.0 only. */
FASTWAN_API int fastwan_sage_layout_of(const fastwan_region_desc* desc, fastwan_sage_layout* layout);
FASTWAN_API int fastwan_sage_prologue_enqueue(const fastwan_region_desc* desc, const void* const* inputs,
                                  void* const* outputs, void* workspace, size_t workspace_bytes,
                                  void* stream);
FASTWAN_API int fastwan_sage_attention_enqueue(const fastwan_region_desc* desc, void* const* outputs,
                                   void* workspace, size_t workspace_bytes, void* stream);

/* The small kernels of the denoise loop and the decoder; they run where the prologue does, and
 * nothing but elements is read. */
#define FASTWAN_MAX_TERMS 8
#define FASTWAN_MAX_SUMS 2

typedef enum { FASTWAN_FLOAT32 = 0, FASTWAN_BFLOAT16 = 1, FASTWAN_FLOAT16 = 2 } fastwan_dtype;

/* outputs[s][i] = sum over k of weights[s][k] * terms[indices[s][k]][i], each product and sum
 * rounded in fp64, in order, the result rounded to fp32. */
typedef struct {
  uint32_t struct_bytes; /* sizeof(fastwan_combine_desc) */
  uint32_t num_terms;    /* 1 .. FASTWAN_MAX_TERMS */
  uint32_t num_sums;     /* 1 .. FASTWAN_MAX_SUMS */
  uint32_t dtypes[FASTWAN_MAX_TERMS];
  uint32_t counts[FASTWAN_MAX_SUMS];
  uint32_t indices[FASTWAN_MAX_SUMS][FASTWAN_MAX_TERMS];
  double weights[FASTWAN_MAX_SUMS][FASTWAN_MAX_TERMS];
  int64_t elements; /* of every term and output */
} fastwan_combine_desc;

/* target[r * columns + c] = source[r * pitch + c], rounded to nearest even. */
typedef struct {
  uint32_t struct_bytes; /* sizeof(fastwan_cast_desc) */
  uint32_t source_dtype;
  uint32_t target_dtype;
  uint32_t reserved;
  int64_t rows;
  int64_t columns;
  int64_t pitch; /* elements from row to row of the source */
} fastwan_cast_desc;

FASTWAN_API int fastwan_combine_enqueue(const fastwan_combine_desc* desc, const void* const* terms,
                                        void* const* outputs, void* stream);
FASTWAN_API int fastwan_cast_enqueue(const fastwan_cast_desc* desc, const void* source,
                                     void* target, void* stream);

#ifdef __cplusplus
}
#endif

#endif
