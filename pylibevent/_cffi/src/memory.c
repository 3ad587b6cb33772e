/* libevent's memory comes from here. libevent 2.1 does not always look whether it got some, and then
 * crashes, loses bytes or goes on without a lock. Around calls of that kind what they may need is
 * stored first; or they are asked afterwards whether they went short, and undone. */
#include "pyle.h"

static __thread struct pyle_store *store; /* of the innermost call that has one */
static __thread int short_of;

static void *from_store(size_t n)
{
    int i;

    for (i = 0; store && i < PYLE_STORE_MOST; ++i)
        if (store->blocks[i] && n <= store->n) {
            void *block = store->blocks[i];
            store->blocks[i] = NULL;
            return block;
        }
    short_of = 1;
    errno = ENOMEM;
    return NULL;
}

static void *get(size_t n)
{
    void *block = malloc(n);

    return block ? block : from_store(n);
}

static void *resize(void *old, size_t n)
{
    void *block = realloc(old, n);

    if (block || old)
        short_of |= !block;
    else
        block = from_store(n);
    return block;
}

static __thread struct pyle_frees *holding;

static void let_go(void *block)
{
    if (!holding || !block)
        free(block);
    else if (holding->n < holding->most)
        holding->blocks[holding->n++] = block;
}

int pyle_frees_hold(struct pyle_frees *f, int most)
{
    f->n = 0;
    f->most = most;
    f->blocks = malloc((size_t)most * sizeof(*f->blocks));
    if (!f->blocks)
        return PYLE_NOMEM;
    holding = f;
    return 0;
}

void pyle_frees_end(void)
{
    holding = NULL;
}

void pyle_frees_release(struct pyle_frees *f)
{
    while (f->n > 0)
        free(f->blocks[--f->n]);
    free(f->blocks);
}

void pyle_memory_init(void)
{
    event_set_mem_functions(get, resize, let_go);
}

int pyle_went_short(void)
{
    int answer = short_of;

    short_of = 0;
    return answer;
}

void pyle_store_open(struct pyle_store *s)
{
    s->outer = store;
    store = s;
}

int pyle_store_fill(struct pyle_store *s, int count, size_t n)
{
    memset(s, 0, sizeof(*s));
    s->n = n;
    pyle_store_open(s);
    while (count-- > 0)
        if (!(s->blocks[count] = malloc(n))) {
            pyle_store_close(s);
            return PYLE_NOMEM;
        }
    return 0;
}

void pyle_store_close(struct pyle_store *s)
{
    int i, error = errno;

    store = s->outer;
    for (i = 0; i < PYLE_STORE_MOST; ++i)
        free(s->blocks[i]);
    errno = error;
}

/* The same for one that stays: what has been taken out of it is put in again. */
int pyle_store_enter(struct pyle_store *s, int count, size_t n)
{
    int i, rc = 0;

    s->n = n;
    for (i = 0; i < count; ++i)
        if (!s->blocks[i] && !(s->blocks[i] = malloc(n)))
            rc = PYLE_NOMEM;
    pyle_store_open(s);
    return rc;
}

void pyle_store_leave(struct pyle_store *s)
{
    store = s->outer;
}
