/* Buffers. One user at a time: evbuffers have no lock of their own here, so each call claims
 * the buffer for its thread (a second thread gets an error, not a corrupt chain), and those of
 * a BEV_OPT_THREADSAFE bufferevent take its lock. No call frees what it is in the middle of. */
#include "pyle.h"

#include <sys/stat.h>
#include <unistd.h>

struct pin {
    long long id;
    struct pin *next;
};

int pyle_pins_waiting;
static struct pin *pins;
static pthread_mutex_t pins_lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- life ---- */

static struct pyle_buf *new_buf(void)
{
    struct pyle_buf *b = calloc(1, sizeof(*b));

    if (b)
        b->refs = 1;
    return b;
}

struct pyle_buf *pyle_buf_new(void)
{
    struct pyle_buf *b = new_buf();

    if (b && !(b->buf = evbuffer_new())) {
        free(b);
        return NULL;
    }
    return b;
}

struct pyle_buf *pyle_buf_of(struct pyle_bev *pv, int input)
{
    struct pyle_buf *b = new_buf();

    if (b) {
        b->buf = input ? bufferevent_get_input(pv->bev) : bufferevent_get_output(pv->bev);
        b->owner = b->kept = pv;
        __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
        b->is_input = input;
    }
    return b;
}

/* Python lets go of what it lent, now that no call of libevent's is under way. */
static void release_pins(void)
{
    if (pyle_pins_waiting && !pyle_exiting && pyle_py_release() != PYLE_DONE)
        pyle_raise(pyle_here);
}

static void free_data(struct pyle_buf *b)
{
    struct evbuffer *buf = b->buf;
    int ours = !b->owner;

    b->buf = NULL;
    b->owner = NULL;
    if (buf && ours)
        evbuffer_free(buf);
}

static int views(struct pyle_buf *b)
{
    return __atomic_load_n(&b->exports, __ATOMIC_ACQUIRE);
}

void pyle_buf_unref(struct pyle_buf *b)
{
    if (__atomic_sub_fetch(&b->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    free_data(b);
    if (b->kept)
        pyle_bev_unref(b->kept);
    free(b);
    release_pins();
}

void pyle_buf_uncall(struct pyle_buf *b)
{
    if (b && b->cb) {
        evbuffer_remove_cb_entry(b->buf, b->cb);
        b->cb = NULL;
    }
}

/* The bufferevent is going. What memoryviews still show stays, out of its reach. */
void pyle_buf_orphan(struct pyle_buf *b, struct evbuffer *buf)
{
    struct evbuffer *rest = NULL;

    pyle_buf_uncall(b);
    if (views(b) > 0 && (rest = evbuffer_new())) {
        evbuffer_unfreeze(buf, 1);
        evbuffer_add_buffer(rest, buf);
    }
    b->closing = 1;
    b->owner = NULL;
    b->buf = rest;
}

/* ---- each call ---- */

static int claim(struct pyle_buf *b)
{
    uintptr_t nobody = 0;

    return __atomic_compare_exchange_n(&b->user, &nobody, PYLE_ME, 0, __ATOMIC_ACQUIRE,
                                       __ATOMIC_ACQUIRE) ||
           nobody == PYLE_ME;
}

static void unclaim(struct pyle_buf *b)
{
    if (b->depth == 0)
        __atomic_store_n(&b->user, 0, __ATOMIC_RELEASE);
}

int pyle_buf_enter(struct pyle_call *c, struct pyle_buf *b, int changes)
{
    struct pyle_bev *pv = b->kept;
    int rc = 0;

    c->b = b;
    c->pv = NULL;
    c->locked = 0;
    if (pyle_sync >= PYLE_DEEPEST)
        return PYLE_DEEP;
    if (pv && !b->closing) {
        rc = pyle_bev_begin(pv, &c->use);
        if (rc < 0)
            return rc;
        c->pv = pv;
        c->locked = pv->options & BEV_OPT_THREADSAFE;
        if (c->locked)
            bufferevent_lock(c->use.bev);
    }
    if (!claim(b)) {
        rc = PYLE_THREAD;
    } else {
        if (!b->buf || b->closing)
            rc = PYLE_CLOSED;
        else if (changes && b->depth > 0 && b->moving)
            rc = PYLE_INUSE;
        else if (changes && views(b) > 0)
            rc = PYLE_VIEWED;
        if (rc < 0)
            unclaim(b);
    }
    if (rc < 0) {
        if (c->locked)
            bufferevent_unlock(c->use.bev);
        if (c->pv)
            pyle_bev_end(pv, &c->use);
        return rc;
    }
    ++b->depth;
    c->sync = pyle_sync_enter();
    errno = 0;
    return 0;
}

ssize_t pyle_buf_leave(struct pyle_call *c, ssize_t rc)
{
    struct pyle_buf *b = c->b;
    int error = errno;

    --b->depth;
    if (b->depth == 0 && b->closing && views(b) == 0)
        free_data(b);
    unclaim(b);
    if (b->owner && b->is_input && b->owner->stuck)
        pyle_bev_resume_soon(b->owner);
    if (c->locked)
        bufferevent_unlock(c->use.bev);
    if (c->pv)
        pyle_bev_end(c->pv, &c->use); /* b keeps its memory */
    rc = pyle_sync_leave(c->sync, rc);
    errno = error;
    return rc;
}

int pyle_buf_close(struct pyle_buf *b)
{
    struct pyle_call c;
    int rc = pyle_buf_enter(&c, b, 0);

    if (rc < 0)
        return rc == PYLE_CLOSED ? 0 : rc;
    if (views(b) > 0 && !b->owner)
        rc = PYLE_VIEWED;
    else if (!b->owner)
        b->closing = 1; /* leave frees it, the outermost one */
    return (int)pyle_buf_leave(&c, rc);
}

/* Most calls are: enter, one call of libevent, leave. */
#define CALL(b, changes, expression)                                   \
    struct pyle_call call_;                                            \
    int rc_ = pyle_buf_enter(&call_, (b), (changes));                  \
    if (rc_ < 0)                                                       \
        return rc_;                                                    \
    return (int)pyle_buf_leave(&call_, (expression) < 0 ? pyle_failed() : 0)

/* Nothing but sendfile ever sees the bytes of a file that was added to a socket's output; there
 * it stays. */
static int in_memory(struct pyle_buf *b)
{
    if (b->has_file && evbuffer_get_length(b->buf) == 0)
        b->has_file = 0;
    return b->has_file ? PYLE_FILE : 0;
}

int pyle_buf_enter_to_read(struct pyle_call *c, struct pyle_buf *b, int changes)
{
    int rc = pyle_buf_enter(c, b, changes);

    if (rc == 0 && (rc = in_memory(b)) < 0)
        rc = (int)pyle_buf_leave(c, rc);
    return rc;
}

struct evbuffer *pyle_buf_ptr(struct pyle_buf *b)
{
    struct pyle_bev *pv = b->owner;

    return b->closing || (pv && (pv->finishing || pv->pb->closed)) ? NULL : b->buf;
}

ssize_t pyle_buf_length(struct pyle_buf *b)
{
    struct pyle_call c;
    ssize_t rc = pyle_buf_enter(&c, b, 0);

    return rc < 0 ? rc : pyle_buf_leave(&c, (ssize_t)evbuffer_get_length(b->buf));
}

ssize_t pyle_buf_contiguous(struct pyle_buf *b)
{
    struct pyle_call c;
    ssize_t rc = pyle_buf_enter_to_read(&c, b, 0);

    return rc < 0 ? rc : pyle_buf_leave(&c, (ssize_t)evbuffer_get_contiguous_space(b->buf));
}

int pyle_buf_add(struct pyle_buf *b, const void *data, size_t n)
{
    CALL(b, 1, evbuffer_add(b->buf, data, n));
}

int pyle_buf_prepend(struct pyle_buf *b, const void *data, size_t n)
{
    CALL(b, 1, evbuffer_prepend(b->buf, data, n));
}

int pyle_buf_expand(struct pyle_buf *b, size_t n)
{
    CALL(b, 1, evbuffer_expand(b->buf, n));
}

int pyle_buf_drain(struct pyle_buf *b, size_t n)
{
    CALL(b, 1, evbuffer_drain(b->buf, n));
}

/* ---- out ---- */

static ssize_t copy_range(struct evbuffer *buf, size_t position, void *out, size_t n)
{
    struct evbuffer_iovec few[16], *vec = few;
    struct evbuffer_ptr start;
    size_t copied = 0, length = evbuffer_get_length(buf);
    int count, i;

    if (position > length)
        return PYLE_RANGE;
    if (n > length - position)
        n = length - position;
    if (n == 0)
        return 0;
    if (evbuffer_ptr_set(buf, &start, position, EVBUFFER_PTR_SET) < 0)
        return PYLE_FAIL;
    count = evbuffer_peek(buf, (ev_ssize_t)n, &start, few, 16);
    if (count > 16) {
        vec = malloc((size_t)count * sizeof(*vec));
        if (!vec)
            return PYLE_NOMEM;
        count = evbuffer_peek(buf, (ev_ssize_t)n, &start, vec, count);
    }
    for (i = 0; i < count && copied < n; ++i) {
        size_t part = vec[i].iov_len < n - copied ? vec[i].iov_len : n - copied;
        memcpy((char *)out + copied, vec[i].iov_base, part);
        copied += part;
    }
    if (vec != few)
        free(vec);
    return (ssize_t)copied;
}

ssize_t pyle_buf_remove(struct pyle_buf *b, void *out, size_t n)
{
    struct pyle_call c;
    ssize_t rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = evbuffer_remove(b->buf, out, n);
    return pyle_buf_leave(&c, rc < 0 ? pyle_failed() : rc);
}

ssize_t pyle_buf_copyout(struct pyle_buf *b, ssize_t position, void *out, size_t n)
{
    struct pyle_call c;
    ssize_t rc = position < 0 ? PYLE_RANGE : pyle_buf_enter_to_read(&c, b, 0);

    return rc < 0 ? rc : pyle_buf_leave(&c, copy_range(b->buf, (size_t)position, out, n));
}

/* A line without an end: may it still be one of max_length bytes? */
static int unfinished(struct evbuffer *buf, ssize_t start, int eol, ssize_t max_length)
{
    ssize_t length = (ssize_t)evbuffer_get_length(buf) - start;
    char last = 0;

    if (max_length < 0 || length <= max_length)
        return PYLE_NONE;
    if (length == max_length + 1 && (eol == EVBUFFER_EOL_CRLF || eol == EVBUFFER_EOL_CRLF_STRICT))
        copy_range(buf, (size_t)(start + length - 1), &last, 1); /* half of its end? */
    return last == '\r' ? PYLE_NONE : PYLE_TOOLONG;
}

/* The next line: where its end is, how long that end. */
static ssize_t find_line(struct evbuffer *buf, int eol, ssize_t max_length, size_t *eol_length)
{
    struct evbuffer_ptr end = evbuffer_search_eol(buf, NULL, eol_length, (enum evbuffer_eol_style)eol);

    if (end.pos < 0)
        return unfinished(buf, 0, eol, max_length);
    return max_length >= 0 && end.pos > max_length ? PYLE_TOOLONG : end.pos;
}

ssize_t pyle_buf_readln(struct pyle_buf *b, char *out, size_t size, int eol, ssize_t max_length)
{
    struct pyle_call c;
    size_t eol_length = 0;
    ssize_t n = pyle_buf_enter_to_read(&c, b, 1);

    if (n < 0)
        return n;
    n = find_line(b->buf, eol, max_length, &eol_length);
    if (n > (ssize_t)size) {
        n = PYLE_SMALL;
    } else if (n >= 0) {
        copy_range(b->buf, 0, out, (size_t)n);
        if (evbuffer_drain(b->buf, (size_t)n + eol_length) < 0)
            n = pyle_failed();
    }
    return pyle_buf_leave(&c, n);
}

/* Every whole line that is there and fits, as one run of bytes that Python splits: a length for
 * each would cost Python a step for each. */
ssize_t pyle_buf_readlines(struct pyle_buf *b, char *out, size_t size, int eol, ssize_t max_length)
{
    struct pyle_call c;
    struct evbuffer_ptr at, end;
    size_t eol_length = 0;
    ssize_t taken = 0, rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = PYLE_NONE;
    evbuffer_ptr_set(b->buf, &at, 0, EVBUFFER_PTR_SET);
    for (;;) {
        end = evbuffer_search_eol(b->buf, &at, &eol_length, (enum evbuffer_eol_style)eol);
        if (end.pos < 0) {
            rc = unfinished(b->buf, taken, eol, max_length);
            break;
        }
        if (max_length >= 0 && end.pos - taken > max_length) {
            rc = PYLE_TOOLONG;
            break;
        }
        if (end.pos + (ssize_t)eol_length > (ssize_t)size) {
            rc = PYLE_SMALL;
            break;
        }
        taken = end.pos + (ssize_t)eol_length;
        if (evbuffer_ptr_set(b->buf, &end, eol_length, EVBUFFER_PTR_ADD) < 0)
            break; /* at the end of the buffer */
        at = end;
    }
    if (taken > 0) { /* a line that is too long waits until it is the first */
        ssize_t more = rc == PYLE_SMALL ? PYLE_MORE : 0;
        copy_range(b->buf, 0, out, (size_t)taken);
        rc = evbuffer_drain(b->buf, (size_t)taken) < 0 ? pyle_failed() : taken | more;
    }
    return pyle_buf_leave(&c, rc);
}

/* ---- looking ---- */

static int set_position(struct evbuffer *buf, struct evbuffer_ptr *at, ssize_t position)
{
    if (position < 0 || (size_t)position > evbuffer_get_length(buf))
        return PYLE_RANGE;
    return evbuffer_ptr_set(buf, at, (size_t)position, EVBUFFER_PTR_SET) < 0 ? PYLE_FAIL : 0;
}

ssize_t pyle_buf_search(struct pyle_buf *b, const void *what, size_t n, ssize_t start, ssize_t end)
{
    struct pyle_call c;
    struct evbuffer_ptr from, to, found;
    ssize_t rc = pyle_buf_enter_to_read(&c, b, 0);

    if (rc < 0)
        return rc;
    rc = set_position(b->buf, &from, start);
    if (rc == 0 && end >= 0)
        rc = set_position(b->buf, &to, end);
    if (rc == 0) {
        found = evbuffer_search_range(b->buf, what, n, &from, end >= 0 ? &to : NULL);
        rc = found.pos < 0 ? PYLE_NONE : found.pos;
    }
    return pyle_buf_leave(&c, rc);
}

ssize_t pyle_buf_search_eol(struct pyle_buf *b, ssize_t start, int eol, size_t *eol_length)
{
    struct pyle_call c;
    struct evbuffer_ptr from, found;
    ssize_t rc = pyle_buf_enter_to_read(&c, b, 0);

    if (rc < 0)
        return rc;
    rc = set_position(b->buf, &from, start);
    if (rc == 0) {
        found = evbuffer_search_eol(b->buf, &from, eol_length, (enum evbuffer_eol_style)eol);
        rc = found.pos < 0 ? PYLE_NONE : found.pos;
    }
    return pyle_buf_leave(&c, rc);
}

/* ---- views: while one is out nothing changes what it shows ---- */

static void add_views(struct pyle_call *c, int n)
{
    struct pyle_buf *b = c->b;

    if (n <= 0)
        return;
    __atomic_add_fetch(&b->refs, n, __ATOMIC_RELAXED);
    if (__atomic_fetch_add(&b->exports, n, __ATOMIC_ACQ_REL) == 0 && c->pv)
        pyle_bev_hold(c->pv, c->use.bev, b->is_input ? EV_READ : EV_WRITE);
}

static void last_view_gone(struct pyle_buf *b)
{
    if (b->kept) {
        pyle_bev_resume_soon(b->kept);
    } else if (b->closing && b->depth == 0) {
        free_data(b);
        release_pins();
    }
}

void pyle_buf_release_view(struct pyle_buf *b, void *unused)
{
    (void)unused;
    if (__atomic_sub_fetch(&b->exports, 1, __ATOMIC_ACQ_REL) == 0)
        last_view_gone(b);
    pyle_buf_unref(b);
}

int pyle_buf_pullup(struct pyle_buf *b, ssize_t n, struct evbuffer_iovec *out)
{
    struct pyle_call c;
    int rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    out->iov_len = n < 0 ? evbuffer_get_length(b->buf) : (size_t)n;
    if (out->iov_len > evbuffer_get_length(b->buf)) {
        rc = PYLE_RANGE;
    } else if (out->iov_len > 0) {
        out->iov_base = evbuffer_pullup(b->buf, (ev_ssize_t)out->iov_len);
        rc = out->iov_base ? 1 : PYLE_NOMEM;
    }
    add_views(&c, rc);
    return (int)pyle_buf_leave(&c, rc);
}

/* How many pieces there are; up to max of them in out, when that many were asked for. */
int pyle_buf_peek(struct pyle_buf *b, ssize_t start, ssize_t n, struct evbuffer_iovec *out, int max)
{
    struct pyle_call c;
    struct evbuffer_ptr at;
    size_t left;
    int i, rc = pyle_buf_enter_to_read(&c, b, 0);

    if (rc < 0)
        return rc;
    rc = set_position(b->buf, &at, start);
    left = evbuffer_get_length(b->buf);
    if (rc == 0 && left > 0) {
        left -= (size_t)start;
        if (n >= 0 && (size_t)n < left)
            left = (size_t)n;
        if (left > 0)
            rc = evbuffer_peek(b->buf, (ev_ssize_t)left, &at, out, max);
    }
    if (rc > 0 && rc <= max) {
        for (i = 0; i < rc; ++i) {
            if (out[i].iov_len > left)
                out[i].iov_len = left;
            left -= out[i].iov_len;
        }
        add_views(&c, rc);
    }
    return (int)pyle_buf_leave(&c, rc);
}

/* ---- between buffers ---- */

static ssize_t move_add(struct evbuffer *dst, struct evbuffer *src, size_t n)
{
    (void)n;
    return evbuffer_add_buffer(dst, src);
}

static ssize_t move_prepend(struct evbuffer *dst, struct evbuffer *src, size_t n)
{
    (void)n;
    return evbuffer_prepend_buffer(dst, src);
}

static ssize_t move_part(struct evbuffer *dst, struct evbuffer *src, size_t n)
{
    return evbuffer_remove_buffer(src, dst, n);
}

/* Two locks, always in the same order: enter takes them once more. */
static ssize_t move_locked(struct pyle_buf *dst, struct pyle_buf *src,
                           ssize_t (*how)(struct evbuffer *, struct evbuffer *, size_t), size_t n)
{
    struct pyle_call d, s;
    ssize_t rc = pyle_buf_enter(&d, dst, 1);

    if (rc < 0)
        return rc;
    rc = pyle_buf_enter_to_read(&s, src, 1);
    if (rc == 0) {
        /* When a chain is split dst's callbacks run while src's is half way. */
        int half = how == move_part && n < evbuffer_get_length(src->buf);
        src->moving += half;
        rc = how(dst->buf, src->buf, n);
        src->moving -= half;
        rc = pyle_buf_leave(&s, rc == -1 ? pyle_failed() : rc);
    }
    return pyle_buf_leave(&d, rc);
}

ssize_t pyle_buf_move(struct pyle_buf *dst, struct pyle_buf *src,
                      ssize_t (*how)(struct evbuffer *, struct evbuffer *, size_t), size_t n)
{
    struct pyle_bev *pv[2] = {dst->kept, src->kept};
    struct pyle_use use[2];
    ssize_t rc;
    int sync;

    if (!pv[0] || !pv[1] || dst->closing || src->closing)
        return move_locked(dst, src, how, n);
    if (pv[0] > pv[1]) {
        pv[0] = src->kept;
        pv[1] = dst->kept;
    }
    rc = pyle_bev_begin(pv[0], &use[0]);
    if (rc < 0)
        return rc;
    sync = pyle_sync_enter();
    rc = pyle_bev_begin(pv[1], &use[1]);
    if (rc == 0) {
        bufferevent_lock(use[0].bev);
        bufferevent_lock(use[1].bev);
        rc = move_locked(dst, src, how, n);
        bufferevent_unlock(use[1].bev);
        bufferevent_unlock(use[0].bev);
        pyle_bev_end(pv[1], &use[1]);
    }
    pyle_bev_end(pv[0], &use[0]);
    return pyle_sync_leave(sync, rc);
}

int pyle_buf_add_buffer(struct pyle_buf *dst, struct pyle_buf *src)
{
    return (int)pyle_buf_move(dst, src, move_add, 0);
}

int pyle_buf_prepend_buffer(struct pyle_buf *dst, struct pyle_buf *src)
{
    return (int)pyle_buf_move(dst, src, move_prepend, 0);
}

ssize_t pyle_buf_remove_buffer(struct pyle_buf *src, struct pyle_buf *dst, size_t n)
{
    return pyle_buf_move(dst, src, move_part, n);
}

/* ---- memory and files of others ---- */

static void on_reference_done(const void *data, size_t n, void *arg)
{
    struct pin *p = arg;

    (void)data;
    (void)n;
    pthread_mutex_lock(&pins_lock);
    p->next = pins;
    pins = p;
    __atomic_store_n(&pyle_pins_waiting, 1, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&pins_lock);
    if (pyle_sync == 0 && pyle_here && pyle_here->base)
        pyle_kick(pyle_here); /* in the loop: soon, but not from in here */
}

long long pyle_pin_take(void)
{
    struct pin *p;
    long long id = 0;

    pthread_mutex_lock(&pins_lock);
    p = pins;
    if (p)
        pins = p->next;
    if (!pins)
        __atomic_store_n(&pyle_pins_waiting, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&pins_lock);
    if (p) {
        id = p->id;
        free(p);
    }
    return id;
}

int pyle_buf_add_reference(struct pyle_buf *b, const void *data, size_t n, long long id)
{
    struct pyle_call c;
    struct pin *p;
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    p = malloc(sizeof(*p));
    if (!p) {
        rc = PYLE_NOMEM;
    } else {
        p->id = id;
        if (evbuffer_add_reference(b->buf, data, n, on_reference_done, p) < 0) {
            rc = pyle_failed();
            on_reference_done(NULL, 0, p);
        }
    }
    return (int)pyle_buf_leave(&c, rc);
}

static int may_add_file(struct pyle_buf *b, int fd, long long offset, long long *length)
{
    struct stat st;
    void *room;

    if (fstat(fd, &st) < 0)
        return PYLE_SYS;
    if (!S_ISREG(st.st_mode)) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : ESPIPE;
        return PYLE_SYS;
    }
    if (offset > st.st_size || *length > st.st_size - offset)
        return PYLE_RANGE;
    if (*length < 0)
        *length = st.st_size - offset;
    /* evbuffer_add_file_segment frees the segment in some of its failures and not in others:
     * find the others here. */
    if (evbuffer_add(b->buf, "", 0) < 0)
        return PYLE_FAIL; /* frozen */
    if (*length > 0) {
        room = malloc((size_t)*length);
        if (!room)
            return PYLE_NOMEM;
        free(room);
    }
    return 0;
}

int pyle_buf_add_file(struct pyle_buf *b, int fd, long long offset, long long length)
{
    struct pyle_call c;
    struct evbuffer_file_segment *segment = NULL;
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0) {
        close(fd);
        return rc;
    }
    rc = may_add_file(b, fd, offset, &length);
    if (rc == 0 && length > 0) {
        /* No mmap: a file that another program makes shorter would end the process (SIGBUS). */
        segment = evbuffer_file_segment_new(fd, offset, length,
                                            EVBUF_FS_CLOSE_ON_FREE | EVBUF_FS_DISABLE_MMAP);
        if (!segment)
            rc = pyle_failed();
    }
    if (!segment) {
        int error = errno;
        close(fd);
        errno = error;
    } else if (evbuffer_add_file_segment(b->buf, segment, 0, -1) < 0) {
        rc = pyle_failed();
        if (errno != ENOMEM)
            evbuffer_file_segment_free(segment); /* it could not be read; libevent kept it */
    } else {
        if (b->owner && b->owner->is_socket && !b->is_input)
            b->has_file = 1;
        evbuffer_file_segment_free(segment);
    }
    return (int)pyle_buf_leave(&c, rc);
}

ssize_t pyle_buf_read(struct pyle_buf *b, int fd, int n)
{
    struct pyle_call c;
    ssize_t rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = evbuffer_read(b->buf, fd, n);
    return pyle_buf_leave(&c, rc < 0 ? pyle_failed() : rc);
}

ssize_t pyle_buf_write(struct pyle_buf *b, int fd, ssize_t n)
{
    struct pyle_call c;
    ssize_t rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    if (evbuffer_get_length(b->buf) > 0 && n != 0)
        rc = evbuffer_write_atmost(b->buf, fd, n);
    return pyle_buf_leave(&c, rc < 0 ? pyle_failed() : rc);
}

int pyle_buf_freeze(struct pyle_buf *b, int at_front, int on)
{
    CALL(b, 0, on ? evbuffer_freeze(b->buf, at_front) : evbuffer_unfreeze(b->buf, at_front));
}

/* ---- callbacks: one of libevent's for all of Python's, whose list Python keeps, because
 * libevent's own does not stand an entry that removes the next one ---- */

static void on_change(struct evbuffer *buf, const struct evbuffer_cb_info *info, void *arg)
{
    struct pyle_buf *b = arg;
    struct pyle_base *pb = b->owner ? b->owner->pb : NULL;
    struct pyle_buf *partner = NULL;
    int moving = b->moving;

    (void)buf;
    if (pyle_exiting || b->closing || !claim(b))
        return;
    if (b->owner && b->is_input && b->owner->partner && (partner = b->owner->partner->output))
        __atomic_add_fetch(&partner->refs, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&b->refs, 1, __ATOMIC_RELAXED);
    ++b->depth;
    b->moving = 0; /* libevent calls the callbacks of a move's source when all is done */
    if (partner)
        ++partner->moving, ++partner->depth; /* a pair moves by parts too */
    if (pyle_py_buffer(b->token, info->orig_size, info->n_added, info->n_deleted) != PYLE_DONE)
        pyle_raise(pb ? pb : pyle_here);
    if (partner) {
        --partner->moving, --partner->depth;
        unclaim(partner);
        pyle_buf_unref(partner);
    }
    b->moving = moving;
    --b->depth;
    unclaim(b);
    if (pb && b->owner)
        pyle_after(pb);
    pyle_buf_unref(b);
}

int pyle_buf_callbacks(struct pyle_buf *b, long long token)
{
    struct pyle_call c;
    int rc = pyle_buf_enter(&c, b, 0);

    if (rc < 0)
        return rc;
    b->token = token;
    if (token && !b->cb) {
        b->cb = evbuffer_add_cb(b->buf, on_change, b);
        if (!b->cb)
            rc = PYLE_NOMEM;
    }
    if (!token && b->cb && b->depth == 1) {
        evbuffer_remove_cb_entry(b->buf, b->cb);
        b->cb = NULL;
    }
    return (int)pyle_buf_leave(&c, rc);
}

void pyle_pins_lock(int on)
{
    if (on)
        pthread_mutex_lock(&pins_lock);
    else
        pthread_mutex_unlock(&pins_lock);
}
