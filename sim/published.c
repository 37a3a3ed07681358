/* published.c - published serving systems beside the model's prediction
 *
 * Figures: DeepSeek, "DeepSeek-V3/R1 Inference System Overview" (open-infra-index, day 6, 2025);
 * DeepSeek profile-data; LMSYS, "Deploying DeepSeek with PD Disaggregation and Large-Scale Expert
 * Parallelism on 96 H100 GPUs" (2025-05-05), which also states the profile's rates. */
#include "sim/published.h"

#include <math.h>

#include "sim/cluster.h"
#include "sim/layer_time.h"
#include "sim/step.h"

static const char overview[] = "DeepSeek inference system overview";
static const char report[] = "LMSYS 96-GPU report";
static const char profile[] = "DeepSeek profile-data, rate by LMSYS";

/* clang-format off */
const struct published_system published_systems[] = {
    {"DeepSeek service, prefill", overview, "h800", PHASE_PREFILL, 32, 288, 16384, 4096, 73700 * (1 - 0.563),
     "real traffic, 9 routed experts a GPU", "73.7k tokens/s less 56.3 % cache hits; batch of the published profile; always full"},
    {"DeepSeek profile, prefill", profile, "h800", PHASE_PREFILL, 32, 256, 16384, 4096, 62713,
     "perfectly balanced", "two micro-batches count as one batch"},
    {"DeepSeek service, decode", overview, "h800", PHASE_DECODE, 144, 288, 88, 4989, 14800,
     "real traffic, 2 routed experts a GPU", "88 sequences a GPU: 14.8k / 8 / 21 tokens/s a user; always full"},
    {"DeepSeek profile, decode", profile, "h800", PHASE_DECODE, 128, 256, 128, 4096, 18598,
     "perfectly balanced", ""},
    {"LMSYS, prefill 1K", report, "h100-deepgemm", PHASE_PREFILL, 32, 288, 16384, 1024, 57674,
     "own data, EPLB with 32 replicas", "16,384 tokens a GPU"},
    {"LMSYS, prefill 2K", report, "h100-deepgemm", PHASE_PREFILL, 32, 288, 16384, 2048, 54543,
     "own data, EPLB with 32 replicas", "16,384 tokens a GPU"},
    {"LMSYS, prefill 4K", report, "h100-deepgemm", PHASE_PREFILL, 32, 288, 16384, 4096, 50302,
     "own data, EPLB with 32 replicas", "16,384 tokens a GPU"},
    {"LMSYS, prefill 4K, balanced", report, "h100-deepgemm", PHASE_PREFILL, 32, 288, 16384, 4096, 59337,
     "perfectly balanced by simulation", "16,384 tokens a GPU"},
    {"LMSYS, decode 2K", report, "h100-deepgemm", PHASE_DECODE, 72, 288, 256, 2000, 22282,
     "own data, EPLB with 32 replicas", ""},
    {"LMSYS, decode 4K, simulated MTP", report, "h100-deepgemm", PHASE_DECODE, 72, 288, 128, 4000, 17373,
     "own data, EPLB with 32 replicas", "128 sequences a GPU; MTP's extra work left out"},
    {0}};

const char *const published_assumptions[] = {
    "model: DeepSeek-V3, 58 MoE layers of 256 experts, top-8, one shared expert, latent attention",
    "every rank has its share of the load and all its experts are active: an upper bound where the load was not even",
    "a token's experts lie on random ranks (the gate's limit to 4 nodes counted); prefill sends one copy a rank and a node, decode one a choice",
    "attention is data parallel and, like dense and shared layers, a roofline at the cluster's stated efficiencies",
    "no scheduling gaps, no sampling, no transfer of caches",
    NULL};

static const struct model_shape deepseek_v3 = {
    .hidden = 7168, .expert_inter = 2048, .dense_inter = 18432, .shared_inter = 2048,
    .layers = 61, .moe_layers = 58, .heads = 128, .kv_heads = 128, .head_dim = 128,
    .q_rank = 1536, .kv_rank = 512, .rope_dim = 64, .nope_dim = 128, .value_dim = 128,
    .experts = 256, .vocab = 129280};
/* clang-format on */
enum { TOPK = 8, NODE_LIMIT = 4, GPUS = 8 };

/* Milliseconds of one MoE layer's parts, and of the rest of the step. */
struct parts {
    double experts, comm, rest;
};

/* Expected number of distinct ones of `many` that k random choices meet. */
static double distinct(double many, double k) { return many * (1 - pow(1 - 1 / many, k)); }

/* Traffic of a typical rank; all are alike. */
static struct comm_traffic traffic_of(const struct published_system *s) {
    double nodes = (double)s->ranks / GPUS, limit = fmin(nodes, NODE_LIMIT);
    double away = 1 - 1 / nodes; /* share of choices in other nodes */
    int64_t copies = llround(s->tokens_per_rank * distinct(limit * GPUS, TOPK));
    int64_t far = llround(s->tokens_per_rank * distinct(limit, TOPK) * away);
    int64_t near_choices = llround(s->tokens_per_rank * TOPK * (1 - away));
    int64_t far_choices = llround(s->tokens_per_rank * TOPK * away);
    return (struct comm_traffic){copies,       copies,       far,         far,
                                 near_choices, near_choices, far_choices, far_choices};
}

static struct parts parts_of(const struct published_system *s, const struct cluster *cluster) {
    double group = s->tokens_per_rank * s->ranks, places = (double)s->slots / s->ranks;
    const struct layer_shape shape = {.hidden = deepseek_v3.hidden,
                                      .inter = deepseek_v3.expert_inter,
                                      .matrices = 3,
                                      .weight_bytes = cluster->weight_bytes,
                                      .topk = TOPK,
                                      .local_experts = places};
    const struct comm_traffic one = traffic_of(s), ranks[2] = {one, one};
    bool decode = s->phase == PHASE_DECODE;
    struct comm_time comm = comm_time(&cluster->comm, decode, deepseek_v3.hidden, ranks, 2);
    return (struct parts){
        .experts = layer_even_time_ms(&cluster->constants.layer, &shape, places,
                                      s->tokens_per_rank * TOPK, group),
        .comm = comm.dispatch_ms + comm.combine_ms,
        .rest = step_rest_ms(&deepseek_v3, cluster, s->tokens_per_rank, s->context, decode)};
}

static void add_system(const struct published_system *s, const struct cluster *cluster,
                       struct table *table) {
    const struct parts p = parts_of(s, cluster);
    double layers = deepseek_v3.moe_layers, group = s->tokens_per_rank * s->ranks;
    double serial = layers * (p.experts + p.comm) + p.rest;
    double computing = layers * p.experts + p.rest;
    double overlapped =
        fmax(computing, layers * p.comm); /* two batches hide each other's traffic */
    double rate = GPUS * s->tokens_per_rank * 1e3;
    table_text(table, s->name);
    table_text(table, serving_phase_name(s->phase));
    table_text(table, s->cluster);
    table_int(table, s->ranks);
    table_int(table, s->slots);
    table_int(table, (int64_t)s->tokens_per_rank);
    table_int(table, (int64_t)s->context);
    table_real(table, s->tokens_per_s);
    table_real(table, rate / serial);
    table_real(table, rate / overlapped);
    table_real(table, rate / serial / s->tokens_per_s);
    table_real(table, rate / overlapped / s->tokens_per_s);
    table_real(table, layers * p.experts);
    table_real(table, layers * p.comm);
    table_real(table, p.rest);
    table_real(table, 100 * cluster_error(cluster, group));
    table_int(table, group > 65536 || s->ranks > 256);
    table_text(table, s->load);
    table_text(table, s->assumed);
    table_text(table, s->source);
}

struct table *published_study(struct err *err) {
    static const struct table_column columns[] = {
        {"system", "", TABLE_TEXT},      {"phase", "", TABLE_TEXT},
        {"cluster", "", TABLE_TEXT},     {"ranks", "", TABLE_INT},
        {"slots", "", TABLE_INT},        {"tokens_per_rank", "", TABLE_INT},
        {"context", "", TABLE_INT},      {"published", "", TABLE_REAL},
        {"predicted", "", TABLE_REAL},   {"predicted_overlap", "", TABLE_REAL},
        {"ratio", "", TABLE_REAL},       {"ratio_overlap", "", TABLE_REAL},
        {"experts_ms", "", TABLE_REAL},  {"comm_ms", "", TABLE_REAL},
        {"rest_ms", "", TABLE_REAL},     {"error_pct", "", TABLE_REAL},
        {"extrapolated", "", TABLE_INT}, {"load", "", TABLE_TEXT},
        {"assumed", "", TABLE_TEXT},     {"source", "", TABLE_TEXT}};
    struct table *table = table_create(columns, sizeof columns / sizeof *columns, err);
    for (const struct published_system *s = published_systems; table && s->name; s++) {
        struct cluster cluster;
        if (!cluster_find(&cluster, s->cluster, err)) {
            table_free(table);
            return NULL;
        }
        add_system(s, &cluster, table);
    }
    if (table && table_ok(table, err)) return table;
    table_free(table);
    return NULL;
}
