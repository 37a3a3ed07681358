/* progress.c - one rewritten line on stderr with rate and time left; Ctrl-C asks the job to stop */
#include "cli/progress.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (interrupted) _exit(130); /* a second Ctrl-C does not wait */
    interrupted = 1;
}

static const char *forced(void) { return getenv("STEELYARD_PROGRESS"); }

static void draw(const struct progress_line *line, const char *what, int64_t done, int64_t total,
                 const char *unit, double seconds) {
    double rate = seconds > 0 ? (double)(done - line->base) / seconds : 0;
    fprintf(stderr, "%s%s: %s  %lld", isatty(2) ? "\r\033[K" : "", line->label, what,
            (long long)done);
    if (total > 0) fprintf(stderr, "/%lld", (long long)total);
    fprintf(stderr, " %s  %.4g %s/s", unit, rate, unit);
    if (total > 0 && rate > 0) {
        long left = (long)((double)(total - done) / rate + 0.5);
        fprintf(stderr, "  %ld:%02ld left", left / 60, left % 60);
    }
    if (!isatty(2)) fprintf(stderr, "\n");
    fflush(stderr);
}

static bool report(void *context, const char *what, int64_t done, int64_t total, const char *unit) {
    struct progress_line *line = context;
    double now = clock_seconds();
    double every = isatty(2) ? 0.2 : 5;
    bool wanted = line->label && (isatty(2) || (forced() && strcmp(forced(), "0") != 0));
    if (wanted && now - line->started >= 2 && now - line->shown >= every) {
        line->shown = now;
        draw(line, what, done, total, unit, now - line->started);
    }
    return !interrupted;
}

void progress_begin(struct progress_line *line, const char *label) {
    *line = (struct progress_line){.label = label, .started = clock_seconds()};
    line->progress = (struct progress){.report = report, .context = line};
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

void progress_end(struct progress_line *line) {
    if (line->shown > 0 && isatty(2)) fprintf(stderr, "\r\033[K");
    signal(SIGINT, SIG_DFL);
    signal(SIGTERM, SIG_DFL);
}

void print_notes(const char *notes) {
    while (*notes) {
        size_t length = strcspn(notes, "\n");
        fprintf(stderr, "note: %.*s\n", (int)length, notes);
        notes += length + (notes[length] == '\n');
    }
}
