/* The part of the C interface for noise: normal numbers on the host, as torch draws them in bf16 on
 * a CPU. What they are, and where their formulas come from, stands in runtime/model/normal.py, whose
 * bytes these are; numpy takes several times as long. */
#ifndef FASTWAN_NORMALS_H
#define FASTWAN_NORMALS_H

#include "fastwan_plugins.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A generator; each is used by one thread at a time. */
typedef struct {
  uint32_t words[624]; /* of the Mersenne twister */
  uint32_t used;       /* of these words, 0 .. 624 */
  uint32_t has_kept;   /* whether a number of a pair is left from a draw of fewer than 16 */
  double kept;         /* that number */
} fastwan_normals;

/* Starts `normals` from the lower 32 bits of a seed. */
FASTWAN_API fastwan_status fastwan_normals_seed(fastwan_normals* normals, uint32_t seed);

/* Writes `count` fp32 numbers of mean 0 and deviation 1 that are bf16 values. */
FASTWAN_API fastwan_status fastwan_normals_draw(fastwan_normals* normals, float* numbers,
                                                int64_t count);

#ifdef __cplusplus
}
#endif

#endif
