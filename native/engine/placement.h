/* Which layers of a model the CPU runs and which a GPU: the GPU has the last ones and the output.
 *
 * The first session that is opened decides, by what then fits, unless the number was given; the weights are copied then, and all
 * later sessions follow. A plan made before that is what a first session with these options would decide. Private to engine/. */
#ifndef LMI_ENGINE_PLACEMENT_H
#define LMI_ENGINE_PLACEMENT_H

#include <stdatomic.h>

#include "backend/split.h"
#include "engine/devices.h"

typedef struct placement {
    int64_t device_layers;
    const backend *device; /* what runs sessions: the CPU's table, the GPU's, or `both` */
    backend_model model;   /* as it takes it */
    split_model halves;    /* where there are two */
    backend both;
    char note[256]; /* of the plan that it was made from */
} placement;

/* Of a model: what was asked for, and what there is. */
typedef struct model_devices {
    device_library library; /* table NULL: the CPU runs everything */
    lmi_device_info info;   /* when the model was opened */
    lmi_device wanted;
    int64_t wanted_layers; /* -1: as many as fit */
    char none[256];        /* why there is no GPU; "" if there is one, the system has no driver, or none was asked for */
    backend_upload upload;
    placement place;
    atomic_int settled; /* 1: `place` stands. It changes once, under the lock of the model's pool */
} model_devices;

/* What a context of some shape takes, where. */
typedef struct placement_plan {
    int64_t device_layers;
    backend_bytes bytes;
    uint64_t host_weights, device_weights;
    uint64_t device_needed, device_available; /* there: weights count as needed until they were copied */
    char note[256];                           /* why the GPU does not run everything; "" if it does or none was asked for */
} placement_plan;

/* Opens the library and looks at the GPU, where the options ask for one. */
lmi_status placement_open(lmi_model *model, const lmi_model_options *options, lmi_error *error);
void placement_close(lmi_model *model);

lmi_status placement_plan_make(const lmi_model *model, const context_shape *shape, placement_plan *plan, lmi_error *error);

/* Before a session is opened: LMI_OUT_OF_MEMORY if the plan does not fit the GPU; copies weights if it is the first. The caller has the
 * lock of the pool if the model is not settled. */
lmi_status placement_settle(lmi_model *model, const placement_plan *plan, lmi_error *error);

#endif
