/* What every mutated file goes through: it is opened and used as a user would, and must end in an error or in numbers. */
#ifndef LMI_FUZZ_CHECK_FILE_H
#define LMI_FUZZ_CHECK_FILE_H

#include <stddef.h>
#include <stdint.h>

typedef enum file_verdict {
    FILE_REFUSED,       /* by the GGUF reader */
    FILE_MODEL_REFUSED, /* by the model: hyper-parameters, shapes, tokenizer */
    FILE_RAN            /* it read eight tokens */
} file_verdict;

/* Ends the process, with a message, if a promise is broken; sanitizers see to the rest. */
file_verdict check_file(const uint8_t *bytes, size_t size);

#endif
