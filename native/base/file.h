/* Files: mapped or read whole, and written whole or not at all. */
#ifndef LMI_BASE_FILE_H
#define LMI_BASE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct file_view {
    const uint8_t *bytes;
    uint64_t size;
    int fd; /* kept open so that file_check can see it shrink; -1 if read into memory */
    bool mapped;
} file_view;

/* Regular files only; says so for folders, FIFOs and devices, and lists what could not be done otherwise. Empty: LMI_BAD_FORMAT. */
lmi_status file_open(const char *path, bool map, file_view *view, lmi_error *error);
void file_close(file_view *view);
/* LMI_IO if the mapped file has become shorter than it was: reading on would be a bus error. Cheap: one fstat. */
lmi_status file_check(const file_view *view, lmi_error *error);
/* Asks the system to bring the pages in (madvise WILLNEED); never fails. */
void file_prefetch(const file_view *view, uint64_t offset, uint64_t size);
/* The pages of these bytes, where they are of this mapped file, leave the process's memory until they are read again; never fails. */
void file_drop(const file_view *view, const void *bytes, uint64_t size);

/* Writing: data goes to NAME.partial-<pid>-<random> in the same folder; commit makes it durable and renames it. */
typedef struct file_writer {
    int fd;
    uint32_t mode;   /* permissions of the finished file: those of the one it replaces, else what the umask leaves */
    uint64_t needed; /* as told to file_create, for messages */
    uint64_t written;
    char path[4096];         /* links resolved */
    char partial[4096 + 64]; /* empty: there is none */
} file_writer;
/* `size_needed` bytes must be free (0: not known). Only regular files are replaced. A failed write removes the partial file. */
lmi_status file_create(const char *path, uint64_t size_needed, file_writer *writer, lmi_error *error);
lmi_status file_write(file_writer *writer, const void *bytes, size_t size, lmi_error *error);
lmi_status file_commit(file_writer *writer, lmi_error *error);
void file_abandon(file_writer *writer); /* after a failure: removes the partial file; does nothing after a commit */

#endif
