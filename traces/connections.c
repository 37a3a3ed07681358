/* connections.c - read connections to one file that wait for their next user */
#include "traces/connections.h"

#include <pthread.h>
#include <stdlib.h>

enum { MOST = 64 };

struct connections {
    pthread_mutex_t lock;
    int waiting;
    struct db db[MOST]; /* [waiting] */
};

struct connections *connections_create(void) {
    struct connections *connections = calloc(1, sizeof *connections);
    if (connections && pthread_mutex_init(&connections->lock, NULL) != 0) {
        free(connections);
        return NULL;
    }
    return connections;
}

void connections_free(struct connections *connections) {
    if (!connections) return;
    for (int i = 0; i < connections->waiting; i++) db_close(&connections->db[i]);
    pthread_mutex_destroy(&connections->lock);
    free(connections);
}

bool connections_take(struct connections *connections, const char *path, struct db *db,
                      struct err *err) {
    bool found = false;
    if (connections) {
        pthread_mutex_lock(&connections->lock);
        found = connections->waiting > 0;
        if (found) *db = connections->db[--connections->waiting];
        pthread_mutex_unlock(&connections->lock);
    }
    return found || db_open(db, path, DB_READ, err);
}

void connections_give(struct connections *connections, struct db *db) {
    if (connections && db->handle && sqlite3_get_autocommit(db->handle)) {
        pthread_mutex_lock(&connections->lock);
        if (connections->waiting < MOST) {
            connections->db[connections->waiting++] = *db;
            *db = (struct db){0};
        }
        pthread_mutex_unlock(&connections->lock);
    }
    db_close(db);
}
