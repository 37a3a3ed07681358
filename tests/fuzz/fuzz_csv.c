/* fuzz_csv.c - the bytes are a table: every field can be read, or one error line says why not */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/csv.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct err err = {0};
    size_t read = 0;
    struct csv *csv = csv_parse("fuzz", (const char *)data, size, &err);
    if (!csv) {
        if (err.code == ERR_NONE || strchr(err.text, '\n')) abort();
        return 0;
    }
    for (int64_t row = -1; row < csv_rows(csv); row++)
        for (int c = 0; c < csv_columns(csv); c++) read += strlen(csv_text(csv, row, c));
    if (read > size) abort();
    csv_free(csv);
    return 0;
}
