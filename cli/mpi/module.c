/* module.c - messages between processes over MPI: the only file that knows MPI
 *
 * Built by mpicc into steelyard-mpi.so. A message is its size, then its bytes in pieces (MPI counts
 * in int). Only the main thread calls MPI. MPI's own errors end all processes (its default), and so
 * does the launcher when one of them dies: nobody waits for a process that is gone. */
#include "cli/mpi/module.h"

#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

mpi_module_start mpi_start;

enum { TAG_SIZE = 1, TAG_PIECE = 2, PIECE_BYTES = 1 << 26 };

/* A message that MPI may still be reading. */
struct parcel {
    struct str message;
    uint64_t size;
    MPI_Request *request; /* [count] */
    int count;
    struct parcel *next;
};

static struct parcel *parcels;

static void give_up(void) {
    fprintf(stderr, "steelyard: out of memory (message between processes)\n");
    MPI_Abort(MPI_COMM_WORLD, 1);
    abort();
}

static void release(struct parcel *parcel) {
    str_free(&parcel->message);
    free(parcel->request);
    free(parcel);
}

/* Forgets the parcels that have been delivered; with `wait`, all. */
static void collect(bool wait) {
    for (struct parcel **p = &parcels; *p;) {
        struct parcel *parcel = *p;
        int done = 1;
        if (wait)
            MPI_Waitall(parcel->count, parcel->request, MPI_STATUSES_IGNORE);
        else
            MPI_Testall(parcel->count, parcel->request, &done, MPI_STATUSES_IGNORE);
        if (done) {
            *p = parcel->next;
            release(parcel);
        } else {
            p = &parcel->next;
        }
    }
}

static int piece_at(size_t size, size_t at) {
    return (int)(size - at < PIECE_BYTES ? size - at : PIECE_BYTES);
}

static void send_message(struct processes *processes, int to, struct str *message) {
    struct parcel *parcel = calloc(1, sizeof *parcel);
    size_t size = message->len, pieces = (size + PIECE_BYTES - 1) / PIECE_BYTES;
    (void)processes;
    if (parcel) parcel->request = calloc(pieces + 1, sizeof(MPI_Request));
    if (!parcel || !parcel->request || message->failed) give_up();
    parcel->message = *message;
    parcel->size = size;
    *message = (struct str){0};
    MPI_Isend(&parcel->size, 1, MPI_UINT64_T, to, TAG_SIZE, MPI_COMM_WORLD,
              &parcel->request[parcel->count++]);
    for (size_t at = 0; at < size; at += PIECE_BYTES)
        MPI_Isend(parcel->message.data + at, piece_at(size, at), MPI_BYTE, to, TAG_PIECE,
                  MPI_COMM_WORLD, &parcel->request[parcel->count++]);
    parcel->next = parcels;
    parcels = parcel;
}

static bool receive_message(struct processes *processes, int *from, struct str *message) {
    MPI_Status status;
    uint64_t size;
    int there;
    (void)processes;
    collect(false);
    MPI_Iprobe(MPI_ANY_SOURCE, TAG_SIZE, MPI_COMM_WORLD, &there, &status);
    if (!there) return false;
    *from = status.MPI_SOURCE;
    MPI_Recv(&size, 1, MPI_UINT64_T, *from, TAG_SIZE, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    *message = (struct str){.data = malloc(size + 1), .len = size, .cap = size + 1};
    if (!message->data) give_up();
    for (size_t at = 0; at < size; at += PIECE_BYTES)
        MPI_Recv(message->data + at, piece_at(size, at), MPI_BYTE, *from, TAG_PIECE, MPI_COMM_WORLD,
                 MPI_STATUS_IGNORE);
    message->data[size] = '\0';
    return true;
}

static void leave(struct processes *processes) {
    (void)processes;
    collect(true);
    MPI_Finalize();
}

void mpi_start(struct processes *processes) {
    int level;
    MPI_Comm here;
    MPI_Init_thread(NULL, NULL, MPI_THREAD_FUNNELED, &level);
    *processes =
        (struct processes){.send = send_message, .receive = receive_message, .leave = leave};
    MPI_Comm_rank(MPI_COMM_WORLD, &processes->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &processes->size);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &here);
    MPI_Comm_size(here, &processes->here);
    MPI_Comm_free(&here);
}
