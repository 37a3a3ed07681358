/* in_place.c - the rows of a stored blob in place: the SQLite file format, as far as that needs it
 *
 * Section numbers are those of sqlite.org/fileformat2.html. P = bytes of a record, U = usable bytes
 * of a page. The file may be hostile: every number from it is checked before use, a walk down the
 * tree ends after DEPTH pages, and a chain has as many pages as its record needs. */
#include "traces/in_place.h"

#include <stdlib.h>
#include <string.h>

enum { DEPTH = 20, WINDOW_BYTES = 256 << 10, MOST_RECORD = 1000000000, PENDING_BYTE = 1 << 30 };

struct in_place {
    struct db *db;
    sqlite3_file *file; /* SQLite's own */
    const unsigned char *map;
    uint32_t mapped; /* pages of the map */
    uint32_t page_bytes, usable, count, root;
    unsigned char *tree;   /* a page of the b-tree that is not mapped */
    unsigned char *window; /* consecutive pages that are not mapped: window_first.. */
    uint32_t window_first, window_pages;
    /* the blob that was found */
    const unsigned char *local; /* its first bytes, in the leaf */
    size_t local_bytes;
    uint32_t *chain; /* [chained] overflow pages as far as they are known, of chain_pages */
    size_t chained, chain_pages, chain_cap;
};

static uint32_t be16(const unsigned char *at) { return (uint32_t)at[0] << 8 | at[1]; }
static uint32_t be32(const unsigned char *at) { return be16(at) << 16 | be16(at + 2); }

/* ---- pages */

static bool exists(const struct in_place *place, uint32_t page) {
    return page >= 1 && page <= place->count && page != PENDING_BYTE / place->page_bytes + 1;
}

static const unsigned char *mapped(const struct in_place *place, uint32_t page) {
    return page <= place->mapped ? place->map + (size_t)(page - 1) * place->page_bytes : NULL;
}

static bool read_pages(const struct in_place *place, uint32_t first, uint32_t n,
                       unsigned char *out) {
    int64_t at = (int64_t)(first - 1) * place->page_bytes;
    int bytes = (int)(n * place->page_bytes);
    return place->file->pMethods->xRead(place->file, out, bytes, at) == SQLITE_OK;
}

/* A page of the tree; borrowed until the next. */
static const unsigned char *tree_page(struct in_place *place, uint32_t page) {
    if (!exists(place, page)) return NULL;
    const unsigned char *at = mapped(place, page);
    if (at) return at;
    if (!place->tree && !(place->tree = malloc(place->page_bytes))) return NULL;
    return read_pages(place, page, 1, place->tree) ? place->tree : NULL;
}

/* A page of a chain; borrowed until the next one that is not mapped. */
static const unsigned char *chain_page(struct in_place *place, uint32_t page) {
    const unsigned char *at = mapped(place, page);
    if (at) return at;
    uint32_t most = WINDOW_BYTES / place->page_bytes, left = place->count - page + 1;
    if (!place->window && !(place->window = malloc(WINDOW_BYTES))) return NULL;
    if (page < place->window_first || page - place->window_first >= place->window_pages) {
        place->window_first = page;
        place->window_pages = 0;
        if (!read_pages(place, page, left < most ? left : most, place->window)) return NULL;
        place->window_pages = left < most ? left : most;
    }
    return place->window + (size_t)(page - place->window_first) * place->page_bytes;
}

/* ---- opening */

static bool read_header(struct in_place *place, int64_t file_bytes) {
    unsigned char head[100];
    if (place->file->pMethods->xRead(place->file, head, sizeof head, 0) != SQLITE_OK) return false;
    uint32_t page_bytes = be16(head + 16) == 1 ? 65536 : be16(head + 16);
    if (memcmp(head, "SQLite format 3", 16) != 0 || page_bytes < 512 ||
        (page_bytes & (page_bytes - 1)) != 0)
        return false;
    place->page_bytes = page_bytes;
    place->usable = page_bytes - head[20];
    bool plain = head[18] == 1 && head[19] == 1;     /* no WAL */
    bool whole = be32(head + 52) == 0;               /* no auto_vacuum */
    bool known = be32(head + 20) << 8 == 0x40202000; /* the only payload fractions */
    return plain && whole && known && place->usable >= 480 &&
           place->count <= file_bytes / page_bytes;
}

/* The map of the file, or of as much as SQLite maps. */
static void map_file(struct in_place *place, int64_t file_bytes) {
    enum { MOST_MAPPED = 0x7fff0000 };
    const sqlite3_io_methods *methods = place->file->pMethods;
    int bytes = file_bytes < MOST_MAPPED ? (int)file_bytes : MOST_MAPPED;
    void *map = NULL;
    if (methods->iVersion < 3 || methods->xFetch(place->file, 0, bytes, &map) != SQLITE_OK || !map)
        return;
    place->map = map;
    place->mapped = (uint32_t)bytes / place->page_bytes;
}

static bool look(struct in_place *place, const char *table) {
    struct err ignored;
    int64_t count, root;
    sqlite3_int64 file_bytes;
    char sql[160];
    sqlite3_snprintf(sizeof sql, sql,
                     "SELECT rootpage FROM sqlite_schema WHERE type = 'table' AND name = %Q",
                     table);
    if (!db_int(place->db, sql, &root, &ignored) ||
        !db_int(place->db, "PRAGMA page_count", &count, &ignored) || root < 2 || count < 2 ||
        count > INT32_MAX)
        return false;
    place->root = (uint32_t)root;
    place->count = (uint32_t)count;
    sqlite3_file_control(place->db->handle, "main", SQLITE_FCNTL_FILE_POINTER, &place->file);
    if (!place->file || !place->file->pMethods ||
        place->file->pMethods->xFileSize(place->file, &file_bytes) != SQLITE_OK ||
        !read_header(place, file_bytes))
        return false;
    map_file(place, file_bytes);
    return true;
}

struct in_place *in_place_open(struct db *db, const char *table) {
    struct err ignored;
    struct in_place *place = calloc(1, sizeof *place);
    if (!place || !db_exec(db, "BEGIN", &ignored)) {
        free(place);
        return NULL;
    }
    place->db = db;
    if (look(place, table)) return place;
    in_place_close(place);
    return NULL;
}

void in_place_close(struct in_place *place) {
    struct err ignored;
    if (!place) return;
    if (place->map) place->file->pMethods->xUnfetch(place->file, 0, (void *)(uintptr_t)place->map);
    db_exec(place->db, "COMMIT", &ignored);
    free(place->tree);
    free(place->window);
    free(place->chain);
    free(place);
}

/* ---- records */

/* What is left of a page or record. */
struct bytes {
    const unsigned char *at, *end;
};

/* Section 1.6: big-endian groups of 7 bits, a ninth byte has all 8. False at the end. */
static bool varint(struct bytes *in, uint64_t *value) {
    *value = 0;
    for (int i = 0; i < 9 && in->at < in->end; i++) {
        unsigned char byte = *in->at++;
        *value = i == 8 ? *value << 8 | byte : *value << 7 | (byte & 127);
        if (i == 8 || byte < 128) return true;
    }
    return false;
}

/* Section 2.1: bytes of a value of this serial type; -1 for those that do not exist. */
static int64_t value_bytes(uint64_t type) {
    static const signed char fixed[12] = {0, 1, 2, 3, 4, 6, 8, 8, 0, 0, -1, -1};
    if (type < 12) return fixed[type];
    return type > 2 * (uint64_t)MOST_RECORD + 12 ? -1 : (int64_t)(type - 12) / 2;
}

/* *start <- where in the record the blob of `column` begins. The record's header must be local. */
static bool blob_start(struct bytes record, int column, size_t bytes, uint64_t *start) {
    struct bytes in = record;
    uint64_t head, type = 0;
    if (!varint(&in, &head) || head > (uint64_t)(record.end - record.at)) return false;
    in.end = record.at + head;
    *start = head;
    for (int i = 0; i <= column; i++) {
        if (i > 0) *start += (uint64_t)value_bytes(type);
        if (!varint(&in, &type) || value_bytes(type) < 0) return false;
    }
    return type >= 12 && type % 2 == 0 && value_bytes(type) == (int64_t)bytes;
}

/* ---- the tree (section 1.6) */

enum { INTERIOR = 5, LEAF = 13 };

/* Content of cell i of a page; empty when there is none. */
static struct bytes cell(const struct in_place *place, const unsigned char *page, uint32_t i) {
    uint32_t head = page[0] == LEAF ? 8 : 12, cells = be16(page + 3);
    uint32_t at = be16(page + head + 2 * i);
    if (at < head + 2 * cells || at > place->usable) at = place->usable;
    return (struct bytes){page + at, page + place->usable};
}

/* The key of cell i; an interior one begins with the page of the keys up to it. */
static bool cell_key(const struct in_place *place, const unsigned char *page, uint32_t i,
                     int64_t *key) {
    struct bytes in = cell(place, page, i);
    uint64_t value;
    if (page[0] == LEAF ? !varint(&in, &value) : in.end - in.at < 4) return false;
    if (page[0] == INTERIOR) in.at += 4;
    if (!varint(&in, &value)) return false;
    *key = (int64_t)value;
    return true;
}

/* *i <- the first cell whose key is not below rowid, or the number of cells. */
static bool search(const struct in_place *place, const unsigned char *page, int64_t rowid,
                   uint32_t *i) {
    uint32_t low = 0, high = be16(page + 3), head = page[0] == LEAF ? 8 : 12;
    if (head + 2 * high > place->usable) return false;
    while (low < high) {
        uint32_t middle = (low + high - 1) / 2;
        int64_t key;
        if (!cell_key(place, page, middle, &key)) return false;
        if (key < rowid)
            low = middle + 1;
        else
            high = middle;
        if (key == rowid) low = middle;
    }
    *i = low;
    return true;
}

/* The leaf that may hold a row, and its cell; NULL when there is none. */
static const unsigned char *descend(struct in_place *place, int64_t rowid, uint32_t *i) {
    uint32_t number = place->root;
    for (int depth = 0; depth < DEPTH; depth++) {
        const unsigned char *page = tree_page(place, number);
        if (!page || (page[0] != INTERIOR && page[0] != LEAF) || !search(place, page, rowid, i))
            return NULL;
        if (page[0] == LEAF) return *i < be16(page + 3) ? page : NULL;
        number = be32(*i < be16(page + 3) ? cell(place, page, *i).at : page + 8);
    }
    return NULL;
}

/* Bytes of a record that stay in the leaf (section 1.6: X, M and K of a table leaf). */
static uint32_t local_bytes(uint32_t usable, uint64_t record) {
    uint32_t most = usable - 35, least = (usable - 12) * 32 / 255 - 23;
    if (record <= most) return (uint32_t)record;
    uint32_t fit = least + (uint32_t)((record - least) % (usable - 4));
    return fit <= most ? fit : least;
}

/* Readies the chain behind the local part of the record. */
static bool begin_chain(struct in_place *place, uint64_t spilled, const unsigned char *number) {
    size_t n = (size_t)((spilled + place->usable - 5) / (place->usable - 4));
    place->chained = 0;
    place->chain_pages = n;
    if (n == 0) return true;
    if (n > place->count) return false;
    if (n > place->chain_cap) {
        uint32_t *chain = realloc(place->chain, n * sizeof *chain);
        if (!chain) return false;
        place->chain = chain;
        place->chain_cap = n;
    }
    place->chain[0] = be32(number);
    place->chained = 1;
    return exists(place, place->chain[0]);
}

bool in_place_find(struct in_place *place, int64_t rowid, int column, size_t bytes) {
    uint32_t i;
    uint64_t record, key, start;
    const unsigned char *leaf = descend(place, rowid, &i);
    if (!leaf) return false;
    struct bytes in = cell(place, leaf, i);
    if (!varint(&in, &record) || record > MOST_RECORD || !varint(&in, &key) ||
        (int64_t)key != rowid)
        return false;
    uint32_t local = local_bytes(place->usable, record), spills = local < record ? 4 : 0;
    if (local + spills > (size_t)(in.end - in.at) ||
        !blob_start((struct bytes){in.at, in.at + local}, column, bytes, &start) ||
        start + bytes > record || start > local)
        return false;
    place->local = in.at + start;
    place->local_bytes = local - start < bytes ? local - (size_t)start : bytes;
    return begin_chain(place, record - local, in.at + local);
}

/* ---- rows */

/* The i-th page of the chain. */
static const unsigned char *chain_at(struct in_place *place, size_t i) {
    while (place->chained <= i && i < place->chain_pages) {
        const unsigned char *last = chain_page(place, place->chain[place->chained - 1]);
        if (!last || !exists(place, be32(last))) return NULL;
        place->chain[place->chained++] = be32(last);
    }
    return i < place->chained ? chain_page(place, place->chain[i]) : NULL;
}

/* What lies in one piece from byte `from` of the blob on; empty: nothing to be had. */
static struct bytes piece(struct in_place *place, size_t from) {
    if (from < place->local_bytes)
        return (struct bytes){place->local + from, place->local + place->local_bytes};
    size_t behind = from - place->local_bytes, payload = place->usable - 4;
    const unsigned char *page = chain_at(place, behind / payload);
    if (!page) return (struct bytes){NULL, NULL};
    return (struct bytes){page + 4 + behind % payload, page + place->usable};
}

static bool copy(struct in_place *place, size_t from, size_t n, unsigned char *out) {
    while (n > 0) {
        struct bytes in = piece(place, from);
        size_t part = (size_t)(in.end - in.at) < n ? (size_t)(in.end - in.at) : n;
        if (part == 0) return false;
        memcpy(out, in.at, part);
        from += part;
        out += part;
        n -= part;
    }
    return true;
}

const unsigned char *in_place_rows(struct in_place *place, const struct in_place_rows *want,
                                   size_t *n) {
    size_t from = want->first * want->row_bytes;
    struct bytes in = piece(place, from);
    size_t whole = (size_t)(in.end - in.at) / want->row_bytes;
    if (!in.at) return NULL;
    bool aligned = (uintptr_t)in.at % want->align == 0;
    if (aligned && whole >= want->unit) {
        *n = whole < want->max ? whole - whole % want->unit : want->max;
        return in.at;
    }
    /* the rows around a border alone, unless hardly any would be left between two borders */
    bool pays = aligned && 2 * want->unit * want->row_bytes < place->usable;
    if (pays || from < place->local_bytes)
        *n = (whole + want->unit) / want->unit * want->unit;
    else
        *n = want->max;
    if (*n > want->max) *n = want->max;
    return copy(place, from, *n * want->row_bytes, want->buffer) ? want->buffer : NULL;
}
