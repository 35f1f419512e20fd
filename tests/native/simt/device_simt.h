/* What tests can change about the emulated device. Plain C. */
#ifndef LMI_TESTS_DEVICE_SIMT_H
#define LMI_TESTS_DEVICE_SIMT_H

#include "cuda/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct simt_device {
    int32_t major, minor;  /* compute capability: 8.0 */
    uint64_t total_bytes;  /* 24 GiB */
    uint64_t free_bytes;   /* before anything is allocated; pinned memory does not count */
    uint64_t shared_bytes; /* of a block: 99 KiB */
    bool lost;             /* every call fails from now on, as after a fault of the device */
    bool lazy;             /* what is queued runs as late as it may: when somebody waits for it; else at once */
    int64_t n_graphs;      /* launched so far */
    int64_t n_copies;      /* between host and device, so far; kernels' own reads and writes of pinned memory are none */
    int64_t n_waits;       /* for a stream, so far */
} simt_device;

/* The one device: fields may be written at any time; streams keep the information of when they were opened. */
simt_device *simt_device_now(void);
uint64_t simt_allocated(void); /* bytes of device memory that are not freed */

#ifdef __cplusplus
}
#endif
#endif
