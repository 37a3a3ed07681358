/* batch.c - capacity, expert choice, Sinkhorn and exact assignment over one balance batch */
#include "router/batch.h"

#include <math.h>
#include <string.h>

#include "router/assign.h"
#include "router/mathf.h"
#include "router/parts.h"
#include "router/route_kernels.h"

/* A thing with a key: higher keys first, among equals the lower index. */
struct ranked {
    float key;
    int32_t index;
};

struct batch {
    const struct gate *gate;
    int experts, slots;
    int64_t tokens;
    const float *logits, *choice, *score; /* [T,E]; choice: what is compared; score: to weigh */
    struct routes *out;
    /* memory */
    struct ranked *ranked; /* [max(T S, T)] */
    int64_t *first;        /* [E+1] */
    int64_t *load;         /* [E] */
    uint8_t *taken;        /* [T,E]; assign=expert */
    double *value;         /* [T,E]; sinkhorn, base */
    double *row, *column;  /* [T], [E]; sinkhorn */
    double *sum;           /* [E]; sinkhorn */
    void *assignment;      /* base */
};

static bool balances(const struct gate *gate) {
    return gate->assign == ASSIGN_SINKHORN || gate->assign == ASSIGN_BASE;
}

static void lay_out(struct batch *b, struct parts *parts) {
    size_t tokens = (size_t)b->tokens, experts = (size_t)b->experts, slots = (size_t)b->slots;
    bool choose = b->gate->assign == ASSIGN_EXPERT;
    b->ranked = parts_take(parts, tokens, (choose ? 1 : slots) * sizeof *b->ranked);
    b->first = parts_take(parts, experts + 1, sizeof *b->first);
    b->load = parts_take(parts, experts, sizeof *b->load);
    if (choose) b->taken = parts_take(parts, tokens, experts);
    if (balances(b->gate)) b->value = parts_take(parts, tokens, experts * sizeof *b->value);
    if (b->gate->assign == ASSIGN_SINKHORN) {
        b->row = parts_take(parts, tokens, sizeof *b->row);
        b->column = parts_take(parts, experts, sizeof *b->column);
        b->sum = parts_take(parts, experts, sizeof *b->sum);
    }
    if (b->gate->assign != ASSIGN_BASE) return;
    size_t bytes = assign_bytes(b->tokens, b->experts);
    if (bytes == SIZE_MAX) parts->used = SIZE_MAX;
    b->assignment = parts_take(parts, 1, bytes);
}

static struct batch batch_of(const struct gate *gate, int experts, int64_t tokens) {
    return (struct batch){
        .gate = gate, .experts = experts, .slots = gate_slots(gate, experts), .tokens = tokens};
}

size_t route_batch_bytes(const struct gate *gate, int experts, int64_t tokens) {
    struct batch b = batch_of(gate, experts, tokens);
    struct parts parts = {0};
    if (!gate_needs_batch(gate)) return 0;
    lay_out(&b, &parts);
    return parts.used;
}

/* ---- orders */

static bool before(struct ranked a, struct ranked b) {
    return a.key > b.key || (a.key == b.key && a.index < b.index);
}

static void swap(struct ranked *a, struct ranked *b) {
    struct ranked c = *a;
    *a = *b;
    *b = c;
}

/* Brings the `wanted` first of x[n] to its front, in no order. */
static void select_first(struct ranked *x, int64_t n, int64_t wanted) {
    int64_t low = 0, high = n - 1;
    while (low < high && wanted > 0 && wanted < n) {
        struct ranked pivot = x[low + (high - low) / 2];
        int64_t i = low, j = high;
        while (i <= j) {
            while (before(x[i], pivot)) i++;
            while (before(pivot, x[j])) j--;
            if (i <= j) swap(&x[i++], &x[j--]);
        }
        if (wanted - 1 <= j)
            high = j;
        else if (wanted - 1 >= i)
            low = i;
        else
            return;
    }
}

static void sift(struct ranked *x, int64_t root, int64_t n) {
    for (int64_t child = 2 * root + 1; child < n; child = 2 * root + 1) {
        if (child + 1 < n && before(x[child], x[child + 1])) child++;
        if (!before(x[root], x[child])) return;
        swap(&x[root], &x[child]);
        root = child;
    }
}

/* Sorts x[n], first things first (heapsort: no memory, the order is total). */
static void sort_first(struct ranked *x, int64_t n) {
    for (int64_t i = n / 2; i-- > 0;) sift(x, i, n);
    for (int64_t end = n; end-- > 1;) {
        swap(&x[0], &x[end]);
        sift(x, 0, end);
    }
}

/* ---- capacity */

static void drop(struct batch *b, int64_t slot) {
    b->out->expert[slot] = ROUTE_NONE;
    b->out->weight[slot] = 0;
}

/* Who shares places: the experts of a device, or each expert alone. */
static int sharers(const struct batch *b) {
    return b->gate->devices > 0 ? b->gate->devices : b->experts;
}

static int sharer_of(const struct batch *b, int32_t expert) {
    return b->gate->devices > 0 ? expert / (b->experts / b->gate->devices) : expert;
}

/* Each expert (or device) keeps the C choices of highest weight, among equals those of lower
 * tokens, then those chosen first. */
static void drop_by_weight(struct batch *b, int64_t capacity) {
    int64_t choices = b->tokens * b->slots;
    const int32_t *expert = b->out->expert;
    int count = sharers(b);
    memset(b->first, 0, ((size_t)count + 1) * sizeof *b->first);
    for (int64_t i = 0; i < choices; i++)
        if (expert[i] != ROUTE_NONE) b->first[sharer_of(b, expert[i]) + 1]++;
    for (int e = 0; e < count; e++) b->first[e + 1] += b->first[e];
    memcpy(b->load, b->first, (size_t)count * sizeof *b->load);
    for (int64_t i = 0; i < choices; i++)
        if (expert[i] != ROUTE_NONE)
            b->ranked[b->load[sharer_of(b, expert[i])]++] =
                (struct ranked){b->out->weight[i], (int32_t)i};
    for (int e = 0; e < count; e++) {
        struct ranked *of = b->ranked + b->first[e];
        int64_t n = b->first[e + 1] - b->first[e];
        if (n <= capacity) continue;
        select_first(of, n, capacity);
        for (int64_t i = capacity; i < n; i++) drop(b, of[i].index);
    }
}

/* Serves one choice. */
static void serve(struct batch *b, int64_t slot, int64_t capacity) {
    int32_t e = b->out->expert[slot];
    if (e == ROUTE_NONE) return;
    int64_t *load = &b->load[sharer_of(b, e)];
    if (*load < capacity)
        ++*load;
    else
        drop(b, slot);
}

/* order[T]: tokens as they are served; NULL: as they come. */
static void drop_by_order(struct batch *b, const struct ranked *order, int64_t capacity) {
    int k = b->slots, rounds = b->gate->turn == TURN_CHOICE ? k : 1, each = k / rounds;
    memset(b->load, 0, (size_t)b->experts * sizeof *b->load);
    for (int i = 0; i < rounds; i++) {
        for (int64_t at = 0; at < b->tokens; at++) {
            int64_t t = order ? order[at].index : at;
            for (int j = 0; j < each; j++) serve(b, t * k + i + j, capacity);
        }
    }
}

/* Tokens by their highest weight. */
static const struct ranked *priorities(struct batch *b) {
    for (int64_t t = 0; t < b->tokens; t++) {
        const float *weight = b->out->weight + t * b->slots;
        float most = weight[0];
        for (int i = 1; i < b->slots; i++) most = weight[i] > most ? weight[i] : most;
        b->ranked[t] = (struct ranked){most, (int32_t)t};
    }
    sort_first(b->ranked, b->tokens);
    return b->ranked;
}

static void apply_capacity(struct batch *b) {
    int64_t capacity = gate_capacity(b->gate, b->experts, b->tokens);
    if (capacity >= b->tokens * (b->gate->devices > 0 ? b->slots : 1)) return;
    if (b->gate->drop == DROP_PROB)
        drop_by_weight(b, capacity);
    else
        drop_by_order(b, b->gate->drop == DROP_PRIORITY ? priorities(b) : NULL, capacity);
}

/* ---- rows of chosen experts */

/* Orders expert[n] by falling value, lower index first, and weighs them. */
static void finish_row(struct batch *b, int64_t t, int n) {
    int32_t *expert = b->out->expert + t * b->slots;
    float *weight = b->out->weight + t * b->slots;
    const float *value = b->choice + t * b->experts;
    for (int i = 1; i < n; i++) {
        int32_t e = expert[i];
        int j = i;
        for (; j > 0 && value[expert[j - 1]] < value[e]; j--) expert[j] = expert[j - 1];
        expert[j] = e;
    }
    for (int i = n; i < b->slots; i++) drop(b, t * b->slots + i);
    route_weigh_row(b->gate, b->score + t * b->experts, expert, n, weight);
}

/* ---- expert choice: each expert takes its C best tokens */

static void choose_tokens(struct batch *b) {
    int64_t capacity = gate_capacity(b->gate, b->experts, b->tokens);
    memset(b->taken, 0, (size_t)b->tokens * (size_t)b->experts);
    for (int e = 0; e < b->experts; e++) {
        for (int64_t t = 0; t < b->tokens; t++)
            b->ranked[t] = (struct ranked){b->choice[t * b->experts + e], (int32_t)t};
        select_first(b->ranked, b->tokens, capacity);
        for (int64_t i = 0; i < capacity; i++)
            b->taken[(int64_t)b->ranked[i].index * b->experts + e] = 1;
    }
    for (int64_t t = 0; t < b->tokens; t++) {
        int n = 0;
        for (int e = 0; e < b->experts; e++)
            if (b->taken[t * b->experts + e]) b->out->expert[t * b->slots + n++] = e;
        finish_row(b, t, n);
    }
}

/* ---- Sinkhorn: rows and columns of exp(l) scaled in turn */

/* column[E] <- 1/E / (sum over tokens of row * K + eps), row[T] likewise; returns the mean change
 * of the columns. */
static double scale_once(struct batch *b) {
    const double eps = 1e-8;
    double change = 0;
    memset(b->sum, 0, (size_t)b->experts * sizeof *b->sum);
    for (int64_t t = 0; t < b->tokens; t++) {
        const double *kernel = b->value + t * b->experts;
        double sum = 0;
        for (int e = 0; e < b->experts; e++) sum += b->column[e] * kernel[e];
        b->row[t] = 1.0 / (double)b->tokens / (sum + eps);
        for (int e = 0; e < b->experts; e++) b->sum[e] += b->row[t] * kernel[e];
    }
    for (int e = 0; e < b->experts; e++) {
        double factor = 1.0 / b->experts / (b->sum[e] + eps);
        change += fabs(factor - b->column[e]);
        b->column[e] = factor;
    }
    return change / b->experts;
}

/* The k best of column * K: the row factor moves no choice within a token. */
static void choose_scaled(struct batch *b) {
    for (int64_t t = 0; t < b->tokens; t++) {
        double *plan = b->value + t * b->experts;
        int32_t *expert = b->out->expert + t * b->slots;
        for (int e = 0; e < b->experts; e++) plan[e] *= b->column[e];
        for (int i = 0; i < b->slots; i++) {
            int best = 0;
            for (int e = 1; e < b->experts; e++) best = plan[e] > plan[best] ? e : best;
            expert[i] = best;
            plan[best] = -1;
        }
        route_weigh_row(b->gate, b->score + t * b->experts, expert, b->slots,
                        b->out->weight + t * b->slots);
    }
}

static void scale_to_balance(struct batch *b) {
    for (int64_t t = 0; t < b->tokens; t++) {
        const float *logits = b->logits + t * b->experts;
        float most = logits[0];
        for (int e = 1; e < b->experts; e++) most = logits[e] > most ? logits[e] : most;
        for (int e = 0; e < b->experts; e++)
            b->value[t * b->experts + e] = (double)mathf_exp(logits[e] - most);
    }
    for (int e = 0; e < b->experts; e++) b->column[e] = 1;
    for (int i = 0; i < b->gate->iterations; i++)
        if (!(scale_once(b) > (double)b->gate->tolerance)) break;
    choose_scaled(b);
}

/* ---- BASE */

static void assign_equally(struct batch *b) {
    int64_t cells = b->tokens * b->experts;
    for (int64_t i = 0; i < cells; i++) b->value[i] = (double)b->choice[i];
    const struct assignment_problem problem = {b->tokens, b->experts, b->slots, b->value};
    assign_exact(&problem, b->out->expert, b->assignment);
    for (int64_t t = 0; t < b->tokens; t++) finish_row(b, t, b->slots);
}

/* ---- all of them */

static void (*const assigners[])(struct batch *) = {[ASSIGN_TOKEN] = NULL,
                                                    [ASSIGN_EXPERT] = choose_tokens,
                                                    [ASSIGN_SINKHORN] = scale_to_balance,
                                                    [ASSIGN_BASE] = assign_equally};

void route_batch(const struct gate *gate, int experts, int64_t tokens, const float *logits,
                 const float *scores, struct routes *out, void *memory) {
    struct batch b = batch_of(gate, experts, tokens);
    struct parts parts = {.memory = memory};
    b.logits = logits;
    b.choice = b.score = gate->order == ORDER_TOPK_SCORE ? logits : scores;
    b.out = out;
    lay_out(&b, &parts);
    if (assigners[gate->assign]) {
        assigners[gate->assign](&b);
        if (out->tie) memset(out->tie, 0, (size_t)tokens);
        if (out->escape) memset(out->escape, 0, (size_t)tokens);
    }
    if (gate->assign != ASSIGN_EXPERT && gate->capacity > 0) apply_capacity(&b);
}
