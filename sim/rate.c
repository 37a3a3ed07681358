/* rate.c - the rate of a bias rule over a replay */
#include "sim/rate.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/str.h"

enum { ITEM_BYTES = 64 };

/* "80%" or "0": a share in percent of the tokens. */
static bool read_share(const char *text, double *share, struct err *err) {
    char number[ITEM_BYTES];
    size_t length = strlen(text);
    bool percent = length > 0 && text[length - 1] == '%';
    snprintf(number, sizeof number, "%.*s", (int)(percent ? length - 1 : length), text);
    double value;
    if (!parse_real(number, "--bias-rate: share", 0, 100, &value, err)) return false;
    if (!percent && value != 0)
        return err_set(err, ERR_USAGE,
                       "--bias-rate: found share %.40s, expected a percentage (80%%)", text);
    *share = value / 100;
    return true;
}

static bool add_piece(struct rate_schedule *schedule, double rate, double from, struct err *err) {
    if (schedule->pieces == RATE_PIECES)
        return err_set(err, ERR_USAGE, "--bias-rate: found more than %d pieces", RATE_PIECES);
    if (schedule->pieces > 0 && from <= schedule->from[schedule->pieces - 1])
        return err_set(err, ERR_USAGE, "--bias-rate: found a piece at %g%% after one at %g%%",
                       100 * from, 100 * schedule->from[schedule->pieces - 1]);
    schedule->rate[schedule->pieces] = rate;
    schedule->from[schedule->pieces++] = from;
    return true;
}

static bool read_item(const char *item, struct rate_schedule *schedule, int *count,
                      struct err *err) {
    char text[ITEM_BYTES];
    double rate, from = 0;
    if (strlen(item) >= sizeof text)
        return err_set(err, ERR_USAGE, "--bias-rate: found \"%.40s...\", expected a rate", item);
    memcpy(text, item, strlen(item) + 1);
    if (strcmp(text, "auto") == 0) {
        schedule[(*count)++] =
            (struct rate_schedule){.pieces = 1, .rate = {NAN}, .automatic = true};
        return true;
    }
    char *at = strchr(text, '@');
    if (at) *at++ = '\0';
    if (!parse_real(text, "--bias-rate", 0, 1e6, &rate, err)) return false;
    if (at && !read_share(at, &from, err)) return false;
    if (from > 0 && *count == 0)
        return err_set(err, ERR_USAGE, "--bias-rate: found %.40s, expected a piece at 0 before it",
                       item);
    if (from == 0) schedule[(*count)++] = (struct rate_schedule){0};
    if (from > 0 && schedule[*count - 1].automatic)
        return err_set(err, ERR_USAGE, "--bias-rate: found %.40s after auto, expected a rate",
                       item);
    return add_piece(&schedule[*count - 1], rate, from, err);
}

bool rate_parse(const char *const *item, int items, struct rate_schedule *schedule, int *count,
                struct err *err) {
    *count = 0;
    for (int i = 0; i < items; i++)
        if (!read_item(item[i], schedule, count, err)) return false;
    return true;
}

double rate_at(const struct rate_schedule *schedule, double share) {
    double rate = 0;
    for (int i = 0; i < schedule->pieces; i++)
        if (share >= schedule->from[i]) rate = schedule->rate[i];
    return rate;
}

bool rate_equal(const struct rate_schedule *a, const struct rate_schedule *b) {
    bool equal = a->pieces == b->pieces && a->automatic == b->automatic;
    for (int i = 0; equal && i < a->pieces; i++)
        equal = a->from[i] == b->from[i] && (a->rate[i] == b->rate[i] || a->automatic);
    return equal;
}

bool rate_is_zero(const struct rate_schedule *schedule) {
    for (int i = 0; i < schedule->pieces; i++)
        if (schedule->rate[i] != 0) return false;
    return true;
}

void rate_print(const struct rate_schedule *schedule, char text[static RATE_TEXT_BYTES]) {
    int n = 0;
    text[0] = '\0';
    if (schedule->automatic) {
        snprintf(text, RATE_TEXT_BYTES, "auto");
        return;
    }
    if (schedule->pieces == 1) {
        snprintf(text, RATE_TEXT_BYTES, "%g", schedule->rate[0]);
        return;
    }
    for (int i = 0; i < schedule->pieces && n < RATE_TEXT_BYTES; i++)
        n += snprintf(text + n, (size_t)(RATE_TEXT_BYTES - n), "%s%g@%g%s", i ? "," : "",
                      schedule->rate[i], 100 * schedule->from[i], i ? "%" : "");
}
