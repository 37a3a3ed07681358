/* commands.h - the list of commands; each lives in cmd_<name>.c */
#ifndef CLI_COMMANDS_H
#define CLI_COMMANDS_H

#include "cli/options.h"

#define STEELYARD_VERSION "0.1.0"

/* X(name): one `const struct command command_<name>` per file cmd_<name>.c, in the order of help.
 */
#define COMMANDS(X)                                                                                \
    X(capture)                                                                                     \
    X(import)                                                                                      \
    X(replay)                                                                                      \
    X(compare)                                                                                     \
    X(show)                                                                                        \
    X(sql)                                                                                         \
    X(check)                                                                                       \
    X(upgrade)                                                                                     \
    X(merge)                                                                                       \
    X(export)                                                                                      \
    X(tokenize)                                                                                    \
    X(throughput)                                                                                  \
    X(cluster)                                                                                     \
    X(report)                                                                                      \
    X(plot)                                                                                        \
    X(gates)                                                                                       \
    X(formats)                                                                                     \
    X(figures)

#define X(name) extern const struct command command_##name;
COMMANDS(X)
#undef X

#endif
