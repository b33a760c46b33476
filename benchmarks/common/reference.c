/* C references for the benchmarks: what a careful C programmer gets on one core.
 *
 * TLB: level 1 has 16 sets of 4 ways, level 2 128 sets of 12 ways, both true LRU; level 2 is looked
 * up on a miss in level 1, what is missing is inserted in both. All kernels count the same.
 */
#include <stddef.h>
#include <stdint.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
typedef uint64_t u64;
#define INLINE static inline __attribute__((always_inline))
#define NONE (~0ULL)

/* search, then shift */
INLINE int search_shift(u64 *restrict t, u64 v, int ways) {
    if (t[0] == v) return 1;
    for (int w = 1; w < ways; w++)
        if (t[w] == v) {
            for (int k = w; k > 0; k--) t[k] = t[k - 1];
            t[0] = v;
            return 1;
        }
    for (int k = ways - 1; k > 0; k--) t[k] = t[k - 1];
    t[0] = v;
    return 0;
}

/* shift while searching */
INLINE int carry(u64 *restrict t, u64 v, int ways) {
    u64 c = t[0];
    if (c == v) return 1;
    t[0] = v;
    for (int w = 1; w < ways; w++) {
        u64 x = t[w];
        t[w] = c;
        if (x == v) return 1;
        c = x;
    }
    return 0;
}

#define TLB(name, first, second, w2, skip)                                        \
    void name(const u64 *trace, size_t n, u64 *l1, u64 *l2, u64 *out) {           \
        u64 m1 = 0, m2 = 0, last = NONE;                                          \
        for (size_t i = 0; i < n; i++) {                                          \
            u64 v = trace[i];                                                     \
            if (skip) { if (v == last) continue; last = v; }                      \
            if (!first(l1 + (v & 15) * 4, v, 4)) {                                \
                m1++;                                                             \
                if (!second(l2 + (v & 127) * w2, v, 12)) m2++;                    \
            }                                                                     \
        }                                                                         \
        out[0] = m1; out[1] = m2;                                                 \
    }
TLB(tlb_search, search_shift, search_shift, 12, 0)
TLB(tlb_search_skip, search_shift, search_shift, 12, 1)
TLB(tlb_carry, carry, carry, 12, 0)
TLB(tlb_carry_skip, carry, carry, 12, 1)

#ifdef __AVX512F__
int has_vectors(void) { return 1; }
INLINE int vector4(u64 *t, u64 v, int ways) {
    (void)ways;
    __m256i x = _mm256_load_si256((__m256i *)t), q = _mm256_set1_epi64x(v);
    uint32_t m = _mm256_cmpeq_epi64_mask(x, q), k = m | 8;
    k ^= k - 1;
    __m256i y = _mm256_mask_mov_epi64(x, k, _mm256_alignr_epi64(x, q, 3));
    asm("" : "+x"(y)); /* a full store: a masked one defeats store-to-load forwarding */
    _mm256_store_si256((__m256i *)t, y);
    return m != 0;
}
INLINE int first_then_vector4(u64 *t, u64 v, int ways) {
    return t[0] == v || vector4(t, v, ways);
}
INLINE int vector12(u64 *t, u64 v, int ways) { /* 12 of 16 lanes */
    (void)ways;
    __m512i x = _mm512_load_si512(t), y = _mm512_load_si512(t + 8), q = _mm512_set1_epi64(v);
    uint32_t m = _mm512_cmpeq_epi64_mask(x, q) | (uint32_t)_mm512_cmpeq_epi64_mask(y, q) << 8;
    m &= 0xfff;
    uint32_t k = m | 0x800;
    k ^= k - 1;
    __m512i a = _mm512_mask_mov_epi64(x, k, _mm512_alignr_epi64(x, q, 7));
    __m512i b = _mm512_mask_mov_epi64(y, k >> 8, _mm512_alignr_epi64(y, x, 7));
    asm("" : "+v"(a), "+v"(b));
    _mm512_store_si512(t, a);
    _mm512_store_si512(t + 8, b);
    return m != 0;
}
TLB(tlb_vector, vector4, vector12, 16, 0)
TLB(tlb_vector_skip, vector4, vector12, 16, 1)
TLB(tlb_first_vector, first_then_vector4, vector12, 16, 0)
TLB(tlb_hybrid, carry, vector12, 16, 0)
TLB(tlb_hybrid_skip, carry, vector12, 16, 1)
#else
int has_vectors(void) { return 0; }
#endif

/* one level, any geometry */
u64 tlb_one(const u64 *trace, size_t n, u64 *tags, u64 sets, int ways) {
    u64 misses = 0;
    for (size_t i = 0; i < n; i++)
        misses += !search_shift(tags + (trace[i] & (sets - 1)) * ways, trace[i], ways);
    return misses;
}

/* ---- page walks in 4-level tables; words is physical memory ---- */
#define ADDRESS 0x000FFFFFFFFFF000ULL
#define INDEX(va, level) ((va) >> (12 + 9 * ((level)-1)) & 511)

/* accessed and dirty flags are set where they are not */
INLINE u64 flagged(u64 *entry, u64 flags) {
    u64 e = *entry;
    if (flags & ~e) *entry = e |= flags;
    return e;
}

void walk(u64 *words, u64 root, const u64 *va, const uint8_t *write, size_t n, u64 *pa) {
    for (size_t i = 0; i < n; i++) {
        u64 v = va[i], table = root, out = 0;
        for (int level = 4; level > 0; level--) {
            u64 *at = words + (table >> 3) + INDEX(v, level), e = *at;
            if (!(e & 1)) break;
            int leaf = level == 1 || (level < 4 && e & 0x80);
            e = flagged(at, leaf && write[i] ? 0x60 : 0x20);
            u64 offset = (1ULL << (12 + 9 * (level - 1))) - 1;
            if (leaf) { out = (e & ADDRESS & ~offset) | (v & offset); break; }
            table = e & ADDRESS;
        }
        pa[i] = out;
    }
}

/* without flags, levels written out */
void walk_bare(const u64 *words, u64 root, const u64 *va, size_t n, u64 *pa) {
    for (size_t i = 0; i < n; i++) {
        u64 v = va[i], e = words[(root >> 3) + INDEX(v, 4)];
        pa[i] = 0;
        if (!(e & 1)) continue;
        e = words[((e & ADDRESS) >> 3) + INDEX(v, 3)];
        if (!(e & 1)) continue;
        if (e & 0x80) { pa[i] = (e & ADDRESS & ~0x3fffffffULL) | (v & 0x3fffffff); continue; }
        e = words[((e & ADDRESS) >> 3) + INDEX(v, 2)];
        if (!(e & 1)) continue;
        if (e & 0x80) { pa[i] = (e & ADDRESS & ~0x1fffffULL) | (v & 0x1fffff); continue; }
        e = words[((e & ADDRESS) >> 3) + INDEX(v, 1)];
        if (e & 1) pa[i] = (e & ADDRESS) | (v & 0xfff);
    }
}

/* guest-physical to host-physical in 4-level EPT; NONE: a violation */
INLINE u64 second(u64 *words, u64 root, u64 gpa, int keep, int write) {
    u64 table = root;
    for (int level = 4; level > 0; level--) {
        u64 *at = words + (table >> 3) + INDEX(gpa, level), e = *at;
        if (!(e & 7)) return NONE;
        int leaf = level == 1 || (level < 4 && e & 0x80);
        if (keep) e = flagged(at, leaf && write ? 0x300 : 0x100);
        u64 offset = (1ULL << (12 + 9 * (level - 1))) - 1;
        if (leaf) return (e & ADDRESS & ~offset) | (gpa & offset);
        table = e & ADDRESS;
    }
    return NONE;
}

INLINE void nested(u64 *words, u64 ept, u64 root, const u64 *va, const uint8_t *write, size_t n,
                   u64 *pa, int keep) {
    for (size_t i = 0; i < n; i++) {
        u64 v = va[i], gpa = root, out = 0;
        for (int level = 4; level > 0; level--) {
            u64 h = second(words, ept, gpa + 8 * INDEX(v, level), keep, 1);
            if (h == NONE) break;
            u64 *at = words + (h >> 3), e = *at;
            if (!(e & 1)) break;
            if (keep) e = flagged(at, level == 1 && write[i] ? 0x60 : 0x20);
            gpa = e & ADDRESS;
            if (level == 1) {
                h = second(words, ept, gpa | (v & 0xfff), keep, write[i]);
                out = h == NONE ? 0 : h;
            }
        }
        pa[i] = out;
    }
}
void walk_nested(u64 *words, u64 ept, u64 root, const u64 *va, const uint8_t *write, size_t n,
                 u64 *pa) {
    nested(words, ept, root, va, write, n, pa, 1);
}
void walk_nested_bare(u64 *words, u64 ept, u64 root, const u64 *va, const uint8_t *write, size_t n,
                      u64 *pa) {
    nested(words, ept, root, va, write, n, pa, 0);
}
