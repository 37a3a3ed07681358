/* notes.c - what a reader of a replay must be told */
#include "sim/notes.h"

#include <string.h>

static bool is_foreign(const struct variant_layer *at) { return at->foreign; }
static bool is_dropped(const struct variant_layer *at) { return at->dropped_bias; }

/* "variants 2, 5<text>" over those of which any layer is so; nothing when there is none. */
static void note_those(const struct variant_set *set, bool (*is)(const struct variant_layer *),
                       const char *text, struct str *notes) {
    int named = 0;
    for (int i = 0; i < set->count; i++) {
        bool any = false;
        for (int l = 0; l < set->layers; l++) any = any || is(variant_at(set, i, l));
        if (any) str_printf(notes, "%s%d", named++ ? ", " : "variants ", set->variant[i].number);
    }
    if (named) str_puts(notes, text);
}

void note_biases(const struct variant_set *set, struct str *notes) {
    note_those(set, is_foreign,
               ": carry the captured bias to a score function that it was not trained with\n",
               notes);
    note_those(set, is_dropped,
               ": run without the captured bias, which belongs to another score function "
               "(--bias-rule frozen carries it)\n",
               notes);
}

static bool looks_ahead(const struct variant_layer *at) { return !gate_is_causal(&at->gate); }

void note_causality(const struct variant_set *set, struct str *notes) {
    note_those(
        set, looks_ahead,
        ": not causal: a token's experts depend on later tokens of its balance batch (a form "
        "for training; generation cannot run it)\n",
        notes);
}

void note_twins(const struct variant_set *set, struct str *notes) {
    for (int i = 0; i < set->count; i++) {
        const char *why = set->variant[i].same_why;
        bool told = !set->variant[i].same_as;
        for (int j = 0; j < i && !told; j++)
            told = set->variant[j].same_as && strcmp(set->variant[j].same_why, why) == 0;
        if (told) continue;
        str_puts(notes, "same load: variants");
        for (int j = i, named = 0; j < set->count; j++) {
            const struct variant *v = &set->variant[j];
            if (v->same_as && strcmp(v->same_why, why) == 0)
                str_printf(notes, "%s %d (as %d)", named++ ? "," : "", v->number, v->same_as);
        }
        str_printf(notes, ": %s\n", why);
    }
}
