/* Buffers. One user at a time: evbuffers have no lock of their own here, so each call claims
 * the buffer for its thread (a second thread gets an error, not a corrupt chain), and those of
 * a BEV_OPT_THREADSAFE bufferevent take its lock. No call frees what it is in the middle of. */
#include "pyle.h"

#include <fcntl.h>
#include <limits.h>
#include <search.h>
#include <sys/stat.h>
#include <unistd.h>

struct pin {
    long long id;
    struct pin *next;
};

int pyle_pins_waiting;
static struct pin *pins;
static pthread_mutex_t pins_lock = PTHREAD_MUTEX_INITIALIZER; /* and for what is shared below */

/* ---- life ---- */

static struct pyle_buf *new_buf(struct pyle_owned *owned)
{
    struct pyle_buf *b = pyle_own(owned, PYLE_BUFS, sizeof(*b));

    if (b)
        b->refs = 1;
    return b;
}

struct pyle_buf *pyle_buf_new(struct pyle_owned *owned)
{
    struct pyle_buf *b = new_buf(owned);

    if (b && !(b->buf = evbuffer_new())) {
        pyle_disown(owned);
        return NULL;
    }
    return b;
}

struct pyle_buf *pyle_buf_borrow(struct pyle_owned *owned, struct evbuffer *buf)
{
    struct pyle_buf *b = new_buf(owned);

    if (b) {
        b->buf = buf;
        b->borrowed = 1;
    }
    return b;
}

struct pyle_buf *pyle_buf_of(struct pyle_bev *pv, int input)
{
    struct pyle_owned by_pv;
    struct pyle_buf *b = new_buf(&by_pv);

    if (b) {
        b->buf = input ? bufferevent_get_input(pv->bev) : bufferevent_get_output(pv->bev);
        b->owner = b->kept = pv;
        b->is_input = input != 0;
        b->drains = !input && pv->is_socket;
    }
    return b;
}

/* Python lets go of what it lent, now that no call of libevent's is under way. */
void pyle_release_pins(void)
{
    if (pyle_pins_waiting && !pyle_exiting && pyle_py_release() != PYLE_DONE)
        pyle_raise(pyle_here);
}

static int views(struct pyle_buf *b)
{
    return __atomic_load_n(&b->exports, __ATOMIC_ACQUIRE);
}

int pyle_buf_viewed(struct pyle_buf *b)
{
    return views(b) > 0;
}

void pyle_buf_uncall(struct pyle_buf *b)
{
    if (b && b->cb) {
        evbuffer_remove_cb_entry(b->buf, b->cb);
        b->cb = NULL;
    }
}

static void free_data(struct pyle_buf *b)
{
    struct evbuffer *buf = b->buf;
    int ours = !b->owner && !b->borrowed;

    if (buf && b->borrowed)
        pyle_buf_uncall(b);
    b->buf = NULL;
    b->owner = NULL;
    if (buf && ours)
        evbuffer_free(buf);
}

/* Once closed it is freed when nobody is in it and nobody looks at it any more. */
static void free_if_done(struct pyle_buf *b)
{
    int done = b->closing && b->depth == 0 && views(b) == 0;

    if (b->locking) {
        pthread_mutex_lock(&pins_lock);
        done = b->closing && b->inside == 0 && views(b) == 0 && b->buf;
        b->inside += done; /* it is us who do it */
        pthread_mutex_unlock(&pins_lock);
    }
    if (done)
        free_data(b);
}

void pyle_buf_free(struct pyle_buf *b)
{
    if (!b->inside) /* else: a child, and its lock is for ever another thread's */
        free_data(b);
    if (b->deferred)
        pyle_base_unref(b->deferred);
    if (b->request)
        pyle_request_forget_buf(b);
    free(b->reserved);
    pyle_unmake(PYLE_BUFS, b);
}

static void hold(struct pyle_buf *b, int n)
{
    __atomic_add_fetch(b->kept ? &b->kept->refs : &b->refs, n, __ATOMIC_RELAXED);
}

void pyle_buf_unref(struct pyle_buf *b)
{
    if (b->kept)
        pyle_bev_unref(b->kept);
    else if (__atomic_sub_fetch(&b->refs, 1, __ATOMIC_ACQ_REL) == 0)
        pyle_buf_free(b);
    pyle_release_pins();
}

/* The bufferevent is going. What memoryviews still show stays, out of its reach. */
void pyle_buf_orphan(struct pyle_buf *b, struct evbuffer *buf)
{
    struct evbuffer *rest = NULL;

    b->dry = 0;
    pyle_buf_uncall(b);
    if (views(b) > 0 && (rest = evbuffer_new())) {
        evbuffer_unfreeze(buf, 0);
        evbuffer_unfreeze(buf, 1);
        if (b->n_reserved) /* empty pieces would stay */
            evbuffer_commit_space(buf, b->reserved, b->n_reserved);
        evbuffer_add_buffer(rest, buf);
    }
    b->n_reserved = 0;
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

/* After enable_locking(). Nobody waits for the lock with the GIL in his hands: cffi has let go of
 * it before any of our functions starts. */
static int begin_locked(struct pyle_buf *b)
{
    int rc = 0;

    pthread_mutex_lock(&pins_lock);
    if (!b->buf || b->closing) {
        rc = PYLE_CLOSED;
    } else if (b->lock_gen != pyle_fork_gen && b->inside) {
        rc = PYLE_THREAD; /* which stayed in the parent */
    } else {
        b->lock_gen = pyle_fork_gen;
        ++b->inside;
    }
    pthread_mutex_unlock(&pins_lock);
    if (rc == 0)
        evbuffer_lock(b->buf);
    return rc;
}

static void count_inside(struct pyle_buf *b, int n)
{
    if (!b->locking)
        return;
    pthread_mutex_lock(&pins_lock);
    b->inside += n;
    pthread_mutex_unlock(&pins_lock);
}

static void end_locked(struct pyle_buf *b)
{
    if (b->lock_gen != pyle_fork_gen)
        return; /* forked in between: not ours any more */
    evbuffer_unlock(b->buf);
    count_inside(b, -1);
    free_if_done(b);
}

static int may_enter(struct pyle_buf *b, int changes)
{
    if (!claim(b))
        return PYLE_THREAD;
    if (!b->buf || b->closing)
        return PYLE_CLOSED;
    if (changes && ((b->depth > 0 && b->moving) || (b->is_input && b->owner && pyle_bev_asking(b->owner))))
        return PYLE_INUSE; /* or OpenSSL would be told that there is room */
    if (changes && views(b) > 0 && (changes != PYLE_REARRANGES || b->n_reserved))
        return PYLE_VIEWED;
    if (changes)
        b->n_reserved = 0;
    if (b->has_file && evbuffer_get_length(b->buf) == 0)
        b->has_file = 0;
    return 0;
}

/* settles: what is in the outbox gets into the output first. */
static int enter(struct pyle_call *c, struct pyle_buf *b, int changes, int settles)
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
        if (settles && pv->posted && !b->is_input)
            pyle_bev_unpost(pv);
        c->pv = pv;
        c->locked = pv->options & BEV_OPT_THREADSAFE;
        if (c->locked)
            bufferevent_lock(c->use.bev);
    } else if (b->locking) {
        rc = begin_locked(b);
        if (rc < 0)
            return rc;
        c->locked = 1;
    }
    rc = may_enter(b, changes);
    if (rc < 0) {
        if (rc != PYLE_THREAD)
            unclaim(b);
        if (c->pv) {
            if (c->locked)
                bufferevent_unlock(c->use.bev);
            pyle_bev_end(pv, &c->use);
        } else if (c->locked) {
            end_locked(b);
        }
        return rc;
    }
    ++b->depth;
    b->dry = 0;
    c->masked = changes && b->owner && !b->is_input && pyle_bev_add_begin(b->owner, b->owner->bev);
    c->sync = pyle_sync_enter();
    errno = 0;
    return 0;
}

int pyle_buf_enter(struct pyle_call *c, struct pyle_buf *b, int changes)
{
    return enter(c, b, changes, 1);
}

ssize_t pyle_buf_leave(struct pyle_call *c, ssize_t rc)
{
    struct pyle_buf *b = c->b;
    int error = errno;

    if (c->masked)
        pyle_bev_add_end(c->pv, c->use.bev);
    --b->depth;
    if (!b->locking)
        free_if_done(b);
    unclaim(b);
    if (b->owner && b->is_input && (b->owner->stuck || b->owner->stalled))
        pyle_bev_resume_soon(b->owner);
    if (c->pv) {
        pyle_bev_rearm(c->pv, c->use.bev);
        if (c->locked)
            bufferevent_unlock(c->use.bev);
        pyle_bev_end(c->pv, &c->use); /* b keeps its memory */
    } else if (c->locked) {
        end_locked(b);
    }
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
    if (b->request && b->borrowed)
        ; /* it ends with that */
    else if (views(b) > 0 && !b->owner)
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

/* Nothing but sendfile ever sees the bytes of a file that was added to a buffer that drains to a
 * descriptor, a socket's output for one; there it stays. */
int pyle_buf_enter_to_read(struct pyle_call *c, struct pyle_buf *b, int changes)
{
    int rc = pyle_buf_enter(c, b, changes);

    return rc == 0 && b->has_file ? (int)pyle_buf_leave(c, PYLE_FILE) : rc;
}

struct evbuffer *pyle_buf_ptr(struct pyle_buf *b)
{
    struct pyle_bev *pv = b->owner;

    return b->closing || (pv && (pv->finishing || pv->pb->closed)) ? NULL : b->buf;
}

struct evbuffer *pyle_buf_expose(struct pyle_buf *b)
{
    b->exposed = 1;
    b->dry = 0;
    if (b->owner)
        pyle_bev_expose(b->owner);
    return pyle_buf_ptr(b);
}

ssize_t pyle_buf_length(struct pyle_buf *b)
{
    struct pyle_call c;
    ssize_t rc = enter(&c, b, 0, 0);
    size_t posted = rc == 0 && c.pv && !b->is_input ? c.pv->posted : 0;

    return rc < 0 ? rc : pyle_buf_leave(&c, (ssize_t)(evbuffer_get_length(b->buf) + posted));
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
    if (n <= INT_MAX)
        rc = evbuffer_remove(b->buf, out, n);
    else if ((rc = copy_range(b->buf, 0, out, n)) > 0 && evbuffer_drain(b->buf, (size_t)rc) < 0)
        rc = -1;
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

/* The same in what lies in one piece at the front, where the end most often is; -1: not there, or
 * not to be told yet. */
static ssize_t find_near(const struct evbuffer_iovec *piece, int eol, size_t *eol_length)
{
    const char *start = piece->iov_base, *cr, *lf, *end;

    lf = memchr(start, '\n', piece->iov_len);
    if (eol == EVBUFFER_EOL_ANY) {
        cr = memchr(start, '\r', lf ? (size_t)(lf - start) : piece->iov_len);
        end = start + piece->iov_len;
        lf = cr ? cr : lf;
        for (cr = lf; cr && cr < end && (*cr == '\r' || *cr == '\n'); ++cr)
            ;
        if (!lf || cr == end)
            return -1;
        *eol_length = (size_t)(cr - lf);
        return lf - start;
    }
    if (!lf || (eol != EVBUFFER_EOL_LF && eol != EVBUFFER_EOL_CRLF))
        return -1;
    *eol_length = 1;
    if (eol == EVBUFFER_EOL_CRLF && lf > start && lf[-1] == '\r') {
        *eol_length = 2;
        --lf;
    }
    return lf - start;
}

/* The next line: where its end is, how long that end. */
static ssize_t find_line(struct evbuffer *buf, int eol, ssize_t max_length, size_t *eol_length)
{
    struct evbuffer_ptr end = evbuffer_search_eol(buf, NULL, eol_length, (enum evbuffer_eol_style)eol);

    if (end.pos < 0)
        return unfinished(buf, 0, eol, max_length);
    return max_length >= 0 && end.pos > max_length ? PYLE_TOOLONG : end.pos;
}

/* Whether all that adds to it is known to clear .dry. */
static int may_be_dry(struct pyle_buf *b)
{
    return !b->exposed && !b->borrowed && !b->locking && !b->cb && b->buf &&
           (b->owner ? b->is_input && b->owner->is_socket && !b->owner->plain &&
                           pyle_bev_behind(b->owner->bev) == b->owner
                     : !b->closing);
}

ssize_t pyle_buf_readln(struct pyle_buf *b, char *out, size_t size, int eol, ssize_t max_length)
{
    struct pyle_call c;
    struct evbuffer_iovec front;
    size_t eol_length = 0, length, whole = 0;
    int keep = eol & PYLE_KEEP;
    ssize_t n;

    eol &= ~PYLE_KEEP;
    n = eol < EVBUFFER_EOL_ANY || eol > EVBUFFER_EOL_NUL
            ? PYLE_RANGE : pyle_buf_enter_to_read(&c, b, 1);
    if (n < 0)
        return n;
    length = evbuffer_get_length(b->buf);
    if (length > 0 && evbuffer_peek(b->buf, 1, NULL, &front, 1) == 1 &&
        (n = find_near(&front, eol, &eol_length)) >= 0 && n + (ssize_t)eol_length <= (ssize_t)size &&
        (max_length < 0 || n <= max_length)) {
        whole = (size_t)n + eol_length;
        n = keep ? (ssize_t)whole : n;
        memcpy(out, front.iov_base, (size_t)n);
    } else {
        n = find_line(b->buf, eol, max_length, &eol_length);
        if (n >= 0) {
            whole = (size_t)n + eol_length;
            n = keep ? (ssize_t)whole : n;
        }
        if (n > (ssize_t)size)
            n = PYLE_SMALL;
        else if (n >= 0)
            copy_range(b->buf, 0, out, (size_t)n);
    }
    if (n >= 0 && evbuffer_drain(b->buf, whole) < 0) {
        n = pyle_failed();
    } else if (n >= 0 && whole == length && size < PYLE_LAST && may_be_dry(b)) {
        b->dry = 1;
        n |= PYLE_LAST;
    }
    return pyle_buf_leave(&c, n);
}

/* What readlines() does where '\n' ends a line, with less to do for each line: the bytes are copied
 * first and looked at then. 0: it has to be done the other way. */
static ssize_t take_lines(struct evbuffer *buf, char *out, size_t size, int eol, ssize_t max_length)
{
    size_t length = evbuffer_get_length(buf), n = length < size ? length : size;
    char *line = out, *lf, *end = out + n;
    ssize_t first;

    if (eol != EVBUFFER_EOL_LF && eol != EVBUFFER_EOL_CRLF)
        return 0;
    first = evbuffer_search_eol(buf, NULL, NULL, EVBUFFER_EOL_LF).pos;
    if (first < 0 || first >= (ssize_t)n || copy_range(buf, 0, out, n) != (ssize_t)n)
        return 0;
    while ((lf = memchr(line, '\n', (size_t)(end - line))) &&
           (max_length < 0 || lf - line - (eol == EVBUFFER_EOL_CRLF && lf > line && lf[-1] == '\r') <=
                                  max_length))
        line = lf + 1;
    return line - out;
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
    taken = take_lines(b->buf, out, size, eol, max_length);
    if (taken > 0) {
        ssize_t more = evbuffer_get_length(b->buf) > size ? PYLE_MORE : 0;
        return pyle_buf_leave(
            &c, evbuffer_drain(b->buf, (size_t)taken) < 0 ? pyle_failed() : taken | more);
    }
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

static void add_view(struct pyle_call *c, struct pyle_held *held)
{
    struct pyle_buf *b = c->b;

    held->view = b;
    hold(b, 1);
    if (__atomic_fetch_add(&b->exports, 1, __ATOMIC_ACQ_REL) == 0 && c->pv)
        pyle_bev_hold(c->pv, c->use.bev, b->is_input ? EV_READ : EV_WRITE);
}

static void last_view_gone(struct pyle_buf *b)
{
    if (b->kept || b->borrowed)
        b->n_reserved = 0; /* from here on others may change it */
    if (b->owner) {
        pyle_bev_resume_soon(b->kept);
    } else if (b->closing) {
        free_if_done(b);
        pyle_release_pins();
    }
}

void pyle_buf_unview(struct pyle_buf *b)
{
    if (__atomic_sub_fetch(&b->exports, 1, __ATOMIC_ACQ_REL) == 0)
        last_view_gone(b);
    pyle_buf_unref(b);
}

int pyle_buf_pullup(struct pyle_buf *b, ssize_t n, struct evbuffer_iovec *out, struct pyle_held *held)
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
    if (rc > 0)
        add_view(&c, held);
    return (int)pyle_buf_leave(&c, rc);
}

/* How many pieces there are; up to max of them in out, when that many were asked for. */
int pyle_buf_peek(struct pyle_buf *b, ssize_t start, ssize_t n, struct evbuffer_iovec *out, int max,
                  struct pyle_held *held)
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
        add_view(&c, held);
    }
    return (int)pyle_buf_leave(&c, rc);
}

/* ---- room for the user to write to: views too, until commit ---- */

int pyle_buf_reserve(struct pyle_buf *b, size_t n, struct evbuffer_iovec *out, int max,
                     struct pyle_held *held)
{
    struct pyle_call c;
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    free(b->reserved);
    b->reserved = malloc((size_t)max * sizeof(*out));
    if (!b->reserved) {
        rc = PYLE_NOMEM;
    } else {
        rc = evbuffer_reserve_space(b->buf, n ? (ev_ssize_t)n : 1, out, max); /* 0 can end the process */
        if (rc < 0)
            rc = pyle_failed();
        else
            memcpy(b->reserved, out, (size_t)rc * sizeof(*out));
    }
    if (rc > 0) {
        b->n_reserved = rc;
        add_view(&c, held);
    }
    return (int)pyle_buf_leave(&c, rc);
}

int pyle_buf_hold(struct pyle_buf *b, size_t n, struct pyle_held *held)
{
    struct pyle_call c;
    size_t room = 0;
    int i, rc = pyle_buf_enter(&c, b, 0);

    if (rc < 0)
        return rc;
    for (i = 0; i < b->n_reserved; ++i)
        room += b->reserved[i].iov_len;
    if (n > room)
        rc = PYLE_RANGE;
    else
        add_view(&c, held);
    return (int)pyle_buf_leave(&c, rc);
}

static int commit(struct pyle_buf *b, size_t n)
{
    struct evbuffer_iovec *vec = b->reserved;
    int i, rc, count = b->n_reserved;

    for (i = 0; i < count; ++i) {
        if (vec[i].iov_len > n)
            vec[i].iov_len = n;
        n -= vec[i].iov_len;
    }
    b->n_reserved = 0;
    b->reserved = NULL;
    if (__atomic_sub_fetch(&b->exports, 1, __ATOMIC_ACQ_REL) == 0)
        last_view_gone(b); /* now, for the callbacks may change it */
    rc = count > 0 && evbuffer_commit_space(b->buf, vec, count) < 0 ? pyle_failed() : 0;
    free(vec);
    return rc;
}

int pyle_buf_commit(struct pyle_buf *b, size_t n, struct pyle_held *held)
{
    struct pyle_call c;
    int rc = pyle_buf_enter(&c, b, 0);

    held->view = NULL;
    if (rc == 0 && b->depth > 1 && b->moving)
        rc = (int)pyle_buf_leave(&c, PYLE_INUSE);
    else if (rc == 0 && views(b) > 1)
        rc = (int)pyle_buf_leave(&c, PYLE_VIEWED);
    else if (rc == 0) {
        rc = (int)pyle_buf_leave(&c, commit(b, n));
        pyle_buf_unref(b);
        return rc;
    }
    pyle_buf_unview(b);
    return rc;
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

static int is_frozen(struct evbuffer *dst, struct evbuffer *src)
{
    char first;

    return evbuffer_copyout(src, &first, 1) < 0 || evbuffer_commit_space(dst, NULL, 0) < 0;
}

__thread struct pyle_buf *pyle_source;

/* The callbacks of src hear of it later. */
static void take_chains(struct evbuffer *chains, struct evbuffer *src, size_t n)
{
    struct pyle_buf *b = pyle_source;
    int told = b && b->buf == src && b->cb;

    if (told)
        evbuffer_cb_clear_flags(src, b->cb, EVBUFFER_CB_ENABLED);
    evbuffer_remove_buffer(src, chains, n);
    if (told) {
        evbuffer_cb_set_flags(src, b->cb, EVBUFFER_CB_ENABLED);
        b->untold = n;
    }
}

/* Whole chains, and copied of the next one. All or nothing. */
static int move_and_copy(struct evbuffer *dst, struct evbuffer *src, size_t whole, size_t copied)
{
    struct evbuffer_ptr at;
    struct evbuffer_iovec piece;
    struct evbuffer *chains = NULL, *rest = NULL;
    int rc = -1;

    evbuffer_ptr_set(src, &at, whole, EVBUFFER_PTR_SET);
    evbuffer_peek(src, (ev_ssize_t)copied, &at, &piece, 1);
    if (whole == 0)
        return evbuffer_add(dst, piece.iov_base, copied) < 0 ? -1 : evbuffer_drain(src, copied);
    chains = evbuffer_new();
    rest = evbuffer_new();
    if (chains && rest && evbuffer_add(rest, piece.iov_base, copied) == 0) {
        take_chains(chains, src, whole);
        evbuffer_add_buffer(chains, rest);
        evbuffer_add_buffer(dst, chains);
        rc = evbuffer_drain(src, copied);
    }
    if (chains)
        evbuffer_free(chains);
    if (rest)
        evbuffer_free(rest);
    return rc;
}

ssize_t pyle_move_part(struct evbuffer *dst, struct evbuffer *src, size_t n)
{
    size_t length = evbuffer_get_length(src), copied = 0;
    struct evbuffer_ptr end;
    int rc;

    if (n > length)
        n = length;
    if (n < length && dst != src && evbuffer_ptr_set(src, &end, n, EVBUFFER_PTR_SET) == 0)
        copied = end.internal_.pos_in_chain;
    if (copied > 0 && is_frozen(dst, src))
        return -1;
    if (copied > 0)
        return move_and_copy(dst, src, n - copied, copied) < 0 ? -1 : (ssize_t)n;
    rc = evbuffer_remove_buffer(src, dst, n);
    return rc == (int)n ? (ssize_t)n : rc; /* beyond 2 GiB an int does not hold it */
}

/* Bytes in several buffers. libevent's own way (evbuffer_add_buffer_reference) keeps the source
 * and takes its lock when the last reference goes, which for a bufferevent's buffer is then gone
 * too; counts without a lock if there is none; cannot refer to references; and has buffers that
 * share memory write to it in evbuffer_pullup. Here each chain that is shared belongs to a buffer
 * of its own that nobody changes, and every user, the first one too, has a plain reference. */
struct share {
    const char *data;
    size_t n;
    int refs;
    struct evbuffer *chain;
    struct share *next; /* to be freed */
};

static void *shares; /* a tree of those that live, by address */

static int by_address(const void *one, const void *other)
{
    const struct share *a = one, *b = other;

    return a->data + a->n <= b->data ? -1 : a->data >= b->data + b->n;
}

static void let_go_of_share(const void *data, size_t n, void *arg)
{
    static __thread struct share *doomed;
    static __thread int freeing;
    struct share *s = arg;
    void *found;
    int last;

    (void)data;
    (void)n;
    pthread_mutex_lock(&pins_lock);
    last = --s->refs == 0;
    if (last && (found = tfind(s, &shares, by_address)) && *(struct share **)found == s)
        tdelete(s, &shares, by_address);
    pthread_mutex_unlock(&pins_lock);
    if (!last)
        return;
    s->next = doomed;
    doomed = s;
    if (freeing)
        return; /* the chain of a share was a reference: no recursion */
    freeing = 1;
    while ((s = doomed)) {
        doomed = s->next;
        evbuffer_free(s->chain);
        pyle_unmake(PYLE_SHARES, s);
    }
    freeing = 0;
}

/* The share whose memory that is; counted once more for each of two users. */
static struct share *find_share(const struct evbuffer_iovec *piece)
{
    struct share key = {.data = piece->iov_base, .n = piece->iov_len}, *s = NULL;
    void *found;

    pthread_mutex_lock(&pins_lock);
    found = tfind(&key, &shares, by_address);
    if (found) {
        s = *(struct share **)found;
        if (key.data >= s->data && key.data + key.n <= s->data + s->n)
            ++s->refs;
        else
            s = NULL;
    }
    pthread_mutex_unlock(&pins_lock);
    return s;
}

/* Takes the first chain of src, all of it; mine gets the reference that replaces it. */
static struct share *new_share(struct evbuffer *src, struct evbuffer *mine,
                               const struct evbuffer_iovec *piece)
{
    struct share *s = pyle_make(PYLE_SHARES, sizeof(*s));

    if (!s || !(s->chain = evbuffer_new())) {
        pyle_unmake(PYLE_SHARES, s);
        return NULL;
    }
    s->data = piece->iov_base;
    s->n = piece->iov_len;
    s->refs = 2;
    evbuffer_remove_buffer(src, s->chain, s->n); /* its answer is an int, too small */
    if (evbuffer_get_length(s->chain) != s->n ||
        evbuffer_add_reference(mine, s->data, s->n, let_go_of_share, s) < 0) {
        evbuffer_prepend_buffer(src, s->chain);
        evbuffer_free(s->chain);
        pyle_unmake(PYLE_SHARES, s);
        return NULL;
    }
    pthread_mutex_lock(&pins_lock);
    tsearch(s, &shares, by_address); /* no memory, or it overlaps another one: nobody finds it */
    pthread_mutex_unlock(&pins_lock);
    return s;
}

static int share_chains(struct evbuffer *theirs, struct evbuffer *mine, struct evbuffer *src,
                        const struct evbuffer_iovec *piece, int n)
{
    for (; n > 0; ++piece, --n) {
        struct share *s = find_share(piece);
        if (piece->iov_len == 0)
            continue;
        if (s)
            evbuffer_remove_buffer(src, mine, piece->iov_len);
        else
            s = new_share(src, mine, piece);
        if (!s)
            return -1;
        if (evbuffer_add_reference(theirs, piece->iov_base, piece->iov_len, let_go_of_share, s) < 0) {
            let_go_of_share(NULL, 0, s);
            return -1;
        }
    }
    return 0;
}

static int copy_chains(struct evbuffer *theirs, const struct evbuffer_iovec *piece, int n)
{
    int rc = 0;

    for (; n > 0 && rc == 0; ++piece, --n)
        rc = evbuffer_add(theirs, piece->iov_base, piece->iov_len);
    return rc;
}

/* What libevent or a C library changes on its own, and what may not be taken out, is copied. */
static int refer_to(struct evbuffer *dst, struct pyle_buf *src)
{
    struct evbuffer *theirs, *mine;
    struct evbuffer_iovec *pieces;
    int rc = PYLE_NOMEM, n = evbuffer_peek(src->buf, -1, NULL, NULL, 0);

    if (n > 0 && dst == src->buf)
        return PYLE_FAIL;
    theirs = evbuffer_new();
    mine = evbuffer_new();
    pieces = malloc(((size_t)n + 1) * sizeof(*pieces));
    if (theirs && mine && pieces) {
        evbuffer_peek(src->buf, -1, NULL, pieces, n);
        if (src->kept || src->borrowed || src->frozen) {
            rc = copy_chains(theirs, pieces, n);
        } else {
            if (src->cb)
                evbuffer_cb_clear_flags(src->buf, src->cb, EVBUFFER_CB_ENABLED);
            rc = share_chains(theirs, mine, src->buf, pieces, n);
            evbuffer_prepend_buffer(src->buf, mine);
            if (src->cb)
                evbuffer_cb_set_flags(src->buf, src->cb, EVBUFFER_CB_ENABLED);
        }
        if (rc == 0 && evbuffer_add_buffer(dst, theirs) < 0)
            rc = PYLE_FAIL;
        else if (rc < 0)
            rc = PYLE_NOMEM;
    }
    if (theirs)
        evbuffer_free(theirs);
    if (mine)
        evbuffer_free(mine);
    free(pieces);
    return rc;
}

typedef ssize_t (*move_fn)(struct evbuffer *, struct evbuffer *, size_t);

static ssize_t move_locked(struct pyle_buf *dst, struct pyle_buf *src, move_fn how, size_t n)
{
    struct pyle_call d, s;
    struct pyle_buf *outer = pyle_source;
    ssize_t rc = pyle_buf_enter(&d, dst, 1);

    if (rc < 0)
        return rc;
    rc = pyle_buf_enter_to_read(&s, src, how ? 1 : PYLE_REARRANGES);
    if (rc == 0 && how) {
        /* When a chain is split dst's callbacks run while src's is half way. */
        int half = how == pyle_move_part && n < evbuffer_get_length(src->buf);
        src->moving += half;
        pyle_source = src;
        rc = how(dst->buf, src->buf, n);
        pyle_source = outer;
        src->moving -= half;
        rc = pyle_buf_leave(&s, rc == -1 ? pyle_failed() : rc);
    } else if (rc == 0) {
        rc = pyle_buf_leave(&s, refer_to(dst->buf, src));
    }
    return pyle_buf_leave(&d, rc);
}

/* A lock each that the two calls of enter() take once more. */
static int grab(struct pyle_buf *b, struct pyle_use *use)
{
    int rc = b->kept ? pyle_bev_begin(b->kept, use) : begin_locked(b);

    if (rc == 0 && b->kept)
        bufferevent_lock(use->bev);
    return rc;
}

static void drop(struct pyle_buf *b, struct pyle_use *use)
{
    if (b->kept) {
        bufferevent_unlock(use->bev);
        pyle_bev_end(b->kept, use);
    } else {
        end_locked(b);
    }
}

/* Two locks, always in the same order: bufferevents before buffers, then by address. */
static int goes_first(struct pyle_buf *a, struct pyle_buf *b)
{
    if (!a->kept != !b->kept)
        return a->kept != NULL;
    return a->kept ? a->kept < b->kept : a < b;
}

ssize_t pyle_buf_move(struct pyle_buf *dst, struct pyle_buf *src, move_fn how, size_t n)
{
    struct pyle_buf *first = dst, *second = src;
    struct pyle_use use[2];
    ssize_t rc;
    int sync;

    if ((!dst->kept && !dst->locking) || (!src->kept && !src->locking) || dst->closing || src->closing)
        return move_locked(dst, src, how, n);
    if (goes_first(src, dst)) {
        first = src;
        second = dst;
    }
    rc = grab(first, &use[0]);
    if (rc < 0)
        return rc;
    sync = pyle_sync_enter();
    rc = grab(second, &use[1]);
    if (rc == 0) {
        rc = move_locked(dst, src, how, n);
        drop(second, &use[1]);
    }
    drop(first, &use[0]);
    return pyle_sync_leave(sync, rc);
}

int pyle_buf_add_buffer(struct pyle_buf *dst, struct pyle_buf *src)
{
    return (int)pyle_buf_move(dst, src, move_add, 0);
}

int pyle_buf_add_buffer_reference(struct pyle_buf *dst, struct pyle_buf *src)
{
    return (int)pyle_buf_move(dst, src, NULL, 0);
}

int pyle_buf_prepend_buffer(struct pyle_buf *dst, struct pyle_buf *src)
{
    return (int)pyle_buf_move(dst, src, move_prepend, 0);
}

ssize_t pyle_buf_remove_buffer(struct pyle_buf *src, struct pyle_buf *dst, size_t n)
{
    return pyle_buf_move(dst, src, pyle_move_part, n);
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
        pyle_unmake(PYLE_PINS, p);
    }
    return id;
}

int pyle_buf_add_reference(struct pyle_buf *b, const void *data, size_t n, long long id, int *taken)
{
    struct pyle_call c;
    struct pin *p;
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    p = pyle_make(PYLE_PINS, sizeof(*p));
    if (!p) {
        rc = PYLE_NOMEM;
    } else {
        p->id = id;
        *taken = 1; /* from here on it comes back by itself */
        if (evbuffer_add_reference(b->buf, data, n, on_reference_done, p) < 0) {
            rc = pyle_failed();
            on_reference_done(NULL, 0, p);
        }
    }
    return (int)pyle_buf_leave(&c, rc);
}

int pyle_buf_add_iovec(struct pyle_buf *b, struct evbuffer_iovec *vec, int n, size_t total)
{
    struct pyle_call c;
    struct evbuffer_iovec room;
    int i, rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    /* Not evbuffer_add_iovec, which may add some of them and then find no memory: here the first
     * step makes room for all. */
    for (i = 0; i < n && rc == 0; ++i) {
        if (vec[i].iov_len == 0)
            continue;
        if (evbuffer_reserve_space(b->buf, (ev_ssize_t)total, &room, 1) != 1) {
            rc = pyle_failed();
            break;
        }
        room.iov_len = vec[i].iov_len;
        total -= room.iov_len;
        memcpy(room.iov_base, vec[i].iov_base, room.iov_len);
        if (evbuffer_commit_space(b->buf, &room, 1) < 0)
            rc = pyle_failed();
    }
    return (int)pyle_buf_leave(&c, rc);
}

/* ---- files ---- */

struct pyle_segment {
    struct evbuffer_file_segment *seg; /* NULL once closed */
    long long length;
    int sendfile;              /* it may go out by sendfile */
    int borrowed;              /* a C library's */
    int open;
    int uses;                  /* open, and calls that add it now: the last one frees */
};

struct pyle_segment *pyle_segment_new(struct pyle_owned *owned, struct evbuffer_file_segment *seg)
{
    struct pyle_segment *s = pyle_own(owned, PYLE_SEGMENTS, sizeof(*s));

    if (s && seg) {
        s->seg = seg;
        s->borrowed = s->sendfile = s->open = s->uses = 1;
        s->length = -1;
    }
    return s;
}

static int open_segment(struct pyle_segment *s, int fd, long long offset, long long length,
                        unsigned flags)
{
    struct stat st;
    struct pyle_store store;

    errno = 0;
    if (fstat(fd, &st) < 0)
        return PYLE_SYS;
    if (!S_ISREG(st.st_mode)) {
        errno = S_ISDIR(st.st_mode) ? EISDIR : ESPIPE;
        return PYLE_SYS;
    }
    if (offset > st.st_size || length > st.st_size - offset)
        return PYLE_RANGE;
    s->length = length < 0 ? st.st_size - offset : length;
    if (s->length == 0)
        flags &= ~(unsigned)EVBUF_FS_DISABLE_SENDFILE; /* or libevent would allocate nothing, and fail */
    /* No mmap: a file that another program makes shorter would end the process (SIGBUS). */
    if (pyle_store_fill(&store, 2, 256) < 0)
        return PYLE_NOMEM; /* or it would have no lock */
    s->seg = evbuffer_file_segment_new(fd, offset, s->length,
                                       flags | EVBUF_FS_CLOSE_ON_FREE | EVBUF_FS_DISABLE_MMAP);
    pyle_store_close(&store);
    if (!s->seg)
        return pyle_failed();
    s->sendfile = !(flags & EVBUF_FS_DISABLE_SENDFILE);
    s->open = s->uses = 1;
    return 0;
}

int pyle_segment_open(struct pyle_segment *s, int fd, long long offset, long long length,
                      unsigned flags)
{
    int rc;

    fd = fcntl(fd, F_DUPFD_CLOEXEC, 0); /* not Python's part: one that nobody has yet would stay open */
    if (fd < 0)
        return PYLE_SYS;
    rc = open_segment(s, fd, offset, length, flags);
    if (rc < 0) {
        int error = errno;
        close(fd);
        errno = error;
    }
    return rc;
}

static int begin_segment(struct pyle_segment *s)
{
    int rc = 0;

    pthread_mutex_lock(&pins_lock);
    if (!s->open)
        rc = PYLE_CLOSED;
    else
        ++s->uses;
    pthread_mutex_unlock(&pins_lock);
    return rc;
}

static void end_segment(struct pyle_segment *s, int closes)
{
    struct evbuffer_file_segment *seg = NULL;

    pthread_mutex_lock(&pins_lock);
    if (closes && !s->open) {
        closes = 0;
    } else {
        if (closes)
            s->open = 0;
        if (--s->uses == 0) {
            seg = s->borrowed ? NULL : s->seg;
            s->seg = NULL;
        }
    }
    pthread_mutex_unlock(&pins_lock);
    if (seg)
        evbuffer_file_segment_free(seg);
}

int pyle_segment_close(struct pyle_segment *s)
{
    int sync = pyle_sync_enter();

    end_segment(s, 1);
    return (int)pyle_sync_leave(sync, 0);
}

void pyle_segment_unref(struct pyle_segment *s)
{
    end_segment(s, 1);
    pyle_unmake(PYLE_SEGMENTS, s);
    pyle_release_pins();
}

struct evbuffer_file_segment *pyle_segment_ptr(struct pyle_segment *s)
{
    return s->open ? s->seg : NULL;
}

static void on_segment_done(const struct evbuffer_file_segment *seg, int flags, void *arg)
{
    (void)seg;
    (void)flags;
    on_reference_done(NULL, 0, arg);
}

int pyle_segment_cleanup(struct pyle_segment *s, long long id, int *taken)
{
    struct pin *p;
    int rc = s->borrowed ? PYLE_FAIL : begin_segment(s); /* the C library may have its own */

    if (rc < 0)
        return rc;
    p = pyle_make(PYLE_PINS, sizeof(*p));
    if (p) {
        p->id = id;
        *taken = 1;
        evbuffer_file_segment_add_cleanup_cb(s->seg, on_segment_done, p);
    } else {
        rc = PYLE_NOMEM;
    }
    end_segment(s, 0);
    return rc;
}

static int add_segment(struct pyle_buf *b, struct pyle_segment *s, long long offset, long long length)
{
    int by_sendfile = s->sendfile && (b->drains || (b->borrowed && !b->request)), had_file = b->has_file, rc = 0;
    struct pyle_store store;

    if (s->borrowed ? offset != 0 || length >= 0
                    : offset > s->length || length > s->length - offset)
        return PYLE_RANGE;
    /* evbuffer_add_file_segment frees the segment in some of its failures: not in what is left. */
    if (evbuffer_commit_space(b->buf, NULL, 0) < 0)
        return PYLE_FAIL; /* frozen */
    if (length == 0 || (length < 0 && offset == s->length))
        return 0;
    if (pyle_store_fill(&store, 2, 1024) < 0)
        return PYLE_NOMEM;
    b->has_file |= by_sendfile; /* before any callback can look */
    if (evbuffer_add_file_segment(b->buf, s->seg, offset, length) < 0) {
        rc = pyle_failed();
        b->has_file = had_file;
    }
    pyle_store_close(&store);
    return rc;
}

int pyle_buf_add_segment(struct pyle_buf *b, struct pyle_segment *s, long long offset,
                         long long length)
{
    struct pyle_call c;
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = begin_segment(s);
    if (rc == 0) {
        rc = add_segment(b, s, offset, length);
        end_segment(s, 0);
    }
    return (int)pyle_buf_leave(&c, rc);
}

int pyle_buf_add_file(struct pyle_buf *b, int fd, long long offset, long long length)
{
    struct pyle_call c;
    struct pyle_segment s = {.seg = NULL};
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = pyle_segment_open(&s, fd, offset, length, b->borrowed && !b->request ? EVBUF_FS_DISABLE_SENDFILE : 0);
    if (rc == 0) {
        rc = add_segment(b, &s, 0, -1);
        end_segment(&s, 1);
    }
    return (int)pyle_buf_leave(&c, rc);
}

/* ---- descriptors ---- */

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

static int freeze(struct pyle_buf *b, int at_front, int on)
{
    if (at_front)
        b->frozen = on;
    return on ? evbuffer_freeze(b->buf, at_front) : evbuffer_unfreeze(b->buf, at_front);
}

int pyle_buf_freeze(struct pyle_buf *b, int at_front, int on)
{
    CALL(b, 0, freeze(b, at_front, on));
}

static int set_flags(struct pyle_buf *b, unsigned long long flags, int on)
{
    if (flags & EVBUFFER_FLAG_DRAINS_TO_FD)
        b->drains = on;
    return on ? evbuffer_set_flags(b->buf, flags) : evbuffer_clear_flags(b->buf, flags);
}

int pyle_buf_flags(struct pyle_buf *b, unsigned long long flags, int on)
{
    CALL(b, 0, set_flags(b, flags, on));
}

/* ---- locking ---- */

static int enable_locking(struct pyle_buf *b)
{
    /* -1: it has one already, a bufferevent's or a C library's */
    if (b->kept || b->locking)
        return PYLE_FAIL;
    if (evbuffer_enable_locking(b->buf, NULL) < 0 && !(b->borrowed && errno == 0))
        return pyle_failed();
    b->lock_gen = pyle_fork_gen;
    __atomic_store_n(&b->locking, 1, __ATOMIC_RELEASE);
    return 0;
}

int pyle_buf_enable_locking(struct pyle_buf *b)
{
    struct pyle_call c;
    int rc = pyle_buf_enter(&c, b, 0);

    return rc < 0 ? rc : (int)pyle_buf_leave(&c, enable_locking(b));
}

int pyle_buf_lock(struct pyle_buf *b, struct pyle_held *held)
{
    int rc;

    if (b->kept)
        return b->kept->options & BEV_OPT_THREADSAFE ? pyle_bev_lock(b->kept, held) : PYLE_UNABLE;
    if (b->closing)
        return PYLE_CLOSED;
    rc = b->locking ? begin_locked(b) : PYLE_UNABLE;
    if (rc == 0 && b->closing) { /* by the thread that had the lock before */
        end_locked(b);
        rc = PYLE_CLOSED;
    }
    if (rc == 0) {
        b->locker = PYLE_ME;
        ++b->lock_depth;
        hold(b, 1);
        held->buf_lock = b;
    }
    return rc;
}

int pyle_buf_unlock(struct pyle_buf *b)
{
    int sync;

    if (b->lock_depth == 0 || b->locker != PYLE_ME)
        return PYLE_THREAD;
    sync = pyle_sync_enter();
    if (--b->lock_depth == 0)
        b->locker = 0;
    end_locked(b);
    return (int)pyle_sync_leave(sync, 0);
}

/* ---- callbacks: one of libevent's for all of Python's, whose list Python keeps, because
 * libevent's own does not stand an entry that removes the next one ---- */

/* Deferred ones wait on their base's list. Not evbuffer_defer_callbacks: what waits there for a
 * base that is freed is never freed itself, and looks at that base for ever after. */
static void wait_for_loop(struct pyle_buf *b, struct pyle_base *pb)
{
    int waits = 0;

    pthread_mutex_lock(&pb->lock);
    if (!pb->closed && !b->queued) {
        b->queued = waits = 1;
        b->next = NULL;
        hold(b, 1);
        if (!pb->later)
            pb->later_end = &pb->later;
        *pb->later_end = b;
        pb->later_end = &b->next;
        if (!pb->delivering && pb->fork_gen == pyle_fork_gen && !(pb->nolock && pyle_elsewhere(pb)))
            event_active(&pb->later_event, EV_TIMEOUT, 1);
    }
    pthread_mutex_unlock(&pb->lock);
    if (waits && pyle_py_buffer_waits(pb->slot, b->token) != PYLE_DONE)
        pyle_raise(pyle_here);
}

static struct pyle_buf *next_later(struct pyle_base *pb)
{
    struct pyle_buf *b;

    pthread_mutex_lock(&pb->lock);
    b = pb->later;
    if (b) {
        pb->later = b->next;
        b->queued = 0;
    }
    pthread_mutex_unlock(&pb->lock);
    return b;
}

/* How many callbacks have raised; -1: another thread is in it. */
static int deliver(struct pyle_base *pb, struct pyle_buf *b)
{
    struct pyle_call c;
    size_t added, deleted;
    int answer, rc = pyle_buf_enter(&c, b, 0);

    if (rc == PYLE_THREAD) {
        wait_for_loop(b, pb);
        return -1;
    }
    if (rc < 0) /* closed */
        return pyle_py_buffer(pb->slot, b->token, 0, 0, 0) != PYLE_DONE;
    added = b->n_added;
    deleted = b->n_deleted;
    b->n_added = b->n_deleted = 0;
    answer = pyle_py_buffer(pb->slot, b->token, evbuffer_get_length(b->buf) + deleted - added, added,
                            deleted);
    if (answer == PYLE_RETRY) { /* it never reached the user */
        b->n_added += added;
        b->n_deleted += deleted;
        wait_for_loop(b, pb);
    }
    if (answer != PYLE_DONE && answer != PYLE_HANDLED)
        pyle_raise(pb);
    return pyle_buf_leave(&c, 0) == PYLE_RAISED ? pyle_raised() : 0;
}

static void on_later(evutil_socket_t fd, short what, void *arg)
{
    static const struct timeval next_round = {0, 0}, soon = {0, 1000};
    struct pyle_base *pb = arg;
    struct pyle_buf *b, *last;
    int raised = 0, busy = 0;

    (void)fd;
    (void)what;
    if (pyle_exiting) {
        event_base_loopbreak(pb->base);
        return;
    }
    pyle_before();
    pb->delivering = 1;
    pthread_mutex_lock(&pb->lock);
    last = pb->later ? (struct pyle_buf *)((char *)pb->later_end - offsetof(struct pyle_buf, next)) : NULL;
    pthread_mutex_unlock(&pb->lock);
    while (last && !pb->closed && raised <= 0 && (b = next_later(pb))) {
        if (b == last)
            last = NULL; /* what comes now came meanwhile */
        raised = deliver(pb, b);
        busy |= raised < 0;
        pyle_buf_unref(b);
    }
    pb->delivering = 0;
    while (raised-- > 0)
        pyle_raise(pb);
    pthread_mutex_lock(&pb->lock);
    if (pb->later && !pb->closed && event_add(&pb->later_event, busy ? &soon : &next_round) < 0)
        event_active(&pb->later_event, EV_TIMEOUT, 1);
    pthread_mutex_unlock(&pb->lock);
    pyle_after(pb);
}

void pyle_later_start(struct pyle_base *pb)
{
    if (pb->later)
        event_active(&pb->later_event, EV_TIMEOUT, 1);
}

void pyle_later_end(struct pyle_base *pb)
{
    struct pyle_buf *b;

    while ((b = next_later(pb)))
        pyle_buf_unref(b);
    if (pb->later_assigned) {
        event_del(&pb->later_event);
        event_debug_unassign(&pb->later_event);
    }
}

static int defer(struct pyle_buf *b, struct pyle_base *pb)
{
    int rc;

    if (b->deferred == pb)
        return 0;
    if (b->deferred && !b->deferred->closed)
        return PYLE_FAIL;
    rc = pyle_enter_base(pb);
    if (rc < 0)
        return rc;
    if (!pb->later_assigned) {
        event_assign(&pb->later_event, pb->base, -1, 0, on_later, pb);
        pyle_note_priority(pb, event_get_priority(&pb->later_event));
        pb->later_assigned = 1;
    }
    pyle_hold_base(pb);
    pyle_leave_base(pb);
    if (b->deferred)
        pyle_base_unref(b->deferred);
    b->deferred = pb;
    b->n_added = b->n_deleted = 0;
    return 0;
}

int pyle_buf_defer(struct pyle_buf *b, struct pyle_base *pb)
{
    struct pyle_call c;
    int rc = pyle_buf_enter(&c, b, 0);

    return rc < 0 ? rc : (int)pyle_buf_leave(&c, defer(b, pb));
}

static void call_now(struct pyle_buf *b, const struct evbuffer_cb_info *info)
{
    struct pyle_base *pb = b->owner ? b->owner->pb : NULL;
    struct pyle_buf *partner = NULL;
    int answer, moving = b->moving;

    if (b->owner && b->is_input && b->owner->partner && (partner = b->owner->partner->output))
        hold(partner, 1);
    b->moving = 0; /* libevent calls the callbacks of a move's source when all is done */
    if (partner)
        ++partner->moving, ++partner->depth; /* a pair moves by parts too */
    answer = pyle_py_buffer(pb && pyle_sync == 0 ? pb->slot : pyle_loop_slot(), b->token,
                            info->orig_size, info->n_added, info->n_deleted);
    if (answer != PYLE_DONE && answer != PYLE_HANDLED)
        pyle_raise(pb ? pb : pyle_here);
    if (partner) {
        --partner->moving, --partner->depth;
        unclaim(partner);
        pyle_buf_unref(partner);
    }
    b->moving = moving;
}

static void on_change(struct evbuffer *buf, const struct evbuffer_cb_info *info, void *arg)
{
    struct pyle_buf *b = arg;
    struct pyle_base *pb = b->owner ? b->owner->pb : NULL;
    struct evbuffer_cb_info told = *info;

    (void)buf;
    told.orig_size += b->untold;
    told.n_deleted += b->untold;
    b->untold = 0;
    if (pyle_exiting || b->closing || !claim(b))
        return;
    hold(b, 1);
    pyle_before();
    ++b->depth;
    count_inside(b, 1); /* a change that C code makes, perhaps: no call of ours is around it */
    if (b->deferred) {
        b->n_added += told.n_added;
        b->n_deleted += told.n_deleted;
        wait_for_loop(b, b->deferred);
    } else {
        call_now(b, &told);
    }
    count_inside(b, -1);
    --b->depth;
    if (b->borrowed)
        free_if_done(b); /* no leave() follows, perhaps */
    unclaim(b);
    if (pb && b->owner)
        pyle_after(pb);
    else
        pyle_leave();
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
