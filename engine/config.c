/* config.c - reading config.json: typed keys with range checks, errors kept until asked */
#include "engine/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

void config_refuse(struct config *config, const char *key, const char *found,
                   const char *expected) {
    if (config->failed) return;
    config->failed = true;
    err_set(config->err, ERR_FORMAT, "%s: %s: found %.100s, expected %s", config->path, key, found,
            expected);
}

/* Keeps an error that a reader of base/json has set. */
static void keep(struct config *config, struct err *found) {
    if (config->failed) return;
    config->failed = true;
    *config->err = *found;
    err_context(config->err, "%s", config->path);
}

bool config_has(const struct config *config, const char *key) {
    return key && json_present(config->json, key) != NULL;
}

static bool missing(struct config *config, const char *key, bool required) {
    if (config_has(config, key)) return false;
    if (required) config_refuse(config, key ? key : "(key)", "nothing", "a value");
    return true;
}

int64_t config_int(struct config *config, const char *key, int64_t min, int64_t max,
                   int64_t otherwise) {
    int64_t value = min;
    struct err err;
    if (missing(config, key, otherwise == CONFIG_REQUIRED))
        return otherwise == CONFIG_REQUIRED ? min : otherwise;
    if (json_get_int(config->json, key, min, max, min, &value, &err)) return value;
    keep(config, &err);
    return min;
}

int config_size(struct config *config, const char *key, int64_t otherwise) {
    return (int)config_int(config, key, 1, CONFIG_MAX_SIZE, otherwise);
}

double config_real(struct config *config, const char *key, double otherwise) {
    double value = otherwise;
    struct err err;
    if (missing(config, key, false)) return otherwise;
    if (!json_get_real(config->json, key, otherwise, &value, &err)) {
        keep(config, &err);
        return otherwise;
    }
    if (isfinite(value) && fabs(value) < 1e30) return value;
    config_refuse(config, key, "a number out of range", "a finite number");
    return otherwise;
}

bool config_bool(struct config *config, const char *key, bool otherwise) {
    bool value = otherwise;
    struct err err;
    if (missing(config, key, false)) return otherwise;
    if (!json_get_bool(config->json, key, otherwise, &value, &err)) keep(config, &err);
    return value;
}

const char *config_text(struct config *config, const char *key, const char *otherwise) {
    const char *value = otherwise;
    struct err err;
    if (missing(config, key, false)) return otherwise;
    if (!json_get_text(config->json, key, otherwise, &value, &err)) keep(config, &err);
    return value;
}

/* Element `index` of an array of `count`; NULL when the key is absent or the array is refused. */
static const struct json *item(struct config *config, const char *key, int index, int count) {
    const struct json *list = key ? json_present(config->json, key) : NULL;
    char expected[64];
    if (!list) return NULL;
    snprintf(expected, sizeof expected, "an array of %d", count);
    if (json_kind(list) != JSON_ARRAY) {
        config_refuse(config, key, json_kind_name(list), expected);
        return NULL;
    }
    if (json_count(list) != count) {
        char found[64];
        snprintf(found, sizeof found, "an array of %d", json_count(list));
        config_refuse(config, key, found, expected);
        return NULL;
    }
    const struct json *child = json_first(list);
    while (child && index-- > 0) child = json_next(child);
    return child;
}

double config_item(struct config *config, const char *key, int index, int count, double otherwise) {
    const struct json *child = item(config, key, index, count);
    if (!child) return otherwise;
    if (json_kind(child) == JSON_BOOL) return json_is_true(child) ? 1 : 0;
    double value = json_number(child);
    if (isfinite(value) && fabs(value) < 1e15) return value;
    config_refuse(config, key, json_kind_name(child), "numbers in range");
    return otherwise;
}

const char *config_item_text(struct config *config, const char *key, int index, int count,
                             const char *otherwise) {
    const struct json *child = item(config, key, index, count);
    if (!child) return otherwise;
    if (json_text(child)) return json_text(child);
    config_refuse(config, key, json_kind_name(child), "texts");
    return otherwise;
}

bool config_list_has(struct config *config, const char *key, int64_t value) {
    const struct json *list = key ? json_present(config->json, key) : NULL;
    if (!list) return false;
    if (json_kind(list) != JSON_ARRAY) {
        config_refuse(config, key, json_kind_name(list), "an array");
        return false;
    }
    for (const struct json *c = json_first(list); c; c = json_next(c))
        if (json_number(c) == (double)value) return true;
    return false;
}

int config_choice(struct config *config, const char *key, const char *choices, int otherwise) {
    const char *found = config_text(config, key, NULL);
    if (!found) return otherwise;
    size_t len = strlen(found);
    int index = 0;
    for (const char *at = choices; at; index++) {
        const char *end = strchr(at, '|');
        size_t size = end ? (size_t)(end - at) : strlen(at);
        if (size == len && memcmp(at, found, len) == 0) return index;
        at = end ? end + 1 : NULL;
    }
    config_refuse(config, key, found, choices);
    return otherwise;
}

enum activation config_activation(struct config *config, const char *key) {
#define X(e, name) "|" name
    static const char choices[] = "" ACTIVATIONS(X);
#undef X
    return (enum activation)config_choice(config, key, choices + 1, ACT_SILU);
}
