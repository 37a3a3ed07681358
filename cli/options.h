/* options.h - one table of options per command: parsing, --help and range errors come from it
 *
 * Layer 5. Long options only, `--name VALUE` or `--name=VALUE`; `--` ends them; what is no option
 * is a positional argument. An option may be repeated where its kind is a list. */
#ifndef CLI_OPTIONS_H
#define CLI_OPTIONS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/err.h"

/* Texts collected from a repeatable option or from the positional arguments. Borrows argv. */
struct text_list {
    const char **items; /* owned */
    int count;
};

enum option_kind {
    OPTION_FLAG,  /* bool * */
    OPTION_TEXT,  /* const char ** */
    OPTION_INT,   /* int64_t *, within [min,max] */
    OPTION_REAL,  /* double *, within [min,max] */
    OPTION_BYTES, /* int64_t *, 4G */
    OPTION_TEXTS  /* struct text_list *, repeatable; comma lists are split by the command */
};

struct option {
    const char *name; /* without the dashes; NULL ends the table */
    enum option_kind kind;
    void *value;
    const char *argument; /* "N", "FILE"; NULL for flags */
    const char *help;
    double min, max;
};

/* One command of the program. */
struct command {
    const char *name;
    const char *arguments; /* "MODEL TEXT..." */
    const char *summary;   /* one line for the list */
    const char *example;   /* a line that runs, shown by --help */
    /* Returns true when done; err's code gives the exit status. */
    bool (*run)(const struct command *command, int argc, char **argv, struct err *err);
    bool divides; /* runs as several processes too (mpirun) */
};

/* Parses argv[1..argc). On --help prints the command's help to stdout and sets *done. Positional
 * arguments go to `rest` (owned list). Fails with ERR_USAGE. */
bool options_parse(const struct command *command, const struct option *options, int argc,
                   char **argv, struct text_list *rest, bool *done, struct err *err);
void text_list_free(struct text_list *list);
/* Splits every item at commas, in place of the list: "a,b" "c" -> a b c. Texts become owned by
 * *storage (free). */
bool text_list_split(struct text_list *list, char **storage, struct err *err);

/* --json / --csv / text, as every command that prints a table takes them. */
struct output_choice {
    bool json, csv;
};
#define OPTION_OUTPUT(choice)                                                                      \
    {"json", OPTION_FLAG, &(choice).json, NULL, "print the result as JSON", 0, 0}, {               \
        "csv", OPTION_FLAG, &(choice).csv, NULL, "print the result as CSV", 0, 0                   \
    }

/* Refuses an output that is one of the inputs, which --force would destroy. */
bool output_is_no_input(const char *out, const char *const *inputs, int count, struct err *err);

struct table;
/* Prints to stdout in the chosen form (text when neither is set). */
bool output_table(const struct table *table, struct output_choice choice, struct err *err);

#endif
