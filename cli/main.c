/* main.c - the program: finds the command in the table, runs it, prints its error, exits */
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/processes.h"

static const struct command *const commands[] = {
#define X(name) &command_##name,
    COMMANDS(X)
#undef X
};

static const size_t command_count = sizeof commands / sizeof *commands;

static void print_usage(FILE *out) {
    fprintf(out, "Steelyard weighs the load on every expert of a Mixture-of-Experts model.\n\n"
                 "usage: steelyard COMMAND [ARGUMENT...] [--OPTION [VALUE]...]\n\n");
    for (size_t i = 0; i < command_count; i++)
        fprintf(out, "  %-10s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\nsteelyard COMMAND --help explains one command, with an example that runs.\n");
}

static const struct command *find(const char *name) {
    for (size_t i = 0; i < command_count; i++)
        if (strcmp(commands[i]->name, name) == 0) return commands[i];
    return NULL;
}

static void print_error(const struct command *command, const struct err *err) {
    fprintf(stderr, "steelyard %s: %s\n", command->name, err->text);
    if (err->code == ERR_USAGE)
        fprintf(stderr, "usage: steelyard %s %s   (--help for more)\n", command->name,
                command->arguments);
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a closed reader is a write error like any other */
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(argc < 2 ? stderr : stdout);
        return argc < 2 ? 2 : 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("steelyard " STEELYARD_VERSION "\n");
        return 0;
    }
    const struct command *command = find(argv[1]);
    if (!command) {
        fprintf(stderr, "steelyard: found command \"%s\", expected one of:", argv[1]);
        for (size_t i = 0; i < command_count; i++) fprintf(stderr, " %s", commands[i]->name);
        fprintf(stderr, "\n");
        return 2;
    }
    struct err err = {0};
    bool ok = processes_join(command, &err) && command->run(command, argc - 1, argv + 1, &err);
    if (ok && fflush(stdout) != 0) ok = err_errno(&err, "standard output", "cannot write");
    if (!ok && processes_speaker()) print_error(command, &err);
    processes_leave();
    return ok ? 0 : err_status(err.code);
}
