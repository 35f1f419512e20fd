/* Shared libraries that are opened while the program runs. */
#ifndef LMI_BASE_LIBRARY_H
#define LMI_BASE_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>

/* By path, or by name where the system's loader looks; NULL if it cannot be opened, with the loader's reason in `why` (which may be NULL).
 * A library stays in memory after it was closed: drivers leave threads and exit handlers behind. */
void *library_open(const char *name, char *why, size_t size);
void library_close(void *library); /* NULL is allowed */

/* Copies the address of a function or table to *address, a pointer of the right type; false if there is none of that name. */
bool library_find(void *library, const char *symbol, void *address);

/* The path of a file in the folder of the library that this code is in. False if it is not known or longer than `size`. */
bool library_beside(const char *file, char *path, size_t size);

#endif
