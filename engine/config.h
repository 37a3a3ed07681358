/* config.h - reading config.json: typed keys with range checks, errors kept until asked
 *
 * Layer 3 (engine). A `struct config` remembers its first error; readers then return harmless
 * values, so that a builder reads all it needs and asks config_ok once before it uses sizes. A NULL
 * key gives the default; a key that is absent or null too, unless the default is CONFIG_REQUIRED.
 */
#ifndef ENGINE_CONFIG_H
#define ENGINE_CONFIG_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "base/err.h"
#include "base/json.h"
#include "engine/spec.h"

enum { CONFIG_REQUIRED = INT_MIN, CONFIG_MAX_SIZE = 1 << 24, CONFIG_MAX_LAYERS = 4096 };

struct config {
    const struct json *json; /* the object that is read; borrowed */
    const char *path;        /* of config.json, for messages; borrowed */
    struct arena *arena;     /* for what the spec keeps; borrowed */
    struct err *err;         /* first error; borrowed */
    bool failed;
};

bool config_has(const struct config *config, const char *key); /* present and not null */
int64_t config_int(struct config *config, const char *key, int64_t min, int64_t max,
                   int64_t otherwise);
/* A size: 1 .. CONFIG_MAX_SIZE. */
int config_size(struct config *config, const char *key, int64_t otherwise);
double config_real(struct config *config, const char *key, double otherwise);
bool config_bool(struct config *config, const char *key, bool otherwise);
const char *config_text(struct config *config, const char *key, const char *otherwise);
/* Element of an array key: a list of numbers (or booleans), or of texts. The array must have
 * `count` elements. Absent key: otherwise. */
double config_item(struct config *config, const char *key, int index, int count, double otherwise);
const char *config_item_text(struct config *config, const char *key, int index, int count,
                             const char *otherwise);
/* Is value in the array of whole numbers? false when absent. */
bool config_list_has(struct config *config, const char *key, int64_t value);
/* The text must be one of the |-separated choices; answers its index. */
int config_choice(struct config *config, const char *key, const char *choices, int otherwise);
enum activation config_activation(struct config *config, const char *key);
/* Records the first error: "path: key: found X, expected Y". */
void config_refuse(struct config *config, const char *key, const char *found, const char *expected);

/* Rotation settings in both spellings (rope_parameters; rope_theta + rope_scaling), for a head part
 * of `dims`. part: member of rope_parameters per layer kind ("full_attention"), or NULL.
 * theta_key: "rope_theta" or the family's own. Fills everything but `interleaved`. *mscale (if not
 * NULL) <- m(mscale_all_dim)^2, the factor on MLA's score scale. */
struct rope_request {
    int dims;
    const char *part;
    const char *theta_key; /* NULL: rope_theta */
    double theta;          /* default */
    double partial;        /* default of partial_rotary_factor */
    bool ignore_partial;   /* the family has no such key */
};
void config_rope(struct config *config, const struct rope_request *request, struct rope *rope,
                 float *mscale);

#endif
