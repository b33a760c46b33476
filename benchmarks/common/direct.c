/* Direct mode (backend of Linux 6.1, unhooked stores emulated) in straightforward C: the reference
 * for the speed of a replay. Numbers are those of pvmmu.modes.events and pvmmu.modes.direct.kernel. */
#include <stdint.h>

struct row {
    uint8_t op, cpu, level, again, drops, run_end;
    int16_t slot;
    int32_t mm, walk;
    int64_t table;
    uint64_t va;
    int64_t present;
    uint8_t halves;
};

enum { NOTHING, STORE, LOCKED, UPDATE, UPDATE_TWICE, UPDATE_VA, FLUSH, FLUSH_MULTI, CR3, ANNOUNCE,
       DISMISS, PIN, UNPIN, PIN_ROOT, UNPIN_ROOT, SWITCH_ON, SWITCH_OFF, LAZY_ON, LAZY_OFF,
       TRAP = 20, PRIVOP, FAULT, CHANNEL };
enum { E_STORE = 0, E_LOCKED = 1, E_MMU_UPDATE = 10, E_REQUESTS, E_UPDATE_VA, E_MMUEXT, E_MMUEXT_REQ,
       E_MULTICALL, E_SUBCALLS, E_SUB_UPDATE, E_SUB_REQ, E_SUB_VA, E_SUB_EXT, E_SUB_EXT_REQ, E_CHANNEL,
       E_FAULT = 30, E_PTE = 31, E_PRIVOP = 32, E_CONTINUATION = 36, E_FLUSH = 40, E_FLUSH_ONE,
       E_VALIDATED, E_DROPPED, E_PINNED, E_UNPINNED, E_QUEUED = 50, E_OVERTAKEN };
enum { K_UPDATE, K_VA, K_EXT };
enum { LAZY = 1, SWITCH = 2 };

struct cpu {
    int64_t entries, bytes, callbacks, brackets, loaded;
    int64_t kind[64], size[64];
};

static int64_t *n;
static struct cpu cpus[64];
static int64_t most, room;

static void sent(int kind, int64_t size, int sub) {
    static const int call[] = {E_MMU_UPDATE, E_UPDATE_VA, E_MMUEXT};
    static const int inner[] = {E_SUB_UPDATE, E_SUB_VA, E_SUB_EXT};
    n[sub ? inner[kind] : call[kind]]++;
    if (kind == K_UPDATE) n[sub ? E_SUB_REQ : E_REQUESTS] += size;
    if (kind == K_EXT) n[sub ? E_SUB_EXT_REQ : E_MMUEXT_REQ] += size;
}

static void flush(struct cpu *c) {
    if (c->entries == 1) {
        sent(c->kind[0], c->size[0], 0);
    } else if (c->entries > 0) {
        n[E_MULTICALL]++;
        n[E_SUBCALLS] += c->entries;
        for (int64_t i = 0; i < c->entries; i++) sent(c->kind[i], c->size[i], 1);
    }
    c->entries = c->bytes = c->callbacks = 0;
}

static void entry(struct cpu *c, int kind, int64_t bytes) {
    if (c->entries == most || c->bytes + bytes > room) flush(c);
    c->kind[c->entries] = kind;
    c->size[c->entries++] = 1;
    c->bytes += bytes;
}

static void extend(struct cpu *c, int kind, int64_t bytes) {
    int64_t last = c->entries - 1;
    if (last >= 0 && c->kind[last] == kind && c->bytes + bytes <= room) {
        c->size[last]++;
        c->bytes += bytes;
    } else {
        entry(c, kind, bytes);
    }
}

static void callback(struct cpu *c) {
    if (c->callbacks == most) flush(c);
    c->callbacks++;
}

static void issue(struct cpu *c, int64_t bracket) {
    if (bracket) n[E_QUEUED]++;
    else flush(c);
}

static void load_cr3(struct cpu *c, int64_t brackets) {
    extend(c, K_EXT, 24);
    callback(c);
    extend(c, K_EXT, 24);
    n[E_FLUSH]++;
    issue(c, brackets & SWITCH);
}

static void page(struct cpu *c, int pins, int unpins) {
    if (unpins) extend(c, K_EXT, 24);
    entry(c, K_VA, 0);
    if (pins) extend(c, K_EXT, 24);
    if (pins || unpins) callback(c);
}

static void pin(struct cpu *c, const struct row *r, const int64_t *start, const uint8_t *level, int on) {
    int64_t a = r->walk >= 0 ? start[r->walk] : 0, b = r->walk >= 0 ? start[r->walk + 1] : 0;
    if (!on) {
        extend(c, K_EXT, 24);
        extend(c, K_EXT, 24);
        page(c, 0, 0);
    }
    for (int64_t i = a; i < b; i++) page(c, on && level[i] == 1, !on && level[i] == 1);
    page(c, 0, 0);
    if (on) {
        extend(c, K_EXT, 24);
        page(c, 0, 0);
        extend(c, K_EXT, 24);
    }
    n[on ? E_PINNED : E_UNPINNED] += b - a + 2;
    n[on ? E_VALIDATED : E_DROPPED] += r->present > 0 ? r->present : 0;
    n[E_FLUSH]++;
    flush(c);
}

int row_size(void) { return sizeof(struct row); }

void run(const struct row *rows, const uint8_t *carrier, const int64_t *times, int64_t length,
         const int64_t *start, const uint8_t *level, int64_t n_cpus, int64_t entries, int64_t bytes,
         int load_cr3_op, int flush_one_op, int64_t *counts) {
    n = counts;
    most = entries;
    room = bytes;
    for (int i = 0; i < n_cpus; i++) cpus[i] = (struct cpu){.loaded = -1};
    for (int64_t i = 0; i < length; i++) {
        const struct row *r = &rows[i];
        struct cpu *c = &cpus[r->cpu];
        switch (carrier[i]) {
        case NOTHING: continue;
        case STORE: n[E_STORE] += times[i]; break;
        case LOCKED: n[E_LOCKED] += times[i]; break;
        case UPDATE:
            if (r->level == 1 && !(c->brackets & LAZY)) {
                n[E_MMU_UPDATE]++;
                n[E_REQUESTS]++;
                break;
            } /* fall through */
        case UPDATE_TWICE:
            extend(c, K_UPDATE, 16);
            if (carrier[i] == UPDATE_TWICE) extend(c, K_UPDATE, 16);
            issue(c, c->brackets & LAZY);
            if (r->drops) n[E_CONTINUATION] += carrier[i] == UPDATE_TWICE ? 2 : 1;
            break;
        case TRAP:
            if (c->entries > 0) n[E_OVERTAKEN]++;
            n[E_PTE] += times[i];
            break;
        case LAZY_ON: c->brackets |= LAZY; break;
        case LAZY_OFF: c->brackets &= ~LAZY; flush(c); break;
        case SWITCH_ON: c->brackets |= SWITCH; break;
        case SWITCH_OFF: c->brackets &= ~SWITCH; flush(c); break;
        case FLUSH:
            for (int64_t k = 0; k < times[i]; k++) {
                entry(c, K_EXT, 24);
                n[r->op == flush_one_op ? E_FLUSH_ONE : E_FLUSH]++;
                issue(c, c->brackets & LAZY);
            }
            break;
        case FLUSH_MULTI:
            entry(c, K_EXT, 32);
            n[E_FLUSH]++;
            issue(c, c->brackets & LAZY);
            break;
        case CR3: load_cr3(c, c->brackets); break;
        case ANNOUNCE: case DISMISS: {
            int comes = carrier[i] == ANNOUNCE, pins = r->level == 1 && !r->again;
            n[comes ? E_PINNED : E_UNPINNED]++;
            for (int turn = 0; turn < 2; turn++) {
                if ((turn == 0) == comes) entry(c, K_VA, 0);
                else if (pins) entry(c, K_EXT, 24);
            }
            issue(c, c->brackets & LAZY);
            break;
        }
        case PIN: case PIN_ROOT:
            pin(c, r, start, level, 1);
            if (r->op == load_cr3_op) load_cr3(c, c->brackets);
            break;
        case UNPIN: case UNPIN_ROOT:
            for (int64_t t = 0; t < n_cpus; t++) {
                int64_t k = (r->cpu + t) % n_cpus;
                if (cpus[k].loaded == r->mm) {
                    if (k != r->cpu) n[E_CHANNEL]++;
                    load_cr3(&cpus[k], 0);
                    cpus[k].loaded = 0;
                }
            }
            pin(c, r, start, level, 0);
            break;
        case PRIVOP: n[E_PRIVOP] += times[i]; break;
        case FAULT: n[E_FAULT]++; break;
        case CHANNEL: n[E_CHANNEL] += times[i]; break;
        }
        if (r->op == load_cr3_op) c->loaded = r->mm;
    }
}
