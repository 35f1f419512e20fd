/* What of the options becomes of the middle of a text. */
#ifndef LMI_ENGINE_RECALL_H
#define LMI_ENGINE_RECALL_H

#include "lambda/middle.h"
#include "model/spec.h"

/* Resolves options->recall; the others are resolved already. */
lmi_status recall_resolve(const model_spec *spec, lmi_session_options *options, lmi_error *error);
bool recall_layer(const model_spec *spec, const lmi_session_options *options, int64_t layer); /* whether it recalls */
lmi_status recall_shape(const model_spec *spec, const lmi_session_options *options, middle_shape *shape, lmi_error *error);
int64_t recall_seen(const middle_shape *shape); /* most tokens that a query recalls, in whole blocks */

#endif
