/* comm.h - time of dispatch and combine in expert parallelism, from the busiest rank's bytes
 *
 * Layer 4 (sim), pure. Time is affine in bytes: latency + bytes / bandwidth, of the busiest sender
 * or receiver; links inside a node and the network between nodes work at the same time, so the
 * slower of the two counts.
 *
 *     normal        one copy of a token per distinct destination rank over the node's links
 *                   (the own rank included, as in the measured tables), one per distinct remote
 *                   node over the network (to the GPU of the same index, which forwards it)
 *     low latency   one copy per choice: over the links when its rank is in the node, else over the
 *                   network
 *
 * Combine sends the same copies back. No public measurement has imbalanced communication: what skew
 * does to it is modelled from bytes and cannot be validated; results say so. */
#ifndef SIM_COMM_H
#define SIM_COMM_H

#include <stdbool.h>
#include <stdint.h>

struct comm_affine {
    double latency_us, gbps; /* gbps: GB/s per rank, one direction */
};

/* One way of exchanging tokens. */
struct comm_mode {
    struct comm_affine dispatch, combine;                 /* inside a node */
    struct comm_affine network_dispatch, network_combine; /* between nodes */
};

struct comm_constants {
    struct comm_mode normal, low_latency;
    double dispatch_bytes, combine_bytes; /* per element of a token: 1 FP8, 2 BF16 */
    double error_median;                  /* of balanced exchanges, a share */
};

/* Copies of tokens that one rank sends and receives. */
struct comm_traffic {
    int64_t sent_ranks, received_ranks; /* normal: distinct destination ranks */
    int64_t sent_nodes, received_nodes; /* normal: distinct remote nodes */
    int64_t sent_near, received_near;   /* low latency: choices within the node */
    int64_t sent_far, received_far;     /* low latency: choices in other nodes */
};

struct comm_time {
    double dispatch_ms, combine_ms;
};

/* The exchange of one layer among ranks[count] with tokens of `hidden` elements. One rank, or no
 * copies at all, takes no time. */
struct comm_time comm_time(const struct comm_constants *constants, bool low_latency, double hidden,
                           const struct comm_traffic *ranks, int count);

#endif
