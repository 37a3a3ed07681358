/* import_fractions.c - counts from the shares that experts have of a document's choices */
#include "traces/import_fractions.h"

#include <math.h>
#include <stdlib.h>

enum { MOST_CHOICES = 1000000 };

bool fractions_look(const struct npy *array) {
    if (array->kind != 'f' || array->item_bytes != 4 || array->rank != 3 || array->count < 1 ||
        array->shape[2] < 2 || array->shape[2] > GATE_MAX_EXPERTS)
        return false;
    int64_t experts = array->shape[2], rows = array->shape[0] * array->shape[1];
    for (int64_t r = 0; r < rows; r++) {
        double sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            float x;
            npy_reals(array, r * experts + e, 1, &x);
            if (!(x >= 0 && x <= 1)) return false;
            sum += (double)x;
        }
        if (fabs(sum - 1) > 1e-4) return false;
    }
    return true;
}

/* Is x of `choices` a whole number, as far as f32 can say? */
static bool whole(double x, double choices) {
    double count = x * choices;
    return fabs(count - nearbyint(count)) <= 1e-4 + 1e-7 * choices;
}

/* The smallest multiple of k for which all shares are whole counts; 0 when there is none. */
static int64_t find_choices(const float *share, int64_t n, int k) {
    for (int64_t choices = k; choices <= MOST_CHOICES; choices += k) {
        int64_t i = 0;
        while (i < n && whole((double)share[i], (double)choices)) i++;
        if (i == n) return choices;
    }
    return 0;
}

static bool add_document(struct count_build *build, const struct npy *array, const float *share,
                         int64_t choices, struct err *err) {
    int64_t layers = array->shape[1], experts = array->shape[2];
    for (int64_t l = 0; l < layers; l++) {
        double sum = 0;
        for (int64_t e = 0; e < experts; e++) {
            double count = nearbyint((double)share[l * experts + e] * (double)choices);
            sum += count;
            if (!count_add(build, (int)l, build->document_count, e, count, err)) return false;
        }
        if (sum != (double)choices)
            return err_set(err, ERR_DATA, "layer %lld: found %.0f choices, expected %lld",
                           (long long)l, sum, (long long)choices);
    }
    return true;
}

bool fractions_add(struct count_build *build, const struct npy *array, const char *source,
                   const char *domain, struct err *err) {
    int64_t n = array->shape[1] * array->shape[2];
    float *share = malloc((size_t)n * sizeof *share);
    bool ok = share || err_memory(err, "shares");
    if (array->shape[2] > build->experts) build->experts = (int)array->shape[2];
    for (int64_t d = 0; ok && d < array->shape[0]; d++) {
        npy_reals(array, d * n, n, share);
        int64_t choices = find_choices(share, n, build->topk);
        if (!choices)
            ok = err_set(err, ERR_DATA,
                         "document %lld: rows sum to 1 but are no shares of less than %d choices: "
                         "probabilities or averages, expected logits or shares of one document",
                         (long long)d, MOST_CHOICES);
        else
            ok = add_document(build, array, share, choices, err) &&
                 count_document(build, source, domain, choices / build->topk, err);
    }
    free(share);
    return ok;
}
