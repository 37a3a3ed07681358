/* comm.c - dispatch and combine: the busiest rank's bytes over links and network */
#include "sim/comm.h"

#include <math.h>

static double affine_ms(struct comm_affine c, double bytes) {
    return bytes > 0 ? c.latency_us * 1e-3 + bytes / (c.gbps * 1e6) : 0;
}

static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

struct comm_time comm_time(const struct comm_constants *constants, bool low_latency, double hidden,
                           const struct comm_traffic *ranks, int count) {
    int64_t link = 0, network = 0;
    for (int r = 0; r < count; r++) {
        const struct comm_traffic *t = &ranks[r];
        link = larger(link, low_latency ? larger(t->sent_near, t->received_near)
                                        : larger(t->sent_ranks, t->received_ranks));
        network = larger(network, low_latency ? larger(t->sent_far, t->received_far)
                                              : larger(t->sent_nodes, t->received_nodes));
    }
    if (count < 2) return (struct comm_time){0};
    const struct comm_mode *mode = low_latency ? &constants->low_latency : &constants->normal;
    double out = hidden * constants->dispatch_bytes, back = hidden * constants->combine_bytes;
    return (struct comm_time){
        .dispatch_ms = fmax(affine_ms(mode->dispatch, (double)link * out),
                            affine_ms(mode->network_dispatch, (double)network * out)),
        .combine_ms = fmax(affine_ms(mode->combine, (double)link * back),
                           affine_ms(mode->network_combine, (double)network * back))};
}
