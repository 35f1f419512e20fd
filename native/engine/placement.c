#include "engine/placement.h"

#include <stdio.h>

#include "engine/model.h"

/* Left free on the GPU: what the driver takes as kernels are loaded and graphs made, beside what we ask for. */
#define RESERVE ((uint64_t)256 << 20)

static void place(const lmi_model *model, int64_t n_device_layers, placement *p) {
    const backend *gpu = model->devices.library.table;
    const int64_t n_layers = model->spec.n_layers, cut = n_layers - n_device_layers;
    *p = (placement){.device_layers = n_device_layers, .device = &backend_cpu, .model = model->shared};
    if (n_device_layers == n_layers && gpu != NULL) {
        p->device = gpu;
    } else if (n_device_layers > 0) {
        p->halves = (split_model){.device = {&backend_cpu, gpu},
                                  .part = {split_part(&model->shared, 0, cut), split_part(&model->shared, cut, n_layers)}};
        p->both = split_backend(&p->halves);
        p->device = &p->both;
        p->model.weights = &p->halves;
    }
}

static uint64_t host_weights(const lmi_model *model, const placement *p) {
    if (p->device_layers == 0 || !model->view.mapped) {
        return model->weights.n_bytes;
    }
    return p->device == &p->both ? backend_cpu.weight_bytes(&p->halves.part[0]) : 0;
}

static uint64_t device_weights(const lmi_model *model, const placement *p) {
    if (p->device_layers == 0) {
        return 0;
    }
    return model->devices.library.table->weight_bytes(p->device == &p->both ? &p->halves.part[1] : &p->model);
}

static lmi_status plan_for(const lmi_model *model, const context_shape *shape, const placement *p, placement_plan *plan,
                           lmi_error *error) {
    plan->device_layers = p->device_layers;
    if (shape->importance && p->device->importance == NULL) {
        fail(error, LMI_DEVICE, "only the CPU keeps sums of what weights are multiplied with");
        remedy(error, "Use --device cpu.");
        return LMI_DEVICE;
    }
    if (shape->middle.kind != LMI_RECALL_NONE && p->device->recall_bytes == NULL) {
        fail(error, LMI_DEVICE,
             "a model of which the CPU runs one part and a GPU the other does not recall tokens that left the window");
        remedy(error, "Use --device cpu, or put all layers on the GPU.");
        return LMI_DEVICE;
    }
    plan->host_weights = host_weights(model, p);
    plan->device_weights = device_weights(model, p);
    return p->device->plan(&p->model, shape, &plan->bytes, error);
}

static uint64_t needed_by(const placement_plan *plan, bool settled) {
    return plan->bytes.device_context + plan->bytes.device_work + (settled ? 0 : plan->device_weights);
}

/* What is free there now, less the reserve. */
static lmi_status look(const lmi_model *model, placement_plan *plan, lmi_error *error) {
    lmi_device_info now;
    lmi_status status = model->devices.library.table->probe(model->devices.upload.device_index, &now, error);
    if (status == LMI_OK) {
        plan->device_available = now.free_bytes > RESERVE ? now.free_bytes - RESERVE : 0;
    }
    return status;
}

static lmi_status pass_on(const lmi_error *refusal, lmi_error *error) {
    if (error != NULL) {
        *error = *refusal;
    }
    return refusal->status;
}

static lmi_status use_cpu(const lmi_model *model, const context_shape *shape, const char *note, placement_plan *plan,
                          lmi_error *error) {
    placement cpu;
    place(model, 0, &cpu);
    *plan = (placement_plan){0};
    snprintf(plan->note, sizeof plan->note, "%.255s", note);
    return plan_for(model, shape, &cpu, plan, error);
}

/* The most layers that fit, from all of them downwards. */
static lmi_status plan_what_fits(const lmi_model *model, const context_shape *shape, placement_plan *plan, lmi_error *error) {
    const bool must = model->devices.wanted == LMI_DEVICE_CUDA;
    const int32_t index = model->devices.upload.device_index;
    uint64_t wished = 0;
    char text[256], needs[32], has[32];
    for (int64_t n = model->spec.n_layers; n > 0; n--) {
        placement p;
        lmi_error refusal = {0};
        place(model, n, &p);
        lmi_status status = plan_for(model, shape, &p, plan, &refusal);
        if (status != LMI_OK) {
            return devices_refused(status) && !must ? use_cpu(model, shape, refusal.message, plan, error)
                                                    : pass_on(&refusal, error);
        }
        plan->device_needed = needed_by(plan, false);
        wished = n == model->spec.n_layers ? plan->device_needed : wished;
        if (plan->device_needed <= plan->device_available) {
            if (n < model->spec.n_layers) {
                snprintf(plan->note, sizeof plan->note, "needs %s on GPU %d, %s free: placing %lld of %lld layers on the GPU",
                         human_bytes(wished, needs), index, human_bytes(plan->device_available, has), (long long)n,
                         (long long)model->spec.n_layers);
            }
            return LMI_OK;
        }
    }
    snprintf(text, sizeof text, "needs %s on GPU %d, %s free: not one layer fits", human_bytes(wished, needs), index,
             human_bytes(plan->device_available, has));
    if (must) {
        fail(error, LMI_DEVICE, "%s", text);
        remedy(error, "Use --device cpu, a smaller --window, or close what else uses the GPU.");
        return LMI_DEVICE;
    }
    return use_cpu(model, shape, text, plan, error);
}

lmi_status placement_plan_make(const lmi_model *model, const context_shape *shape, placement_plan *plan, lmi_error *error) {
    const model_devices *d = &model->devices;
    *plan = (placement_plan){0};
    if (d->library.table == NULL) {
        return use_cpu(model, shape, d->none, plan, error);
    }
    const bool settled = atomic_load(&model->devices.settled) != 0;
    if (settled && d->place.device_layers == 0) {
        return use_cpu(model, shape, d->place.note, plan, error);
    }
    lmi_error refusal = {0};
    lmi_status status = look(model, plan, &refusal);
    if (status != LMI_OK && !settled && devices_refused(status) && d->wanted == LMI_DEVICE_AUTO) { /* it was there before */
        return use_cpu(model, shape, refusal.message, plan, error);
    }
    if (status != LMI_OK) {
        return pass_on(&refusal, error);
    }
    if (!settled && d->wanted_layers < 0) {
        return plan_what_fits(model, shape, plan, error);
    }
    placement asked;
    if (!settled) {
        place(model, d->wanted_layers, &asked);
    }
    status = plan_for(model, shape, settled ? &d->place : &asked, plan, error);
    plan->device_needed = needed_by(plan, settled);
    return status;
}

static lmi_status check_fits(const lmi_model *model, const placement_plan *plan, lmi_error *error) {
    if (plan->device_needed <= plan->device_available) {
        return LMI_OK;
    }
    char needs[32], has[32];
    fail(error, LMI_OUT_OF_MEMORY, "needs %s on GPU %d for %lld of %lld layers, %s free",
         human_bytes(plan->device_needed, needs), model->devices.upload.device_index, (long long)plan->device_layers,
         (long long)model->spec.n_layers, human_bytes(plan->device_available, has));
    remedy(error, "Use fewer --gpu-layers, a smaller --window, or close what else uses the GPU.");
    return LMI_OUT_OF_MEMORY;
}

lmi_status placement_settle(lmi_model *model, const placement_plan *plan, lmi_error *error) {
    model_devices *d = &model->devices;
    lmi_status status = check_fits(model, plan, error);
    if (status != LMI_OK || atomic_load(&d->settled) != 0) {
        return status;
    }
    place(model, plan->device_layers, &d->place);
    snprintf(d->place.note, sizeof d->place.note, "%s", plan->note);
    if (plan->device_layers > 0) {
        status = d->place.device->upload(&d->place.model, &d->upload, error);
    }
    if (status == LMI_OK) {
        atomic_store(&d->settled, 1);
    }
    return status;
}

/* ---- with the model ------------------------------------------------------------------------------------------------ */

static lmi_status find_device(model_devices *d, const char *library, lmi_error *error) {
    bool has_driver;
    lmi_status status = devices_open(library, &d->library, &has_driver, error);
    if (status == LMI_OK) {
        status = d->library.table->probe(d->upload.device_index, &d->info, error);
    }
    if (status != LMI_OK) {
        devices_close(&d->library);
        d->info = (lmi_device_info){0};
        if (has_driver && error != NULL) {
            snprintf(d->none, sizeof d->none, "%.255s", error->message);
        }
    }
    return status;
}

/* What the GPU has, the CPU does not read: without this, the process would seem to hold the whole file. */
static void drop_copied(void *owner, const void *bytes, uint64_t n) {
    const lmi_model *model = owner;
    file_drop(&model->view, bytes, n);
    for (int64_t i = 0; i < model->shards.n; i++) {
        file_drop(&model->shards.views[i], bytes, n);
    }
}

lmi_status placement_open(lmi_model *model, const lmi_model_options *options, lmi_error *error) {
    model_devices *d = &model->devices;
    const int64_t n_layers = model->spec.n_layers;
    d->wanted = options->device;
    d->wanted_layers = options->gpu_layers < n_layers ? options->gpu_layers : n_layers;
    d->upload = (backend_upload){options->device_index, options->progress, options->progress_context, drop_copied, model};
    if (options->device != LMI_DEVICE_CPU && options->gpu_layers != 0) {
        lmi_error refusal = {0};
        lmi_status status = find_device(d, options->device_library, &refusal);
        if (status != LMI_OK && (options->device == LMI_DEVICE_CUDA || !devices_refused(status))) {
            return pass_on(&refusal, error);
        }
    }
    if (d->library.table == NULL) {
        place(model, 0, &d->place);
        atomic_store(&d->settled, 1);
    }
    return LMI_OK;
}

void placement_close(lmi_model *model) {
    model_devices *d = &model->devices;
    if (atomic_load(&d->settled) != 0 && d->place.device_layers > 0) {
        d->place.device->release(&d->place.model);
    }
    devices_close(&d->library);
}
