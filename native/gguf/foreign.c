#include "gguf/foreign.h"

#include <stdbool.h>
#include <string.h>

#include "base/text.h"
#include "gguf/gguf.h"

typedef struct kind {
    const char *magic;
    uint8_t size;
    const char *what;
    const char *what_to_do;
} kind;

#define UNPACK "Unpack it first."
#define CONVERT "Convert the model's folder: lmi convert DIR -o model.gguf"
#define GET_AGAIN "Download it again, from a link to the file itself."
#define MAGIC(bytes) bytes, sizeof(bytes) - 1

static const kind kinds[] = {
    {MAGIC("version https://git-lfs"), "it is a Git LFS pointer, not the file itself", "Fetch the file: git lfs pull"},
    {MAGIC("lmgg"), "looks like a GGML file from before GGUF",
     "Convert the original model again: lmi convert DIR -o model.gguf"},
    {MAGIC("fmgg"), "looks like a GGML file from before GGUF",
     "Convert the original model again: lmi convert DIR -o model.gguf"},
    {MAGIC("tjgg"), "looks like a GGML file from before GGUF",
     "Convert the original model again: lmi convert DIR -o model.gguf"},
    {MAGIC("algg"), "looks like a GGML adapter from before GGUF", "Adapters of this kind are not supported."},
    {MAGIC("PK\003\004"), "looks like a zip archive, perhaps a PyTorch checkpoint", CONVERT},
    {MAGIC("\200\002"), "looks like a Python pickle, perhaps a PyTorch checkpoint", CONVERT},
    {MAGIC("\200\003"), "looks like a Python pickle, perhaps a PyTorch checkpoint", CONVERT},
    {MAGIC("\200\004"), "looks like a Python pickle, perhaps a PyTorch checkpoint", CONVERT},
    {MAGIC("\200\005"), "looks like a Python pickle, perhaps a PyTorch checkpoint", CONVERT},
    {MAGIC("\211HDF"), "looks like an HDF5 file", CONVERT},
    {MAGIC("\223NUMPY"), "looks like a NumPy array", CONVERT},
    {MAGIC("\177ELF"), "looks like a program or library (ELF)", "Give the model file, not a program."},
    {MAGIC("MZ"), "looks like a Windows program", "Give the model file, not a program."},
    {MAGIC("%PDF"), "looks like a PDF document", "Give the model file."},
    {MAGIC("\037\213"), "looks like a gzip archive", UNPACK},
    {MAGIC("\375"
           "7zXZ"),
     "looks like an xz archive", UNPACK},
    {MAGIC("\050\265\057\375"), "looks like a Zstandard archive", UNPACK},
    {MAGIC("BZh"), "looks like a bzip2 archive", UNPACK},
    {MAGIC("7z\274\257"), "looks like a 7-zip archive", UNPACK},
    {MAGIC("\0\0\0\0"), "it begins with zero bytes, as a download that was never filled in does", "Download it again."},
};

static bool begins_with(const uint8_t *bytes, uint64_t size, const char *magic, size_t magic_size) {
    return size >= magic_size && memcmp(bytes, magic, magic_size) == 0;
}

/* Safetensors: the length of a JSON header, then the header. */
static bool is_safetensors(const uint8_t *bytes, uint64_t size) {
    uint64_t header;
    if (size < 10) {
        return false;
    }
    memcpy(&header, bytes, sizeof header);
    return header <= 100000000 && bytes[8] == '{' && (bytes[9] == '"' || bytes[9] == ' ' || bytes[9] == '}');
}

/* '<' and a name, '!' or '?', possibly after a byte order mark and blanks. */
static bool is_markup(const uint8_t *bytes, uint64_t size) {
    uint64_t i = begins_with(bytes, size, "\357\273\277", 3) ? 3 : 0;
    while (i < size && i < 256 && (bytes[i] == ' ' || bytes[i] == '\t' || bytes[i] == '\r' || bytes[i] == '\n')) {
        i++;
    }
    if (size - i < 2 || bytes[i] != '<') {
        return false;
    }
    unsigned char next = bytes[i + 1];
    return next == '!' || next == '?' || (next >= 'a' && next <= 'z') || (next >= 'A' && next <= 'Z');
}

static lmi_status not_gguf(const uint8_t *bytes, uint64_t size, lmi_error *error) {
    const char *what = NULL, *what_to_do = "Give the model's .gguf file.";
    char shown[GGUF_SHOWN];
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && what == NULL; i++) {
        if (begins_with(bytes, size, kinds[i].magic, kinds[i].size)) {
            what = kinds[i].what;
            what_to_do = kinds[i].what_to_do;
        }
    }
    if (is_safetensors(bytes, size)) { /* before "zero bytes": a small header's length has those, but not in front */
        what = "looks like a safetensors file";
        what_to_do = CONVERT;
    } else if (is_markup(bytes, size)) {
        what = "looks like a web page saved by a failed download";
        what_to_do = GET_AGAIN;
    } else if (what == NULL && bytes[0] == '{') {
        what = "looks like JSON, perhaps an error message saved by a failed download";
        what_to_do = GET_AGAIN;
    } else if (size > 262 && memcmp(bytes + 257, "ustar", 5) == 0) {
        what = "looks like a tar archive";
        what_to_do = UNPACK;
    }
    gguf_shown((text_view){(const char *)bytes, size < 4 ? (size_t)size : 4}, shown);
    if (what != NULL) {
        fail_at(error, LMI_BAD_FORMAT, 0, "not a GGUF file (starts with \"%s\"): %s", shown, what);
    } else {
        fail_at(error, LMI_BAD_FORMAT, 0, "not a GGUF file (starts with \"%s\")", shown);
    }
    remedy(error, "%s", what_to_do);
    return LMI_BAD_FORMAT;
}

static lmi_status wrong_order(lmi_error *error) {
    fail_at(error, LMI_BAD_FORMAT, 4, "GGUF in big-endian byte order; lmi reads little-endian files");
    remedy(error, "Convert the model again, in little-endian order.");
    return LMI_BAD_FORMAT;
}

lmi_status foreign_check(const uint8_t *bytes, uint64_t size, lmi_error *error) {
    uint32_t version;
    if (size == 0) {
        fail_at(error, LMI_BAD_FORMAT, 0, "not a GGUF file: it is empty");
        remedy(error, "Download it again.");
        return LMI_BAD_FORMAT;
    }
    if (begins_with(bytes, size, "FUGG", 4)) {
        return wrong_order(error);
    }
    if (memcmp(bytes, "GGUF", size < 4 ? (size_t)size : 4) != 0) {
        return not_gguf(bytes, size, error);
    }
    if (size < 4 + sizeof version) {
        char has[32];
        fail_at(error, LMI_BAD_FORMAT, size, "file is incomplete: the header needs bytes up to 24, file has %s",
                group_digits(size, has));
        remedy(error, "Download it again.");
        return LMI_BAD_FORMAT;
    }
    memcpy(&version, bytes + 4, sizeof version);
    if (version == 2 || version == 3) {
        return LMI_OK;
    }
    if (version != 0 && (version & 0xffff) == 0) { /* a small number, read from the wrong end */
        return wrong_order(error);
    }
    fail_at(error, LMI_BAD_FORMAT, 4, "GGUF version %lu; lmi reads 2 and 3", (unsigned long)version);
    remedy(error, version == 0 || version > 1000 ? "The file is damaged: download it again."
                  : version == 1 ? "Convert the model again with a current converter."
                                 : "The file is newer than this version of lmi: update lmi, or convert the model to GGUF 3.");
    return LMI_BAD_FORMAT;
}
