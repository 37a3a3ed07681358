/* model_id.h - identity of a checkpoint's files
 *
 * Layer 5. */
#ifndef CLI_MODEL_ID_H
#define CLI_MODEL_ID_H

#include "base/err.h"

/* sha256 over the names, sizes and bytes of config.json and of the weight files (*.safetensors,
 * *.gguf) in a folder, or of the one file (of a split GGUF: of all parts). Of files above 8 MiB the
 * header's megabyte and 256 samples of 4 KiB, evenly spread, stand for all bytes, so that a model
 * of hundreds of GB is identified in a moment. */
bool model_id(const char *path, char hex[static 65], struct err *err);

#endif
