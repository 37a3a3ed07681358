/* options.c - one table of options per command: parsing and --help come from it */
#include "cli/options.h"

#include <float.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/str.h"
#include "base/table.h"

static bool list_add(struct text_list *list, const char *text, struct err *err) {
    const char **items = realloc(list->items, ((size_t)list->count + 1) * sizeof *items);
    if (!items) return err_memory(err, "options");
    list->items = items;
    items[list->count++] = text;
    return true;
}

void text_list_free(struct text_list *list) {
    free(list->items);
    *list = (struct text_list){0};
}

bool text_list_split(struct text_list *list, char **storage, struct err *err) {
    struct text_list parts = {0};
    struct str joined = {0};
    for (int i = 0; i < list->count; i++) str_printf(&joined, "%s%s", i ? "," : "", list->items[i]);
    *storage = joined.data;
    if (joined.failed) return err_memory(err, "options");
    bool ok = true;
    for (char *at = list->count ? joined.data : NULL; ok && at;) {
        char *comma = strchr(at, ',');
        if (comma) *comma = '\0';
        ok = list_add(&parts, at, err);
        at = comma ? comma + 1 : NULL;
    }
    text_list_free(list);
    *list = parts;
    return ok;
}

static void print_help(const struct command *command, const struct option *options) {
    printf("steelyard %s: %s\n\nusage: steelyard %s %s [--OPTION [VALUE]...]\n\n", command->name,
           command->summary, command->name, command->arguments);
    for (const struct option *o = options; o->name; o++) {
        struct str left = {0};
        str_printf(&left, "--%s%s%s%s", o->name, o->argument ? " " : "",
                   o->argument ? o->argument : "", o->kind == OPTION_TEXTS ? "..." : "");
        printf("  %-26s %s\n", str_text(&left), o->help);
        str_free(&left);
    }
    printf("  %-26s %s\n\nexample:\n  %s\n", "--help", "this text", command->example);
}

static const struct option *find(const struct option *options, const char *name, size_t len) {
    for (const struct option *o = options; o->name; o++)
        if (strlen(o->name) == len && memcmp(o->name, name, len) == 0) return o;
    return NULL;
}

static bool unknown(const struct option *options, const char *arg, struct err *err) {
    struct str known = {0};
    for (const struct option *o = options; o->name; o++) str_printf(&known, " --%s", o->name);
    err_set(err, ERR_USAGE, "found option \"%.40s\", expected one of:%s", arg, str_text(&known));
    str_free(&known);
    return false;
}

static bool store(const struct option *o, const char *value, struct err *err) {
    char name[64];
    snprintf(name, sizeof name, "--%s", o->name);
    switch (o->kind) {
    case OPTION_FLAG:
        *(bool *)o->value = true;
        return true;
    case OPTION_TEXT:
        *(const char **)o->value = value;
        return true;
    case OPTION_TEXTS:
        return list_add(o->value, value, err);
    case OPTION_BYTES:
        return parse_bytes(value, name, o->value, err);
    case OPTION_REAL:
        return parse_real(value, name, o->min, o->max, o->value, err);
    case OPTION_INT:
        return parse_int(value, name, (int64_t)o->min,
                         o->max >= 0x1p63 ? INT64_MAX : (int64_t)o->max, o->value, err);
    }
    return false;
}

/* Handles argv[*at], which begins with "--"; may consume argv[*at + 1]. */
static bool one_option(const struct option *options, int argc, char **argv, int *at,
                       struct err *err) {
    const char *name = argv[*at] + 2;
    const char *equals = strchr(name, '=');
    const struct option *o = find(options, name, equals ? (size_t)(equals - name) : strlen(name));
    if (!o) return unknown(options, argv[*at], err);
    if (o->kind == OPTION_FLAG)
        return equals ? err_set(err, ERR_USAGE, "--%s: found a value, expected none", o->name)
                      : store(o, NULL, err);
    if (equals) return store(o, equals + 1, err);
    if (*at + 1 >= argc)
        return err_set(err, ERR_USAGE, "--%s: found nothing after it, expected %s", o->name,
                       o->argument);
    return store(o, argv[++*at], err);
}

bool options_parse(const struct command *command, const struct option *options, int argc,
                   char **argv, struct text_list *rest, bool *done, struct err *err) {
    bool ended = false;
    *done = false;
    *rest = (struct text_list){0};
    for (int i = 1; i < argc; i++) {
        if (!ended && (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0)) {
            print_help(command, options);
            *done = true;
            return true;
        }
        if (!ended && strcmp(argv[i], "--") == 0)
            ended = true;
        else if (ended || strncmp(argv[i], "--", 2) != 0) {
            if (!list_add(rest, argv[i], err)) return false;
        } else if (!one_option(options, argc, argv, &i, err)) {
            return false;
        }
    }
    return true;
}

bool output_is_no_input(const char *out, const char *const *inputs, int count, struct err *err) {
    for (int i = 0; out && i < count; i++)
        if (file_same(out, inputs[i]))
            return err_set(err, ERR_USAGE,
                           "%s: found the input %s as output, expected another file", out,
                           inputs[i]);
    return true;
}

bool output_table(const struct table *table, struct output_choice choice, struct err *err) {
    if (choice.json && choice.csv)
        return err_set(err, ERR_USAGE, "found both --json and --csv, expected one");
    enum table_format format = choice.json  ? TABLE_AS_JSON
                               : choice.csv ? TABLE_AS_CSV
                                            : TABLE_AS_TEXT;
    return table_print(table, format, stdout, err);
}
