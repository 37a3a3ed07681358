/* pickle.c - a reader of the pickle subset that torch.save and plain containers use */
#include "traces/pickle.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STACK_MAX = 1 << 22 };

struct reader {
    struct arena *arena;
    const unsigned char *at, *end;
    struct pickle **stack; /* owned */
    int depth, stack_cap;
    int *marks; /* owned */
    int mark_count, mark_cap;
    struct pickle **memo; /* owned */
    size_t memo_cap;
    size_t memo_next; /* of MEMOIZE */
    size_t memo_most; /* picklers count from 0 or 1, and each entry takes bytes of the file */
    bool failed;
    struct err *err;
};

static bool refuse(struct reader *r, const char *what) {
    if (!r->failed) err_set(r->err, ERR_FORMAT, "pickle: %s", what);
    r->failed = true;
    return false;
}

/* ---- bytes, stack, memo */

static const unsigned char *take(struct reader *r, uint64_t n) {
    if (n > (uint64_t)(r->end - r->at)) {
        refuse(r, "found its end too early (truncated?)");
        return NULL;
    }
    const unsigned char *bytes = r->at;
    r->at += n;
    return bytes;
}

static uint64_t number(struct reader *r, int bytes) {
    const unsigned char *at = take(r, (uint64_t)bytes);
    uint64_t value = 0;
    for (int i = bytes - 1; at && i >= 0; i--) value = value << 8 | at[i];
    return value;
}

static struct pickle *value(struct reader *r, enum pickle_kind kind) {
    struct pickle *p = arena_alloc(r->arena, 1, sizeof *p);
    if (!p) {
        refuse(r, "out of memory");
        return NULL;
    }
    p->kind = kind;
    return p;
}

static void push(struct reader *r, struct pickle *p) {
    if (!p || r->failed) return;
    if (r->depth == r->stack_cap) {
        int cap = r->stack_cap ? r->stack_cap * 2 : 256;
        struct pickle **stack =
            cap <= STACK_MAX ? realloc(r->stack, (size_t)cap * sizeof *stack) : NULL;
        if (!stack) {
            refuse(r, "stack too deep");
            return;
        }
        r->stack = stack;
        r->stack_cap = cap;
    }
    r->stack[r->depth++] = p;
}

/* Never below the last mark. */
static struct pickle *pop(struct reader *r) {
    int floor = r->mark_count ? r->marks[r->mark_count - 1] : 0;
    if (r->depth > floor) return r->stack[--r->depth];
    refuse(r, "found an empty stack");
    return NULL;
}

static struct pickle *top(struct reader *r) {
    if (r->depth > 0) return r->stack[r->depth - 1];
    refuse(r, "found an empty stack");
    return NULL;
}

static void set_mark(struct reader *r) {
    if (r->mark_count == r->mark_cap) {
        int cap = r->mark_cap ? r->mark_cap * 2 : 64;
        int *marks = cap <= STACK_MAX ? realloc(r->marks, (size_t)cap * sizeof *marks) : NULL;
        if (!marks) {
            refuse(r, "too many marks");
            return;
        }
        r->marks = marks;
        r->mark_cap = cap;
    }
    r->marks[r->mark_count++] = r->depth;
}

/* Everything above the last mark; the stack is cut there. */
static struct pickle **from_mark(struct reader *r, int *count) {
    *count = 0;
    if (!r->mark_count) {
        refuse(r, "found no mark");
        return NULL;
    }
    int mark = r->marks[--r->mark_count];
    if (mark > r->depth) {
        refuse(r, "found a mark above the stack");
        return NULL;
    }
    *count = r->depth - mark;
    r->depth = mark;
    static struct pickle *nothing[1]; /* a stack that never held anything */
    return r->stack ? r->stack + mark : nothing;
}

static void memo_put(struct reader *r, uint64_t index) {
    struct pickle *p = top(r);
    if (!p) return;
    if (index > r->memo_most) {
        refuse(r, "found a memo index above the number of bytes");
        return;
    }
    if (index >= r->memo_cap) {
        size_t cap = r->memo_cap ? r->memo_cap : 256;
        while (cap <= index) cap *= 2;
        struct pickle **memo = realloc(r->memo, cap * sizeof *memo);
        if (!memo) {
            refuse(r, "out of memory");
            return;
        }
        memset(memo + r->memo_cap, 0, (cap - r->memo_cap) * sizeof *memo);
        r->memo = memo;
        r->memo_cap = cap;
    }
    r->memo[index] = p;
    r->memo_next = (size_t)index + 1;
}

static void memo_get(struct reader *r, uint64_t index) {
    if (index < r->memo_cap && r->memo[index])
        push(r, r->memo[index]);
    else
        refuse(r, "found an unknown memo index");
}

/* ---- building */

static void push_int(struct reader *r, int64_t x) {
    struct pickle *p = value(r, PICKLE_INT);
    if (p) p->integer = x;
    if (p) p->real = (double)x;
    push(r, p);
}

static void push_bytes(struct reader *r, uint64_t n) {
    const unsigned char *bytes = take(r, n);
    struct pickle *p = bytes ? value(r, PICKLE_TEXT) : NULL;
    if (!p) return;
    p->text = arena_text(r->arena, (const char *)bytes, (size_t)n);
    p->len = (size_t)n;
    if (p->text)
        push(r, p);
    else
        refuse(r, "out of memory");
}

static void push_long(struct reader *r, uint64_t n) {
    const unsigned char *bytes = take(r, n);
    uint64_t x = n && bytes && bytes[n - 1] & 0x80 ? UINT64_MAX : 0;
    if (!bytes) return;
    if (n > 8) {
        push(r, value(r, PICKLE_OPAQUE)); /* beyond 64 bits: nothing that we read */
        return;
    }
    for (uint64_t i = n; i-- > 0;) x = x << 8 | bytes[i];
    push_int(r, (int64_t)x);
}

static void push_real(struct reader *r) { /* big-endian */
    const unsigned char *bytes = take(r, 8);
    struct pickle *p = bytes ? value(r, PICKLE_REAL) : NULL;
    uint64_t bits = 0;
    for (int i = 0; p && i < 8; i++) bits = bits << 8 | bytes[i];
    if (p) memcpy(&p->real, &bits, 8);
    push(r, p);
}

static void append(struct reader *r, struct pickle *to, struct pickle *item) {
    if (!to || !item) return;
    if (to->count == to->cap) {
        int cap = to->cap ? to->cap * 2 : 8;
        struct pickle **items =
            cap < 1 << 29 ? arena_alloc(r->arena, (size_t)cap, sizeof *items) : NULL;
        if (!items) {
            refuse(r, "out of memory");
            return;
        }
        if (to->count) memcpy(items, to->items, (size_t)to->count * sizeof *items);
        to->items = items;
        to->cap = cap;
    }
    to->items[to->count++] = item;
}

/* New container of the last n values, or of those above the mark (n < 0). */
static void collect(struct reader *r, enum pickle_kind kind, int n) {
    struct pickle *p = value(r, kind), *parts[3];
    struct pickle **items = parts;
    if (n < 0)
        items = from_mark(r, &n);
    else
        for (int i = n - 1; i >= 0; i--) parts[i] = pop(r);
    for (int i = 0; !r->failed && i < n; i++) append(r, p, items[i]);
    push(r, p);
}

/* Items above the mark go into the container below it. */
static void extend(struct reader *r, enum pickle_kind kind) {
    int n;
    struct pickle **items = from_mark(r, &n), *to = items ? top(r) : NULL;
    if (!to) return;
    if (to->kind == PICKLE_OPAQUE) return;
    if (to->kind != kind || (kind == PICKLE_DICT && n % 2)) {
        refuse(r, "found items for something that takes none");
        return;
    }
    for (int i = 0; i < n; i++) append(r, to, items[i]);
}

static void set_one(struct reader *r, enum pickle_kind kind) {
    struct pickle *item = pop(r), *key = kind == PICKLE_DICT ? pop(r) : NULL, *to = top(r);
    if (!to || to->kind == PICKLE_OPAQUE) return;
    if (to->kind != kind)
        refuse(r, "found an item for something that takes none");
    else {
        if (key) append(r, to, key);
        append(r, to, item);
    }
}

static void push_global(struct reader *r, const char *module, size_t n, const char *name,
                        size_t m) {
    struct pickle *p = value(r, PICKLE_GLOBAL);
    char *text = p ? arena_alloc(r->arena, n + m + 2, 1) : NULL;
    if (!text) {
        refuse(r, "out of memory");
        return;
    }
    memcpy(text, module, n);
    text[n] = '.';
    memcpy(text + n + 1, name, m);
    p->text = text;
    push(r, p);
}

/* Two lines: module and name. */
static void read_global(struct reader *r) {
    const char *module = (const char *)r->at;
    const char *first = memchr(module, '\n', (size_t)(r->end - r->at));
    const char *name = first ? first + 1 : NULL;
    const char *last = first ? memchr(name, '\n', (size_t)((const char *)r->end - name)) : NULL;
    if (!last) {
        refuse(r, "found a name without end");
        return;
    }
    r->at = (const unsigned char *)last + 1;
    push_global(r, module, (size_t)(first - module), name, (size_t)(last - name));
}

/* ---- what torch writes */

/* ('storage', <type>, key, location, elements) */
static void persistent(struct reader *r) {
    const struct pickle *id = pop(r);
    struct pickle *p = value(r, PICKLE_STORAGE);
    if (!id || !p) return;
    bool known = id->kind == PICKLE_LIST && id->count >= 5 && id->items[1]->kind == PICKLE_GLOBAL &&
                 id->items[2]->kind == PICKLE_TEXT && id->items[4]->kind == PICKLE_INT;
    const char *dot = known ? strrchr(id->items[1]->text, '.') : NULL; /* none behind a NUL */
    if (!dot) {
        refuse(r, "found a persistent id that is no storage");
        return;
    }
    p->type = dot + 1;
    p->text = id->items[2]->text;
    p->elements = id->items[4]->integer;
    push(r, p);
}

/* (storage, offset, size, stride, ...): C order is required. */
static struct pickle *tensor(struct reader *r, const struct pickle *arguments) {
    struct pickle *p = value(r, PICKLE_TENSOR), **a = arguments->items;
    if (!p || arguments->count < 4 || a[0]->kind != PICKLE_STORAGE || a[1]->kind != PICKLE_INT ||
        a[2]->kind != PICKLE_LIST || a[3]->kind != PICKLE_LIST || a[2]->count > PICKLE_MAX_RANK ||
        a[3]->count != a[2]->count) {
        refuse(r, "found a damaged tensor");
        return NULL;
    }
    p->type = a[0]->type;
    p->text = a[0]->text;
    p->elements = a[0]->elements;
    p->offset = a[1]->integer;
    p->rank = a[2]->count;
    int64_t step = 1;
    for (int i = p->rank - 1; i >= 0; i--) {
        const struct pickle *n = a[2]->items[i], *stride = a[3]->items[i];
        if (n->kind != PICKLE_INT || stride->kind != PICKLE_INT || n->integer < 0 ||
            n->integer > INT64_C(1) << 40 || step > INT64_C(1) << 44) {
            refuse(r, "found a damaged tensor");
            return NULL;
        }
        if (n->integer > 1 && stride->integer != step)
            refuse(r, "found a tensor that is not contiguous");
        p->shape[i] = n->integer;
        step *= n->integer ? n->integer : 1;
    }
    return p;
}

/* numpy.dtype("i8", ...): its name, marked so that scalar() finds it. */
static struct pickle *dtype(struct reader *r, const struct pickle *arguments) {
    static const char mark[] = "dtype";
    struct pickle *p = value(r, PICKLE_TEXT);
    const struct pickle *name = arguments->count ? arguments->items[0] : NULL;
    if (!p) return NULL;
    p->text = name && name->kind == PICKLE_TEXT ? name->text : "";
    p->len = strlen(p->text);
    p->type = mark;
    return p;
}

/* numpy.core.multiarray.scalar(dtype, bytes): little-endian integers; others stay opaque. */
static struct pickle *scalar(struct reader *r, const struct pickle *arguments) {
    struct pickle **a = arguments->items, *p = value(r, PICKLE_OPAQUE);
    if (!p || arguments->count != 2 || a[0]->kind != PICKLE_TEXT || !a[0]->type ||
        a[1]->kind != PICKLE_TEXT || (*a[0]->text != 'i' && *a[0]->text != 'u') || a[1]->len < 1 ||
        a[1]->len > 8)
        return p;
    uint64_t bits = 0;
    size_t n = a[1]->len;
    for (size_t i = n; i-- > 0;) bits = bits << 8 | (unsigned char)a[1]->text[i];
    if (a[0]->text[0] == 'i' && n < 8 && bits >> (8 * n - 1)) bits |= UINT64_MAX << 8 * n;
    p->kind = PICKLE_INT;
    p->integer = (int64_t)bits;
    p->real = (double)p->integer;
    return p;
}

/* The state of a dtype says its byte order; other states are of objects that we do not make. */
static void build_state(struct reader *r) {
    const struct pickle *state = pop(r);
    struct pickle *p = top(r);
    if (!state || !p || p->kind != PICKLE_TEXT || !p->type) return;
    if (state->kind == PICKLE_LIST && state->count > 1 && state->items[1]->kind == PICKLE_TEXT &&
        strcmp(state->items[1]->text, ">") == 0)
        p->type = NULL;
}

static bool is_named(const struct pickle *global, const char *const *names) {
    for (; *names; names++)
        if (global->kind == PICKLE_GLOBAL && strcmp(global->text, *names) == 0) return true;
    return false;
}

/* callable(arguments): recognised by name, never called. */
static void reduce(struct reader *r) {
    static const char *const tensors[] = {"torch._utils._rebuild_tensor_v2", NULL};
    static const char *const parameters[] = {"torch._utils._rebuild_parameter", NULL};
    static const char *const same[] = {"torch.Size",          "builtins.list",    "builtins.tuple",
                                       "collections.Counter", "__builtin__.list", NULL};
    static const char *const dtypes[] = {"numpy.dtype", NULL};
    static const char *const scalars[] = {"numpy.core.multiarray.scalar",
                                          "numpy._core.multiarray.scalar", NULL};
    static const char *const dicts[] = {"collections.OrderedDict", "collections.Counter",
                                        "collections.defaultdict", "builtins.dict", NULL};
    struct pickle *arguments = pop(r), *callable = pop(r);
    if (!arguments || !callable) return;
    struct pickle *first =
        arguments->kind == PICKLE_LIST && arguments->count ? arguments->items[0] : NULL;
    if (arguments->kind == PICKLE_LIST && is_named(callable, tensors))
        push(r, tensor(r, arguments));
    else if (first && is_named(callable, dtypes))
        push(r, dtype(r, arguments));
    else if (first && is_named(callable, scalars))
        push(r, scalar(r, arguments));
    else if (first && is_named(callable, parameters))
        push(r, first);
    else if (first && is_named(callable, same) &&
             (first->kind == PICKLE_LIST || first->kind == PICKLE_DICT))
        push(r, first);
    else
        push(r, value(r, is_named(callable, dicts) ? PICKLE_DICT : PICKLE_OPAQUE));
}

/* STACK_GLOBAL: module and name are values. */
static void stack_global(struct reader *r) {
    const struct pickle *name = pop(r), *module = pop(r);
    if (!name || !module) return;
    if (name->kind != PICKLE_TEXT || module->kind != PICKLE_TEXT)
        refuse(r, "found a damaged name");
    else
        push_global(r, module->text, strlen(module->text), name->text, strlen(name->text));
}

static void push_bool(struct reader *r, bool yes) {
    struct pickle *p = value(r, PICKLE_BOOL);
    if (p) p->integer = yes;
    push(r, p);
}

/* Numbers, texts, none. False when the opcode is another. */
static bool step_value(struct reader *r, int op) {
    switch (op) {
    case 'N':
        return push(r, value(r, PICKLE_NONE)), true;
    case 0x88:
        return push_bool(r, true), true;
    case 0x89:
        return push_bool(r, false), true;
    case 'J':
        return push_int(r, (int32_t)number(r, 4)), true;
    case 'K':
        return push_int(r, (int64_t)number(r, 1)), true;
    case 'M':
        return push_int(r, (int64_t)number(r, 2)), true;
    case 0x8a:
        return push_long(r, number(r, 1)), true;
    case 'G':
        return push_real(r), true;
    case 'X':
    case 'T':
    case 'B':
        return push_bytes(r, number(r, 4)), true;
    case 0x8c:
    case 'U':
    case 'C':
        return push_bytes(r, number(r, 1)), true;
    case 0x8d:
    case 0x8e:
        return push_bytes(r, number(r, 8)), true;
    default:
        return false;
    }
}

/* Lists, tuples, dicts and what goes into them. */
static bool step_container(struct reader *r, int op) {
    switch (op) {
    case ']':
    case ')':
    case 0x8f:
        return push(r, value(r, PICKLE_LIST)), true;
    case '}':
        return push(r, value(r, PICKLE_DICT)), true;
    case 't':
    case 'l':
        return collect(r, PICKLE_LIST, -1), true;
    case 'd':
        return collect(r, PICKLE_DICT, -1), true;
    case 0x85:
        return collect(r, PICKLE_LIST, 1), true;
    case 0x86:
        return collect(r, PICKLE_LIST, 2), true;
    case 0x87:
        return collect(r, PICKLE_LIST, 3), true;
    case 'a':
        return set_one(r, PICKLE_LIST), true;
    case 's':
        return set_one(r, PICKLE_DICT), true;
    case 'e':
    case 0x90:
        return extend(r, PICKLE_LIST), true;
    case 'u':
        return extend(r, PICKLE_DICT), true;
    default:
        return false;
    }
}

/* Stack, memo, names and objects. */
static bool step_machine(struct reader *r, int op) {
    switch (op) {
    case 0x80:
        return take(r, 1), true; /* PROTO */
    case 0x95:
        return take(r, 8), true; /* FRAME */
    case '(':
        return set_mark(r), true;
    case '0':
        return pop(r), true;
    case 'b':
        return build_state(r), true;
    case 'q':
        return memo_put(r, number(r, 1)), true;
    case 'r':
        return memo_put(r, number(r, 4)), true;
    case 0x94:
        return memo_put(r, r->memo_next), true;
    case 'h':
        return memo_get(r, number(r, 1)), true;
    case 'j':
        return memo_get(r, number(r, 4)), true;
    case 'c':
        return read_global(r), true;
    case 0x93:
        return stack_global(r), true;
    case 'R':
    case 0x81:
        return reduce(r), true;
    case 'Q':
        return persistent(r), true;
    default:
        return false;
    }
}

/* One opcode; false at STOP or after an error. */
static bool step(struct reader *r) {
    const unsigned char *op = take(r, 1);
    char text[64];
    if (!op || *op == '.') return false;
    if (!step_value(r, *op) && !step_container(r, *op) && !step_machine(r, *op)) {
        snprintf(text, sizeof text, "found opcode 0x%02x, which is not read here", *op);
        refuse(r, text);
    }
    return !r->failed;
}

const struct pickle *pickle_read(struct arena *arena, const unsigned char *bytes, size_t len,
                                 struct err *err) {
    struct reader r = {
        .arena = arena, .at = bytes, .end = bytes + len, .memo_most = len, .err = err};
    while (step(&r)) continue;
    if (!r.failed && r.depth != 1) refuse(&r, "found no single value");
    const struct pickle *root = r.failed ? NULL : r.stack[0];
    free(r.stack);
    free(r.marks);
    free(r.memo);
    return root;
}

const struct pickle *pickle_get(const struct pickle *dict, const char *key) {
    if (!dict || dict->kind != PICKLE_DICT) return NULL;
    for (int i = dict->count - 2; i >= 0; i -= 2)
        if (dict->items[i]->kind == PICKLE_TEXT && strcmp(dict->items[i]->text, key) == 0)
            return dict->items[i + 1]->kind == PICKLE_NONE ? NULL : dict->items[i + 1];
    return NULL;
}

/* ---- torch files */

bool torch_recognise(const char *path) {
    struct zip zip;
    struct err ignored;
    if (!zip_open(&zip, path, &ignored)) return false;
    bool found = zip_find(&zip, "/data.pkl") != NULL;
    zip_close(&zip);
    return found;
}

bool torch_open(struct torch_file *file, struct arena *arena, const char *path, struct err *err) {
    *file = (struct torch_file){0};
    if (!zip_open(&file->zip, path, err)) return false;
    const struct zip_member *member = zip_find(&file->zip, "/data.pkl");
    if (!member)
        err_set(err, ERR_FORMAT, "found no data.pkl, expected a file of torch.save");
    else if ((file->bytes = zip_read(member, (size_t)1 << 32, err)))
        file->root = pickle_read(arena, file->bytes, (size_t)member->size_bytes, err);
    if (file->root) return true;
    torch_close(file);
    return err_context(err, "%s", path);
}

void torch_close(struct torch_file *file) {
    zip_close(&file->zip);
    free(file->bytes);
    *file = (struct torch_file){0};
}

const unsigned char *torch_data(const struct torch_file *file, const struct pickle *tensor,
                                int *item_bytes, char *kind, struct err *err) {
    static const struct {
        const char *type;
        int bytes;
        char kind;
    } types[] = {{"FloatStorage", 4, 'f'}, {"HalfStorage", 2, 'f'}, {"BFloat16Storage", 2, 'b'},
                 {"LongStorage", 8, 'i'},  {"IntStorage", 4, 'i'},  {"ShortStorage", 2, 'i'},
                 {"CharStorage", 1, 'i'},  {"ByteStorage", 1, 'u'}};
    char name[128];
    *item_bytes = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (tensor->type && strcmp(types[i].type, tensor->type) == 0) {
            *item_bytes = types[i].bytes;
            *kind = types[i].kind;
        }
    if (!*item_bytes) {
        err_set(err, ERR_UNSUPPORTED, "tensor: found type %.40s",
                tensor->type ? tensor->type : "?");
        return NULL;
    }
    snprintf(name, sizeof name, "/data/%.100s", tensor->text);
    const struct zip_member *member = zip_find(&file->zip, name);
    uint64_t count = 1, bytes = (uint64_t)*item_bytes;
    for (int i = 0; i < tensor->rank; i++) count *= (uint64_t)tensor->shape[i];
    if (!member || member->method != 0 || tensor->offset < 0 ||
        count > member->size_bytes / bytes ||
        (uint64_t)tensor->offset > member->size_bytes / bytes - count) {
        err_set(err, ERR_FORMAT, "tensor: found storage %.40s too short, or none", tensor->text);
        return NULL;
    }
    return member->data + (uint64_t)tensor->offset * bytes;
}
