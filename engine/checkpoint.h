/* checkpoint.h - a folder of safetensors files, single or sharded with an index, as one tensor set
 *
 * Layer 3 (engine). The container is read by base/safetensors; here the shards of an index come
 * together: missing shards, duplicate tensors and tensors that are not where the index places them
 * are refused. */
#ifndef ENGINE_CHECKPOINT_H
#define ENGINE_CHECKPOINT_H

#include "engine/tensors.h"

/* Opens folder/model.safetensors.index.json, else folder/model.safetensors. The set is sealed;
 * tensors_close releases it (also after a failure). */
bool checkpoint_open(const char *folder, struct tensors *set, struct err *err);

#endif
