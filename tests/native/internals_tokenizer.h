/* Classes and cuts of the tokenizer, for the Python tests. Plain declarations: cffi reads this file. */

/* unicode_class of every code point, [0x110000]. Returns 0, or -1 if there is no memory. */
int32_t internals_char_classes(uint8_t *classes);

/* Where the pieces end that pre-tokenizer `name` cuts text[0, size) into; ends [size]. The text is shown `step` bytes more
 * before each cut (0: all at once). Returns how many pieces there are, -1 if there is no such pre-tokenizer or no memory. */
int64_t internals_pretokenize(const char *name, const uint8_t *text, int64_t size, int64_t step, int64_t *ends);
