/* Bufferevents: the trampolines, closing at any moment, and the traps of libevent's that are
 * shut here (a full input that nobody reads, a deferred callback after disable(), a close that
 * waits for the loop, output dropped by free). */
#include "pyle.h"

#include <arpa/inet.h>
#include <event2/bufferevent_struct.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* ---- life ---- */

struct pyle_bev *pyle_bev_new(struct pyle_owned *owned, struct pyle_base *pb, long long token)
{
    struct pyle_bev *pv = pyle_own(owned, PYLE_BEVS, sizeof(*pv));

    if (!pv)
        return NULL;
    pv->refs = 1;
    pv->pb = pb;
    pv->token = token;
    pyle_hold_base(pb);
    return pv;
}

void pyle_bev_free(struct pyle_bev *pv)
{
    int i;

    pyle_bev_forget_limits(pv);
    for (i = 0; i < 2; ++i)
        if (pv->own[i])
            pyle_buf_free(pv->own[i]);
    if (pv->under)
        pyle_bev_unref(pv->under);
    pyle_base_unref(pv->pb);
    pyle_unmake(PYLE_BEVS, pv);
}

void pyle_bev_unref(struct pyle_bev *pv)
{
    struct pyle_base *pb = pv->pb;

    if (__atomic_sub_fetch(&pv->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    /* The loop's thread may be on its way into a trampoline with it: let that thread free it. */
    pthread_mutex_lock(&pb->lock);
    if ((pv->options & BEV_OPT_THREADSAFE) && pyle_elsewhere(pb)) {
        pv->next = pb->bev_grave;
        pb->bev_grave = pv;
        pv = NULL;
    }
    pthread_mutex_unlock(&pb->lock);
    if (pv) {
        pyle_bev_free(pv);
        pyle_release_pins();
    }
}

static int check(struct pyle_bev *pv, int closing)
{
    if (!pv->bev || (closing && pv->pb->lost) ||
        (!closing && (pv->pb->closed || pv->finishing)))
        return PYLE_CLOSED;
    if (pv->pb->fork_gen != pyle_fork_gen)
        return PYLE_FORKED;
    if (!(pv->options & BEV_OPT_THREADSAFE) && pyle_elsewhere(pv->pb))
        return PYLE_THREAD;
    errno = 0;
    return 0;
}

/* Without BEV_OPT_THREADSAFE one thread at a time is inside. With it any number; what one of them
 * closes the last of them frees. */
static int begin(struct pyle_bev *pv, struct pyle_use *u, int closing)
{
    uintptr_t nobody = 0;
    int rc;

    if (!closing && pyle_sync > PYLE_DEEPEST)
        return PYLE_DEEP;
    if (pv->options & BEV_OPT_THREADSAFE) {
        pthread_mutex_lock(&pv->pb->lock);
        rc = check(pv, closing);
        if (rc == 0) {
            u->bev = pv->bev;
            ++pv->depth;
            ++pv->pb->inflight;
        }
        pthread_mutex_unlock(&pv->pb->lock);
        return rc;
    }
    rc = check(pv, closing);
    if (rc < 0)
        return rc;
    if (!__atomic_compare_exchange_n(&pv->user, &nobody, PYLE_ME, 0, __ATOMIC_ACQUIRE,
                                     __ATOMIC_ACQUIRE) &&
        nobody != PYLE_ME)
        return PYLE_THREAD;
    ++pv->depth;
    u->bev = pv->bev;
    return 0;
}

/* For what looks at the output, or depends on what there is in it. */
static int begin_settled(struct pyle_bev *pv, struct pyle_use *u, int closing)
{
    int rc = begin(pv, u, closing);

    if (rc == 0 && pv->posted)
        pyle_bev_unpost(pv);
    return rc;
}

int pyle_bev_begin(struct pyle_bev *pv, struct pyle_use *u)
{
    return begin(pv, u, 0);
}

int pyle_bev_begin_to_close(struct pyle_bev *pv, struct pyle_use *u)
{
    return begin(pv, u, 1);
}

void pyle_bev_end(struct pyle_bev *pv, struct pyle_use *u)
{
    struct bufferevent *doomed = NULL;
    struct pyle_base *pb = pv->pb;

    (void)u;
    if (!(pv->options & BEV_OPT_THREADSAFE)) {
        if (--pv->depth == 0)
            __atomic_store_n(&pv->user, 0, __ATOMIC_RELEASE);
        return;
    }
    pthread_mutex_lock(&pb->lock);
    if (--pv->depth == 0) {
        doomed = pv->doomed;
        pv->doomed = NULL;
    }
    pthread_mutex_unlock(&pb->lock);
    if (doomed)
        bufferevent_free(doomed);
    pthread_mutex_lock(&pb->lock);
    if (--pb->inflight == 0)
        pthread_cond_broadcast(&pb->idle);
    pthread_mutex_unlock(&pb->lock);
}

/* Whoever reads into it from now on may not tell. */
static void not_dry(struct pyle_bev *pv)
{
    if (pv->input)
        pv->input->dry = 0;
}

/* ---- what the user enabled, and what we hold back ---- */

static int viewed(struct pyle_buf *b)
{
    return b && __atomic_load_n(&b->exports, __ATOMIC_ACQUIRE) > 0;
}

static const struct pyle_tls_hooks *tls_hooks;

/* libevent would wait for the rest of a handshake no more. */
static int switch_off(struct pyle_bev *pv, struct bufferevent *bev, short what)
{
    if (!pv->shaking)
        return bufferevent_disable(bev, what);
    bev->enabled &= (short)~what;
    return 0;
}

/* What is left in the SSL has been read from the socket: nothing would wake the loop for it. */
static void read_what_is_left(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (pv->tls && pv->is_socket && !pv->shaking && (bev->enabled & EV_READ) &&
        tls_hooks->pending(pv->tls))
        event_active(&bev->ev_read, EV_READ, 1);
}

void pyle_bev_hold(struct pyle_bev *pv, struct bufferevent *bev, short what)
{
    short on = (short)(bufferevent_get_enabled(bev) & what);

    if (on) {
        pv->held |= on;
        switch_off(pv, bev, on);
    }
}

static short on_of(short io)
{
    return (short)((io & EV_READ ? BEV_EVENT_READING : 0) | (io & EV_WRITE ? BEV_EVENT_WRITING : 0));
}

static int is_full(struct bufferevent *bev)
{
    size_t high = 0;

    bufferevent_getwatermark(bev, EV_READ, NULL, &high);
    return high > 0 && evbuffer_get_length(bufferevent_get_input(bev)) >= high;
}

/* OpenSSL, which has to be left before it is entered again, asks Python. On a socket only events
 * enter it; on another bufferevent, whatever moves bytes. */
int pyle_bev_asking(const struct pyle_bev *pv)
{
    return pv->tls && !pv->is_socket && tls_hooks->asking(pv->tls);
}

/* Calls of libevent's up to the end of this reach no such one: NULL, or what unhush() takes. The
 * end of the handshake starts all that is enabled. */
static struct bufferevent *hush(const struct pyle_bev *pv, short *enabled)
{
    for (; pv; pv = pv->under)
        if (pv->bev && pyle_bev_asking(pv)) {
            *enabled = pv->bev->enabled;
            pv->bev->enabled = 0;
            return pv->bev;
        }
    return NULL;
}

static int switch_on(const struct pyle_bev *pv, struct bufferevent *bev, short what)
{
    short enabled = 0;
    struct bufferevent *hushed = hush(pv, &enabled);
    int rc = hushed == bev ? 0 : bufferevent_enable(bev, what);

    if (hushed)
        hushed->enabled = enabled | (hushed == bev ? what : 0);
    return rc;
}

/* Has a filter look again at what there is to do in these directions. */
static void push(struct pyle_bev *filter, int what)
{
    const int later = BEV_TRIG_IGNORE_WATERMARKS | BEV_TRIG_DEFER_CALLBACKS;

    if (what && filter->bev && filter->under->bev)
        bufferevent_trigger(filter->under->bev, (short)what, later);
}

static void unstall(struct pyle_bev *filter)
{
    short what = filter->stalled;

    filter->stalled = 0;
    push(filter, what);
}

/* A filter's write timeout: libevent has it run with nothing to write, too. */
static void stop_idle_timeout(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (pv->under && evbuffer_get_length(bufferevent_get_output(bev)) == 0)
        event_del(&bev->ev_write);
}

/* In the loop: starting again may move data, which may call anything back. */
void pyle_bev_resume(struct pyle_bev *pv)
{
    struct pyle_use u;
    struct bufferevent *bev;
    short on = 0;

    if (pv->pb->closed || begin(pv, &u, 1) < 0)
        return;
    bev = u.bev;
    bufferevent_lock(bev);
    if (pv->stuck && !is_full(bev))
        pv->stuck = 0;
    if ((pv->held & EV_READ) && !pv->stuck && !viewed(pv->input))
        on |= EV_READ;
    if ((pv->held & EV_WRITE) && !viewed(pv->output))
        on |= EV_WRITE;
    if (on) {
        pv->held &= (short)~on;
        errno = 0;
        if (bufferevent_enable(bev, on) < 0) {
            int error = errno;
            bufferevent_disable(bev, on);
            EVUTIL_SET_SOCKET_ERROR(error);
            bufferevent_trigger_event(bev, BEV_EVENT_ERROR | on_of(on), BEV_TRIG_DEFER_CALLBACKS);
        }
        stop_idle_timeout(pv, bev);
        read_what_is_left(pv, bev);
        pv->stalled |= on;
    }
    if (pv->under)
        unstall(pv);
    if (pv->over)
        unstall(pv->over);
    bufferevent_unlock(bev);
    pyle_bev_end(pv, &u);
}

/* libevent does not tell when it could not add an event for what was added to the output, or, for
 * want of memory, any: once more, from the loop, which tells the event callback. */
void pyle_bev_rearm(struct pyle_bev *pv, struct bufferevent *bev)
{
    short what = pyle_went_short() ? EV_READ | EV_WRITE : 0;
    int error = errno;

    if (!pv->is_socket || pv->finishing || pv->borrowed)
        return;
    bufferevent_lock(bev);
    if (pv->bev == bev) {
        if (!what && !pv->unsent && (bev->enabled & EV_WRITE) && evbuffer_get_length(bev->output) > 0 &&
            event_get_fd(&bev->ev_write) >= 0 && !event_pending(&bev->ev_write, EV_WRITE, NULL) &&
            bufferevent_enable(bev, EV_WRITE) < 0)
            what = EV_WRITE;
        if (what) {
            pyle_bev_hold(pv, bev, what);
            pyle_bev_resume_soon(pv);
        }
    }
    bufferevent_unlock(bev);
    errno = error;
}

/* A reason to hold back may be gone: views let go of, room in the input. */
void pyle_bev_resume_soon(struct pyle_bev *pv)
{
    struct pyle_base *pb = pv->pb;

    pthread_mutex_lock(&pb->lock);
    if (pb->base && !pb->closed && !pv->queued && pb->fork_gen == pyle_fork_gen) {
        pv->queued = 1;
        __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
        pv->next = pb->bev_resume;
        pb->bev_resume = pv;
        pyle_kick(pb);
    }
    pthread_mutex_unlock(&pb->lock);
}

/* ---- trampolines ---- */

static void on_read(struct bufferevent *bev, void *arg);
static void on_under_read(struct bufferevent *bev, void *arg);
static void on_write(struct bufferevent *bev, void *arg);
static void on_bev_event(struct bufferevent *bev, short what, void *arg);
static int set_timeouts(struct bufferevent *bev, const struct timeval *read,
                        const struct timeval *write);

/* on_event, and so on, of ours are set in it: then this is whose it is. */
struct pyle_bev *pyle_bev_behind(struct bufferevent *bev)
{
    return bev->readcb == on_read || bev->writecb == on_write || bev->errorcb == on_bev_event
               ? bev->cbarg : NULL;
}

static int enter_callback(struct pyle_bev *pv)
{
    if (pyle_exiting) {
        if (pv->pb->base)
            event_base_loopbreak(pv->pb->base);
        return 0;
    }
    if (!pv->bev || pv->pb->closed)
        return 0;
    __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
    pyle_before();
    return 1;
}

/* libevent keeps bev until its callback has returned. */
static void leave_callback(struct pyle_bev *pv, struct bufferevent *bev, int answer, short io,
                           short event)
{
    struct pyle_base *pb = pv->pb;

    if (answer == PYLE_RETRY && pv->bev && !pb->closed) { /* it never reached the user */
        const int later = BEV_TRIG_IGNORE_WATERMARKS | BEV_TRIG_DEFER_CALLBACKS;
        if (io)
            bufferevent_trigger(bev, io, later);
        if (event)
            bufferevent_trigger_event(bev, event, BEV_TRIG_DEFER_CALLBACKS);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
    pyle_bev_unref(pv);
}

/* A deferred callback that comes after disable() waits for enable(). */
static int is_refused(struct pyle_bev *pv, short what)
{
    if (!(pv->refused & what) || (pv->forced & what)) {
        pv->forced &= (short)~what;
        return 0;
    }
    pv->missed |= what;
    return 1;
}

static void finish_now(struct pyle_bev *pv)
{
    pv->finishing = 2;
    if (enter_callback(pv))
        leave_callback(pv, NULL, pyle_py_bev_finished(pv->pb->slot, pv->token), 0, 0);
}

static void on_discard(struct bufferevent *bev, void *arg)
{
    struct pyle_bev *pv = arg;
    struct evbuffer *input = bufferevent_get_input(bev);

    pv->discard -= (ssize_t)evbuffer_get_length(input);
    evbuffer_drain(input, evbuffer_get_length(input));
    if (pv->discard <= 0)
        finish_now(pv);
}

/* All is written. Closing a socket with something unread in it would have the kernel send a reset
 * and drop what the peer has not got yet: say that we are through, and read a little longer. */
static int must_linger(struct pyle_bev *pv, struct bufferevent *bev)
{
    static const struct timeval patience = {2, 0};
    struct evbuffer *input = bufferevent_get_input(bev);
    int unread = 0, fd = pv->is_socket ? bufferevent_getfd(bev) : -1;

    if (fd < 0 || viewed(pv->input) || ioctl(fd, FIONREAD, &unread) < 0 || unread == 0)
        return 0;
    shutdown(fd, SHUT_WR);
    pv->finishing = 3;
    pv->discard = 1 << 24;
    evbuffer_drain(input, evbuffer_get_length(input));
    pyle_bev_unlimit(pv, bev);
    bufferevent_setcb(bev, on_discard, NULL, on_bev_event, pv);
    bufferevent_setwatermark(bev, EV_READ, 0, 0);
    return bufferevent_set_timeouts(bev, &patience, NULL) == 0 && bufferevent_enable(bev, EV_READ) == 0;
}

static int is_noted(struct pyle_bev *pv)
{
    long long *noted = pv->pb->noted;

    if (!pv->may_note || !noted || noted[0] >= PYLE_POLL_NOTES)
        return 0;
    if (noted[0] == 0)
        event_active(pv->pb->noting, EV_TIMEOUT, 1);
    noted[++noted[0]] = pv->token;
    return 1;
}

void pyle_bev_note(struct pyle_bev *pv)
{
    pv->may_note = 1;
}

static void on_read(struct bufferevent *bev, void *arg)
{
    struct pyle_bev *pv = arg;
    size_t before;
    int answer;

    if (is_refused(pv, EV_READ) || !enter_callback(pv))
        return;
    before = evbuffer_get_length(bufferevent_get_input(bev));
    answer = is_noted(pv) ? PYLE_DONE : pyle_py_bev_read(pv->pb->slot, pv->token);
    /* At the high watermark libevent would call again at once, for ever. It may as long as the
     * callback takes something; then reading waits until something is taken. */
    if (answer != PYLE_RETRY && pv->bev && !pv->pb->closed && !pv->over && is_full(bev) &&
        evbuffer_get_length(bufferevent_get_input(bev)) >= before) {
        pv->stuck = 1;
        pyle_bev_hold(pv, bev, EV_READ);
    }
    leave_callback(pv, bev, answer, EV_READ, 0);
}

/* Output has gone out behind libevent's back. */
void pyle_bev_written(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (pv->finishing)
        on_write(bev, pv);
    else if (bev->writecb)
        bufferevent_trigger(bev, EV_WRITE, BEV_TRIG_DEFER_CALLBACKS);
}

/* The end of a TLS stream is told. 0: the socket takes nothing now, and on_tls_written() asks again. */
static int told_the_end(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (!pv->tls || pv->shaking || tls_hooks->notify(pv->tls) || !pv->is_socket)
        return 1;
    pv->finishing = 1;
    event_add(&bev->ev_write, evutil_timerisset(&bev->timeout_write) ? &bev->timeout_write : NULL);
    return 0;
}

static void on_write(struct bufferevent *bev, void *arg)
{
    struct pyle_bev *pv = arg;

    if (pv->finishing) {
        if (pv->finishing == 1 && evbuffer_get_length(bufferevent_get_output(bev)) == 0 &&
            told_the_end(pv, bev) && !must_linger(pv, bev))
            finish_now(pv);
        return;
    }
    stop_idle_timeout(pv, bev);
    if (is_refused(pv, EV_WRITE) || !enter_callback(pv))
        return;
    leave_callback(pv, bev, pyle_py_bev_write(pv->pb->slot, pv->token), EV_WRITE, 0);
}

/* ---- TLS ---- */

#define MOST_AHEAD 49152

static event_callback_fn tls_reads, tls_writes;

/* A full input or a rate limit, or the end of a record, has stopped libevent. */
static void read_ahead(struct pyle_bev *pv, struct bufferevent *bev)
{
    struct evbuffer *input = bufferevent_get_input(bev);
    size_t before = pv->seen;
    int limited = bev->wm_read.high || pv->limit || pv->group || (pv->capped & EV_READ);

    if ((bev->enabled & EV_READ) &&
        tls_hooks->take(pv->tls, input, limited ? 0 : MOST_AHEAD) < 0 && pv->bev == bev)
        event_active(&bev->ev_read, EV_READ, 1); /* libevent is to meet that error, too */
    if (pv->bev == bev && evbuffer_get_length(input) > before)
        bufferevent_trigger(bev, EV_READ, 0);
}

/* Whose it is, though a filter on it may have its callbacks. */
static struct pyle_bev *tls_behind(struct bufferevent *bev)
{
    return bev->readcb == on_under_read ? ((struct pyle_bev *)bev->cbarg)->under
                                        : pyle_bev_behind(bev);
}

static void on_tls_written(struct bufferevent *bev, int was_armed)
{
    struct pyle_bev *pv = tls_behind(bev);

    if (!pv || !pv->tls || pv->bev != bev)
        return;
    if (pv->finishing == 1)
        on_write(bev, pv);
    else if (evbuffer_get_length(bufferevent_get_output(bev)) > 0 && !IS_ARMED(&bev->ev_write) &&
             !was_armed && (bev->enabled & EV_WRITE) && !tls_hooks->dead(pv->tls))
        bufferevent_enable(bev, EV_WRITE); /* write_soon() has not armed it */
}

/* What a callback writes goes out when the callbacks that are due are over: an event that is active
 * is not armed by libevent, which costs three system calls. */
static void write_soon(struct pyle_bev *pv, struct bufferevent *bev, size_t n)
{
    if (pv->tls && pv->is_socket && !pv->shaking && !tls_hooks->dead(pv->tls) && n > 0 &&
        pyle_here == pv->pb && pyle_depth > 0 && (bev->enabled & EV_WRITE) && evbuffer_get_length(bufferevent_get_output(bev)) == 0 &&
        !IS_ARMED(&bev->ev_write))
        event_active(&bev->ev_write, EV_WRITE, 1);
}

static void on_end_of_tls(struct bufferevent *bev, short what, void *arg)
{
    struct pyle_bev *pv = arg;

    if (pv->bev != bev)
        pv = pv->under;
    pv->end_error = EVUTIL_SOCKET_ERROR();
    pv->end |= what;
}

static void on_tls_readable(evutil_socket_t fd, short what, void *arg)
{
    struct bufferevent *bev = arg;

    struct pyle_bev *pv;
    bufferevent_data_cb read;
    bufferevent_event_cb event;
    short end;

    bufferevent_incref(bev);
    bufferevent_lock(bev);
    pv = tls_behind(bev);
    if (!pv || !pv->tls) {
        tls_reads(fd, what, arg);
    } else {
        /* One call for all there is, and the end after it, where libevent tells the end first. */
        __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
        pv->seen = evbuffer_get_length(bufferevent_get_input(bev));
        read = bev->readcb;
        event = bev->errorcb;
        bev->readcb = NULL;
        bev->errorcb = on_end_of_tls;
        tls_reads(fd, what, arg);
        if (bev->errorcb == on_end_of_tls) { /* a callback of the input's has set no others */
            bev->readcb = read;
            bev->errorcb = event;
        }
        end = pv->end;
        pv->end = 0;
        if (pv->bev == bev && (what & EV_READ))
            read_ahead(pv, bev);
        if (end && pv->bev == bev && bev->errorcb) {
            EVUTIL_SET_SOCKET_ERROR(pv->end_error);
            bev->errorcb(bev, end, bev->cbarg);
        }
        pyle_bev_unref(pv);
    }
    bufferevent_unlock(bev);
    bufferevent_decref(bev);
}

static void on_tls_writable(evutil_socket_t fd, short what, void *arg)
{
    struct bufferevent *bev = arg;
    int was_armed;

    bufferevent_incref(bev);
    bufferevent_lock(bev);
    was_armed = IS_ARMED(&bev->ev_write);
    tls_writes(fd, what, arg);
    on_tls_written(bev, was_armed); /* if it was, and is no more, writing has failed */
    bufferevent_unlock(bev);
    bufferevent_decref(bev);
}

static void hook_tls(struct event *ev, event_callback_fn ours, event_callback_fn *theirs,
                     struct bufferevent *bev)
{
    if (event_get_callback(ev) == ours || event_get_callback_arg(ev) != bev)
        return;
    *theirs = event_get_callback(ev);
    ev->ev_evcallback.evcb_cb_union.evcb_callback = ours;
}

/* Has OpenSSL's part of it looked at first; what it comes to is told, 0: nothing. */
static short on_tls_event(struct pyle_bev *pv, struct bufferevent *bev, short what, int *error)
{
    what = (short)tls_hooks->event(pv->tls, bev, what, *error);
    if ((what & BEV_EVENT_ERROR) == 0)
        *error = 0;
    if ((what & BEV_EVENT_CONNECTED) && tls_hooks->connected(pv->tls)) {
        pv->shaking = 0;
        if (pv->is_socket) {
            hook_tls(&bev->ev_read, on_tls_readable, &tls_reads, bev);
            hook_tls(&bev->ev_write, on_tls_writable, &tls_writes, bev);
            read_what_is_left(pv, bev);
        }
        if (!(bev->enabled & EV_READ))
            bufferevent_disable(bev, EV_READ); /* the handshake had it read */
    }
    if ((what & BEV_EVENT_TIMEOUT) && (what & (BEV_EVENT_READING | BEV_EVENT_WRITING)))
        bufferevent_disable(bev, what & BEV_EVENT_READING ? EV_READ : EV_WRITE);
    return what;
}

static void on_bev_event(struct bufferevent *bev, short what, void *arg)
{
    struct pyle_bev *pv = arg;
    int error = what & BEV_EVENT_ERROR ? EVUTIL_SOCKET_ERROR() : 0;

    if (pv->tls && !(what = on_tls_event(pv, bev, what, &error)))
        return;
    if (pv->finishing) {
        if (pv->finishing == 3 || (pv->finishing == 1 && (what & (BEV_EVENT_ERROR | BEV_EVENT_TIMEOUT |
                                                                  BEV_EVENT_WRITING))))
            finish_now(pv);
        return;
    }
    if (!enter_callback(pv))
        return;
    leave_callback(pv, bev, pyle_py_bev_event(pv->pb->slot, pv->token, what, error), 0, what);
}

/* ---- opening ---- */

static int slot_of(struct pyle_base *pb)
{
    return pb->slot;
}

static int set_nodelay(int fd)
{
    int on = 1;

    return setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* fails where there is no TCP */
}

int pyle_bev_socket(struct pyle_bev *pv, int fd, int options, int nodelay)
{
    int rc = pyle_enter_base(pv->pb);

    if (rc < 0)
        return rc;
    pyle_went_short();
    if (!(options & BEV_OPT_THREADSAFE) && pyle_elsewhere(pv->pb)) {
        rc = PYLE_THREAD;
    } else if (fd >= pv->pb->fd_limit) {
        rc = PYLE_RANGE;
    } else if (fd >= 0 && (rc = pyle_fd_waits(pv->pb, fd)) < 0) {
        ; /* nothing would ever happen */
    } else if (fd >= 0 && evutil_make_socket_nonblocking(fd) < 0) {
        rc = pyle_failed();
    } else if (!(pv->bev = bufferevent_socket_new(pv->pb->base, fd, options))) {
        rc = pyle_failed();
    } else if (pyle_went_short()) { /* it would never write */
        bufferevent_setfd(pv->bev, -1);
        bufferevent_free(pv->bev);
        pv->bev = NULL;
        rc = PYLE_NOMEM;
    } else {
        pv->is_socket = 1;
        pv->options = options;
        pv->nodelay = nodelay;
        pv->plain = options & BEV_OPT_THREADSAFE;
        pyle_bev_hook(pv, pv->bev);
        if (nodelay && fd >= 0)
            set_nodelay(fd);
        if (pyle_accepting == fd)
            pyle_accepting = -1; /* taken over: the listener does not close it */
        pyle_note_priority(pv->pb, bufferevent_get_priority(pv->bev));
    }
    pyle_leave_base(pv->pb);
    return rc;
}

/* Python was interrupted before it could tell the caller, whose the descriptor is then. */
void pyle_bev_unopen(struct pyle_bev *pv)
{
    int fd = pv->bev ? bufferevent_getfd(pv->bev) : -1;

    if (pv->tls && pv->is_socket) {
        pv->options &= ~BEV_OPT_CLOSE_ON_FREE;
        if (fd >= 0 && fd == pyle_accepted)
            pyle_accepting = fd;
    } else if (fd >= 0 && pyle_bev_setfd(pv, -1, 0) == 0 && fd == pyle_accepted) {
        pyle_accepting = fd;
    }
    pyle_bev_close(pv, 0);
}

const struct pyle_tls_hooks *pyle_get_tls_hooks(void)
{
    return tls_hooks;
}

const struct pyle_tls_services *pyle_set_tls_hooks(const struct pyle_tls_hooks *hooks)
{
    static const struct pyle_tls_services services = {pyle_before, pyle_after, pyle_raise, slot_of};

    tls_hooks = hooks;
    return &services;
}

/* libevent is not told to close the descriptor or to free the SSL: it does both late, and wrong
 * where it fails. */
int pyle_bev_tls_socket(struct pyle_bev *pv, struct pyle_tls *tls, int fd, int options, int nodelay)
{
    struct pyle_store store;
    int rc = pyle_enter_base(pv->pb);

    if (rc < 0)
        return rc;
    if (pyle_store_fill(&store, 8, 1024) < 0) {
        pyle_leave_base(pv->pb);
        return PYLE_NOMEM;
    }
    if (!(options & BEV_OPT_THREADSAFE) && pyle_elsewhere(pv->pb)) {
        rc = PYLE_THREAD;
    } else if (fd >= pv->pb->fd_limit) {
        rc = PYLE_RANGE;
    } else if (fd >= 0 && (rc = pyle_fd_waits(pv->pb, fd)) < 0) {
        ; /* nothing would ever happen */
    } else if (fd >= 0 && evutil_make_socket_nonblocking(fd) < 0) {
        rc = pyle_failed();
    } else if (!(pv->bev = tls_hooks->open(tls, pv->pb->base, fd, NULL,
                                           options & ~BEV_OPT_CLOSE_ON_FREE))) {
        rc = PYLE_NOMEM;
    } else {
        pv->tls = tls;
        pv->is_socket = pv->plain = pv->shaking = 1;
        pv->options = options;
        pv->nodelay = nodelay;
        bufferevent_setcb(pv->bev, NULL, NULL, on_bev_event, pv);
        if (nodelay && fd >= 0)
            set_nodelay(fd);
        if (pyle_accepting == fd)
            pyle_accepting = -1;
        pyle_note_priority(pv->pb, bufferevent_get_priority(pv->bev));
    }
    pyle_store_close(&store);
    pyle_leave_base(pv->pb);
    return rc;
}

int pyle_bev_pair(struct pyle_bev *a, struct pyle_bev *b, int options)
{
    struct bufferevent *pair[2];
    struct pyle_store store;
    int rc = pyle_enter_base(a->pb);

    if (rc < 0)
        return rc;
    if (!(options & BEV_OPT_THREADSAFE) && pyle_elsewhere(a->pb)) {
        rc = PYLE_THREAD;
    } else if (pyle_store_fill(&store, 12, 1024) < 0) {
        rc = PYLE_NOMEM;
    } else if (bufferevent_pair_new(a->pb->base, options, pair) < 0) {
        rc = pyle_failed();
        pyle_store_close(&store);
    } else {
        pyle_store_close(&store);
        a->bev = pair[0];
        b->bev = pair[1];
        a->options = b->options = options;
        a->partner = b;
        b->partner = a;
        pyle_note_priority(a->pb, bufferevent_get_priority(a->bev));
    }
    pyle_leave_base(a->pb);
    return rc;
}

/* ---- filters ---- */

static enum bufferevent_filter_result filter_failed(struct pyle_bev *pv, short io)
{
    const short what = BEV_EVENT_ERROR | (io == EV_READ ? BEV_EVENT_READING : BEV_EVENT_WRITING);

    if (pv->bev && !pv->pb->closed) {
        EVUTIL_SET_SOCKET_ERROR(0);
        bufferevent_trigger_event(pv->bev, what, BEV_TRIG_DEFER_CALLBACKS);
    }
    return BEV_ERROR;
}

static enum bufferevent_filter_result ask_python(struct pyle_bev *pv, short io, ssize_t limit,
                                                 int mode)
{
    struct pyle_base *pb = pv->pb;
    int answer;

    pyle_before();
    answer = pyle_py_bev_filter(pb->slot, pv->token, io == EV_WRITE, limit, mode);
    if (answer == PYLE_RETRY)
        push(pv, io);
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
    if (answer == PYLE_RETRY)
        return BEV_NEED_MORE;
    return answer >= PYLE_FILTER_RESULT
               ? (enum bufferevent_filter_result)(answer - PYLE_FILTER_RESULT)
               : BEV_ERROR;
}

/* In two steps if a part is to stay: evbuffer_remove_buffer calls dst's callbacks, which another
 * filter may be, while src is half way. */
static enum bufferevent_filter_result move_all(struct pyle_buf *from, struct evbuffer *src,
                                               struct evbuffer *dst, ssize_t limit)
{
    struct pyle_buf *outer = pyle_source;
    struct evbuffer *part;
    int rc;

    if (limit < 0 || (size_t)limit >= evbuffer_get_length(src))
        return evbuffer_add_buffer(dst, src) < 0 ? BEV_ERROR : BEV_OK;
    part = evbuffer_new();
    if (!part)
        return BEV_ERROR;
    pyle_source = from;
    rc = pyle_move_part(part, src, (size_t)limit) < 0 ? -1 : evbuffer_add_buffer(dst, part);
    pyle_source = outer;
    evbuffer_free(part);
    return rc < 0 ? BEV_ERROR : BEV_OK;
}

/* A view is out of one of the two buffers: it goes on when that is gone. */
static int stalls(struct pyle_bev *pv, short io)
{
    if (io == EV_READ ? !viewed(pv->under->input) && !viewed(pv->input)
                      : !viewed(pv->under->output) && !viewed(pv->output))
        return 0;
    pv->stalled |= io;
    return 1;
}

/* libevent calls a filter that says BEV_OK again as long as there is something to take, and does
 * nothing at all about BEV_ERROR. */
static enum bufferevent_filter_result run_filter(struct pyle_bev *pv, short io, struct evbuffer *src,
                                                 struct evbuffer *dst, ssize_t limit, int mode)
{
    struct pyle_bev *under = pv->under;
    size_t src_before, dst_before;
    enum bufferevent_filter_result result;

    if (!pv->bev || pv->pb->closed || pyle_exiting)
        return BEV_ERROR;
    if (!under->bev)
        return filter_failed(pv, io);
    if (stalls(pv, io))
        return BEV_NEED_MORE;
    if (under->posted)
        pyle_bev_unpost(under);
    src_before = evbuffer_get_length(src);
    dst_before = evbuffer_get_length(dst);
    __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
    result = pv->filters & io
                 ? ask_python(pv, io, limit, mode)
                 : move_all(io == EV_READ ? under->input : pv->output, src, dst, limit);
    if (io == EV_READ && (under->stuck || under->stalled))
        pyle_bev_resume_soon(under);
    if (!pv->bev || pv->pb->closed)
        result = BEV_ERROR;
    else if (result == BEV_ERROR)
        filter_failed(pv, io);
    else if (result == BEV_OK && src_before > 0 && evbuffer_get_length(src) == src_before &&
             evbuffer_get_length(dst) == dst_before)
        result = BEV_NEED_MORE; /* it would be called for ever */
    if (result == BEV_NEED_MORE)
        stalls(pv, io);
    pyle_bev_unref(pv);
    return result;
}

static enum bufferevent_filter_result on_filter_input(struct evbuffer *src, struct evbuffer *dst,
                                                      ev_ssize_t limit,
                                                      enum bufferevent_flush_mode mode, void *arg)
{
    return run_filter(arg, EV_READ, src, dst, limit, mode);
}

static enum bufferevent_filter_result on_filter_output(struct evbuffer *src, struct evbuffer *dst,
                                                       ev_ssize_t limit,
                                                       enum bufferevent_flush_mode mode, void *arg)
{
    return run_filter(arg, EV_WRITE, src, dst, limit, mode);
}

/* Input that the filter has no room for waits, and so does the end that comes after it. */
static int waits(struct pyle_bev *pv, struct bufferevent *bev)
{
    return evbuffer_get_length(bufferevent_get_input(bev)) > 0 &&
           (is_full(pv->bev) || (pv->stalled & EV_READ) ||
            !(bufferevent_get_enabled(pv->bev) & EV_READ));
}

static void on_under_write(struct bufferevent *bev, void *arg);
static void on_under_event(struct bufferevent *bev, short what, void *arg);

/* Ours around libevent's; TLS sets others when the handshake is over. */
static void wrap_callbacks(struct pyle_bev *pv, struct bufferevent *under)
{
    if (under->readcb == on_under_read)
        return;
    bufferevent_getcb(under, &pv->base_read, &pv->base_write, &pv->base_event, &pv->base_arg);
    bufferevent_setcb(under, on_under_read, on_under_write, on_under_event, pv);
}

/* What libevent's filter has set as the callbacks of what it is on, with ours around it: once a
 * filter is closed nothing comes, though libevent may still be in the middle of one of these. */
static void on_under_read(struct bufferevent *bev, void *arg)
{
    struct pyle_bev *pv = arg, *under = pv->under;
    struct bufferevent *filter = pv->bev;
    size_t before = evbuffer_get_length(bufferevent_get_input(bev));
    short end;

    if (!filter || pyle_bev_asking(pv)) /* it goes on with what there is */
        return;
    __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
    bufferevent_incref(filter);
    if (!pv->tls && !(bufferevent_get_enabled(filter) & EV_READ))
        bufferevent_disable(filter, EV_READ); /* an older filter's end has let it read */
    if (!pv->tls || !stalls(pv, EV_READ))
        pv->base_read(bev, pv->base_arg);
    if (pv->bev && under->bev) {
        wrap_callbacks(pv, bev);
        if (is_full(bev) && evbuffer_get_length(bufferevent_get_input(bev)) >= before) {
            under->stuck = 1; /* as in on_read */
            pyle_bev_hold(under, bev, EV_READ);
        }
        if (waits(pv, bev)) {
            pv->stalled |= EV_READ;
        } else if ((end = pv->end) != 0) {
            pv->end = 0;
            pv->base_event(bev, end, pv->base_arg);
        }
    }
    bufferevent_decref(filter);
    pyle_bev_unref(pv);
}

static void on_under_write(struct bufferevent *bev, void *arg)
{
    struct pyle_bev *pv = arg;
    struct bufferevent *filter = pv->bev;

    if (!filter || pyle_bev_asking(pv))
        return;
    __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
    bufferevent_incref(filter);
    if (!pv->tls || !stalls(pv, EV_WRITE))
        pv->base_write(bev, pv->base_arg);
    if (pv->bev && pv->under->bev)
        wrap_callbacks(pv, bev);
    bufferevent_decref(filter);
    pyle_bev_unref(pv);
}

static void on_under_event(struct bufferevent *bev, short what, void *arg)
{
    struct pyle_bev *pv = arg;
    int error = what & BEV_EVENT_ERROR ? EVUTIL_SOCKET_ERROR() : 0;

    if (!pv->bev || (pv->under->tls && !(what = on_tls_event(pv->under, bev, what, &error))))
        return;
    EVUTIL_SET_SOCKET_ERROR(error);
    if ((what & BEV_EVENT_EOF) && waits(pv, bev)) {
        pv->end = what;
        pv->stalled |= EV_READ;
    } else {
        pv->base_event(bev, what, pv->base_arg);
    }
}

static int filter_on(struct pyle_bev *pv, struct pyle_bev *under, struct bufferevent *bev,
                     struct pyle_tls *tls, int options)
{
    const int theirs = (options & ~BEV_OPT_CLOSE_ON_FREE) | BEV_OPT_DEFER_CALLBACKS;
    struct pyle_store store;

    if ((options | under->options) & BEV_OPT_THREADSAFE)
        return PYLE_RANGE; /* two locks, and libevent takes them in either order */
    if (under->over)
        return PYLE_FILTERED;
    if (viewed(under->input) || viewed(under->output))
        return PYLE_VIEWED;
    /* Closing what it is on is Python's part, and deferred callbacks keep one that always writes
     * more from never coming back. */
    if (pyle_store_fill(&store, 8, 1024) < 0)
        return PYLE_NOMEM;
    pv->bev = tls ? tls_hooks->open(tls, pv->pb->base, -1, bev, theirs)
                  : bufferevent_filter_new(bev, on_filter_input, on_filter_output, theirs, NULL, pv);
    pyle_store_close(&store);
    if (!pv->bev)
        return PYLE_NOMEM;
    pv->tls = tls;
    pv->shaking = pv->plain = tls != NULL;
    pv->options = options;
    pv->under = under;
    __atomic_add_fetch(&under->refs, 1, __ATOMIC_RELAXED);
    under->over = pv;
    not_dry(under);
    under->held = under->refused = under->missed = under->forced = 0;
    under->stuck = 0;
    wrap_callbacks(pv, bev);
    bufferevent_setcb(pv->bev, NULL, on_write, tls ? on_bev_event : NULL, pv);
    if (tls)
        push(pv, EV_WRITE); /* a client begins */
    pyle_note_priority(pv->pb, bufferevent_get_priority(pv->bev));
    return 0;
}

/* What libevent does when the last one that uses a filter lets go of it, which another filter on
 * it may do late: what it was on reads again, and has no callbacks. */
static void leave_under(struct pyle_bev *pv, struct bufferevent *bev)
{
    struct pyle_bev *under = pv->under;
    struct bufferevent *hushed;
    short enabled = 0;

    if (under->over != pv)
        return;
    under->over = NULL;
    if (under->bev)
        bufferevent_setcb(under->bev, NULL, NULL, NULL, NULL);
    if (pv->tls)
        return;
    hushed = hush(under, &enabled);
    bufferevent_set_timeouts(bev, NULL, NULL);
    bufferevent_setwatermark(bev, EV_READ, 0, 0);
    bufferevent_enable(bev, EV_READ);
    if (hushed)
        hushed->enabled = enabled;
}

/* Whether a view is out of anything that a flush in these directions would move. */
static int flush_viewed(struct pyle_bev *pv, int what)
{
    struct pyle_bev *partner;

    for (; pv; pv = pv->under) {
        partner = pv->partner;
        if ((what & EV_READ) && (viewed(pv->input) || (partner && viewed(partner->output))))
            return 1;
        if ((what & EV_WRITE) && (viewed(pv->output) || (partner && viewed(partner->input))))
            return 1;
    }
    return 0;
}

/* libevent goes on in what is closed, as long as there is a filter on it. */
static int under_closed(struct pyle_bev *pv)
{
    while ((pv = pv->under))
        if (!pv->bev)
            return 1;
    return 0;
}

/* filters: EV_READ, EV_WRITE, where Python has a function; elsewhere all is handed on. */
int pyle_bev_filter(struct pyle_bev *pv, struct pyle_bev *under, int filters, int options)
{
    struct pyle_use u;
    int sync, rc = begin(under, &u, 0);

    if (rc < 0)
        return rc;
    sync = pyle_sync_enter();
    pv->filters = (short)filters;
    rc = filter_on(pv, under, u.bev, NULL, options);
    pyle_bev_end(under, &u);
    return (int)pyle_sync_leave(sync, rc);
}

int pyle_bev_tls_filter(struct pyle_bev *pv, struct pyle_tls *tls, struct pyle_bev *under,
                        int options)
{
    struct pyle_use u;
    int sync, rc = begin_settled(under, &u, 0);

    if (rc < 0)
        return rc;
    sync = pyle_sync_enter();
    /* Whoever sent these before TLS began may not be who it is sealed with. */
    rc = evbuffer_get_length(bufferevent_get_input(u.bev)) > 0
             ? PYLE_INUSE : filter_on(pv, under, u.bev, tls, options);
    pyle_bev_end(under, &u);
    return (int)pyle_sync_leave(sync, rc);
}

/* ---- somebody else's: a reference keeps its memory, whatever C does ---- */

int pyle_bev_borrow(struct pyle_bev *pv, struct bufferevent *bev)
{
    int rc = pyle_enter_base(pv->pb);

    if (rc < 0)
        return rc;
    bufferevent_incref(bev);
    pv->bev = bev;
    pv->borrowed = pv->plain = 1;
    pv->is_socket = !bufferevent_get_underlying(bev) && !bufferevent_pair_get_partner(bev);
    pyle_leave_base(pv->pb);
    return 0;
}

static int give_back(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (pv->has_callbacks || pv->over)
        bufferevent_setcb(bev, NULL, NULL, NULL, NULL);
    if (pv->held)
        bufferevent_enable(bev, pv->held);
    bufferevent_decref(bev);
    return 0;
}

/* ---- closing ---- */

struct bufferevent *pyle_bev_give(struct pyle_bev *pv, struct pyle_tls **tls)
{
    struct pyle_use u;
    struct bufferevent *bev;

    if (begin(pv, &u, 0) < 0)
        return NULL;
    bev = u.bev;
    if (!pv->is_socket || (pv->options & BEV_OPT_THREADSAFE) || pv->over || pv->borrowed ||
        pv->connecting || pv->posted || pv->unsent || pv->lock_depth || bufferevent_getfd(bev) >= 0) {
        pyle_bev_end(pv, &u);
        return NULL;
    }
    bufferevent_setcb(bev, NULL, NULL, NULL, NULL);
    if (pv->input)
        pyle_buf_orphan(pv->input, bufferevent_get_input(bev));
    if (pv->output)
        pyle_buf_orphan(pv->output, bufferevent_get_output(bev));
    pv->input = pv->output = NULL;
    pyle_bev_unlimit(pv, bev);
    *tls = pv->tls;
    if (pv->tls)
        tls_hooks->no_ahead(pv->tls);
    pv->tls = NULL;
    pv->bev = NULL;
    pyle_bev_end(pv, &u);
    return bev;
}

int pyle_bev_close(struct pyle_bev *pv, int by_base)
{
    struct pyle_use u;
    struct bufferevent *bev;
    struct pyle_bev *partner;
    struct pyle_buf *input, *output;
    struct pyle_tls *tls;
    int rc, fd = -1, sync, ours;

    while ((rc = begin(pv, &u, 1)) == PYLE_THREAD && by_base)
        usleep(1000); /* another thread is in one of its calls: the base waits for that */
    if (rc < 0)
        return rc == PYLE_CLOSED ? 0 : rc;
    bev = u.bev;
    sync = pyle_sync_enter();
    bufferevent_lock(bev);
    pthread_mutex_lock(&pv->pb->lock);
    ours = pv->bev == bev; /* else another thread was faster */
    if (pv->posted) {
        pv->posted = 0;
        pv->pb->posting = NULL;
    }
    pv->bev = NULL;
    pthread_mutex_unlock(&pv->pb->lock);
    if (!ours) {
        bufferevent_unlock(bev);
        pyle_bev_end(pv, &u);
        return (int)pyle_sync_leave(sync, 0);
    }
    partner = pv->partner;
    pv->partner = NULL;
    if (partner) {
        partner->partner = NULL;
        __atomic_add_fetch(&partner->refs, 1, __ATOMIC_RELAXED);
    }
    input = pv->input;
    output = pv->output;
    pv->input = pv->output = NULL;
    if (input)
        pyle_buf_orphan(input, bufferevent_get_input(bev));
    if (output)
        pyle_buf_orphan(output, bufferevent_get_output(bev));
    if (!pv->borrowed) {
        bufferevent_setcb(bev, NULL, NULL, NULL, NULL);
        bufferevent_disable(bev, EV_READ | EV_WRITE);
        if (pv->under)
            leave_under(pv, bev);
    }
    pyle_bev_unlimit(pv, bev);
    tls = pv->tls;
    pv->tls = NULL;
    if (tls) {
        fd = pv->is_socket ? bufferevent_getfd(bev) : -1;
        tls_hooks->leave(tls);
        if (!(pv->options & BEV_OPT_CLOSE_ON_FREE) && !pv->own_fd)
            fd = -1;
    } else if (pv->is_socket && !pv->borrowed && !pyle_elsewhere(pv->pb)) {
        /* libevent closes the descriptor when the loop comes round; the peer should know now.
         * (With the loop in another thread, that thread may be about to read from it.) */
        fd = bufferevent_getfd(bev);
        bufferevent_setfd(bev, -1);
        if (!(pv->options & BEV_OPT_CLOSE_ON_FREE) && !pv->own_fd)
            fd = -1;
    }
    bufferevent_unlock(bev);
    if (fd >= 0)
        close(fd);
    if (pv->borrowed)
        give_back(pv, bev);
    else if (pv->options & BEV_OPT_THREADSAFE)
        pv->doomed = bev; /* end frees it, or the last other call's end */
    else
        bufferevent_free(bev);
    if (tls)
        tls_hooks->release(tls);
    if (partner) {
        if (partner->finishing == 1)
            finish_now(partner); /* what it has to write has nowhere to go */
        pyle_bev_unref(partner);
    }
    pyle_bev_end(pv, &u);
    return (int)pyle_sync_leave(sync, 0);
}

/* 1: all is encrypted; else it waits for the end of the handshake. */
static int finish_tls_filter(struct pyle_bev *pv, struct bufferevent *bev, double timeout)
{
    struct timeval limit;

    if (under_closed(pv) || (pv->shaking && evbuffer_get_length(bufferevent_get_output(bev)) == 0))
        return 1;
    bufferevent_setwatermark(pv->under->bev, EV_WRITE, 0, 0);
    switch_on(pv, bev, EV_WRITE);
    if (!pv->shaking) {
        tls_hooks->notify(pv->tls);
        return 1;
    }
    if (pyle_timeval(timeout, &limit) && set_timeouts(bev, &limit, &limit) < 0)
        return pyle_failed();
    pv->finishing = 1;
    bufferevent_setcb(bev, NULL, on_write, on_bev_event, pv);
    bufferevent_setwatermark(bev, EV_WRITE, 0, 0);
    return 0;
}

int pyle_bev_finish(struct pyle_bev *pv, double timeout)
{
    struct timeval limit;
    struct pyle_use u;
    struct bufferevent *bev;
    int sync, rc = begin_settled(pv, &u, 1);

    if (rc < 0)
        return rc;
    bev = u.bev;
    sync = pyle_sync_enter();
    bufferevent_lock(bev);
    not_dry(pv);
    pyle_buf_uncall(pv->input);
    pyle_buf_uncall(pv->output);
    if (pv->borrowed) {
        rc = PYLE_BORROWED;
    } else if (pv->over) {
        rc = PYLE_FILTERED;
    } else if (pv->finishing) {
        rc = 0;
    } else if (pv->under) {
        /* All that it can hand on it hands on now; then it is up to what it is on. */
        rc = flush_viewed(pv, EV_WRITE) ? PYLE_VIEWED : 1;
        if (rc == 1 && pv->tls) {
            rc = finish_tls_filter(pv, bev, timeout);
        } else if (rc == 1 && !under_closed(pv)) {
            bufferevent_enable(bev, EV_WRITE);
            bufferevent_flush(bev, EV_WRITE, BEV_FLUSH);
        }
    } else if (pv->is_socket ? bufferevent_getfd(bev) < 0 : !pv->partner) {
        rc = 1; /* nowhere to write to */
    } else if (evbuffer_get_length(bufferevent_get_output(bev)) == 0 && told_the_end(pv, bev)) {
        rc = !must_linger(pv, bev);
    } else if (pyle_timeval(timeout, &limit) &&
               set_timeouts(bev, pv->shaking ? &limit : NULL, &limit) < 0) {
        rc = pyle_failed();
    } else {
        pv->finishing = 1;
        pv->held = pv->refused = 0;
        bufferevent_setcb(bev, NULL, on_write, on_bev_event, pv);
        switch_off(pv, bev, EV_READ);
        bufferevent_setwatermark(bev, EV_WRITE, 0, 0);
        if (viewed(pv->output)) {
            bufferevent_disable(bev, EV_WRITE);
            pv->held = EV_WRITE;
        } else if (!(pv->unsent && (bev->enabled & EV_WRITE)) &&
                   bufferevent_enable(bev, EV_WRITE) < 0) {
            rc = 1;
        }
    }
    bufferevent_unlock(bev);
    pyle_bev_end(pv, &u);
    return (int)pyle_sync_leave(sync, rc);
}

/* ---- the rest: check, one call, done ---- */

struct bufferevent *pyle_bev_ptr(struct pyle_bev *pv)
{
    return pv->pb->closed ? NULL : pv->bev;
}

/* It is handed out, and who knows what is done to it: no more short ways. */
struct bufferevent *pyle_bev_expose(struct pyle_bev *pv)
{
    struct pyle_bev *each;

    for (each = pv; each; each = each->under) {
        each->plain = 1;
        not_dry(each);
        if (each->posted && !pyle_elsewhere(each->pb))
            pyle_bev_unpost(each);
        if (each->masked && !pyle_elsewhere(each->pb))
            pyle_bev_add_end(each, each->bev);
    }
    return pyle_bev_ptr(pv);
}

struct pyle_buf *pyle_bev_buffer(struct pyle_bev *pv, int input)
{
    struct pyle_buf **b = input ? &pv->input : &pv->output;

    if (!pv->bev)
        return NULL;
    if (!*b)
        *b = pv->own[!input] = pyle_buf_of(pv, input);
    return *b;
}

static int done(struct pyle_bev *pv, struct pyle_use *u, int rc)
{
    int error = errno;

    if (rc == -1)
        rc = pyle_failed();
    pyle_bev_rearm(pv, u->bev);
    pyle_bev_end(pv, u);
    rc = (int)pyle_sync_leave(u->sync, rc);
    errno = error;
    return rc;
}

/* The expression may use bev; -1 means that errno may say why. */
#define CALL(pv, expression) CALL_AFTER(begin_settled, pv, expression)
#define CALL_AFTER(begin, pv, expression)                                 \
    do {                                                                  \
        struct pyle_use u_;                                               \
        struct bufferevent *bev;                                          \
        int rc_ = begin(pv, &u_, 0);                                      \
        if (rc_ < 0)                                                      \
            return rc_;                                                   \
        bev = u_.bev;                                                     \
        u_.sync = pyle_sync_enter();                                      \
        return done(pv, &u_, (expression));                               \
    } while (0)

int pyle_bev_setcb(struct pyle_bev *pv, int read, int write, int event)
{
    if (pv->bev && pv->over)
        return PYLE_FILTERED;
    pv->has_callbacks = 1;
    not_dry(pv);
    CALL(pv, (bufferevent_setcb(bev, read ? on_read : NULL, write || pv->under ? on_write : NULL,
                                event || pv->tls ? on_bev_event : NULL, pv), 0));
}

static int enable(struct pyle_bev *pv, struct bufferevent *bev, int what)
{
    short missed, now = (short)what;
    int rc = 0;

    bufferevent_lock(bev);
    pv->refused &= (short)~what;
    if (what & EV_WRITE)
        pv->masked = 0;
    if ((now & EV_READ) && (pv->stuck || viewed(pv->input))) {
        pv->held |= EV_READ;
        now &= ~EV_READ;
    }
    if ((now & EV_WRITE) && viewed(pv->output)) {
        pv->held |= EV_WRITE;
        now &= ~EV_WRITE;
    }
    missed = (short)(pv->missed & what);
    pv->missed &= (short)~what;
    if (now) {
        rc = switch_on(pv, bev, now);
        stop_idle_timeout(pv, bev);
        read_what_is_left(pv, bev);
    }
    if (missed && pv->bev) /* not closed meanwhile */
        bufferevent_trigger(bev, missed, BEV_TRIG_DEFER_CALLBACKS);
    if (pv->under && pv->under->bev) /* what has come, or was written, before */
        push(pv, ((now & EV_READ) && evbuffer_get_length(bufferevent_get_input(pv->under->bev))
                      ? EV_READ : 0) |
                 ((now & EV_WRITE) && evbuffer_get_length(bufferevent_get_output(bev))
                      ? EV_WRITE : 0));
    bufferevent_unlock(bev);
    return rc;
}

int pyle_bev_enable(struct pyle_bev *pv, int what)
{
    if (what & ~(EV_READ | EV_WRITE))
        return PYLE_RANGE;
    CALL(pv, enable(pv, bev, what));
}

static int disable(struct pyle_bev *pv, struct bufferevent *bev, int what)
{
    int rc;

    bufferevent_lock(bev);
    pv->refused |= (short)what;
    if (what & EV_WRITE)
        pv->masked = 0;
    pv->forced &= (short)~what;
    pv->held &= (short)~what;
    rc = switch_off(pv, bev, (short)what);
    bufferevent_unlock(bev);
    return rc;
}

int pyle_bev_disable(struct pyle_bev *pv, int what)
{
    if (what & ~(EV_READ | EV_WRITE))
        return PYLE_RANGE;
    CALL(pv, disable(pv, bev, what));
}

int pyle_bev_enabled(struct pyle_bev *pv)
{
    CALL(pv, bufferevent_get_enabled(bev) | pv->held | (pv->masked ? EV_WRITE : 0));
}

int pyle_bev_fd(struct pyle_bev *pv)
{
    CALL(pv, bufferevent_getfd(bev) + 1);
}

static int setfd(struct pyle_bev *pv, struct bufferevent *bev, int fd, int own)
{
    int old = bufferevent_getfd(bev), error;

    if ((fd >= 0 && evutil_make_socket_nonblocking(fd) < 0) || bufferevent_setfd(bev, fd) < 0)
        return -1;
    if (fd >= 0 && bufferevent_enable(bev, bufferevent_get_enabled(bev)) < 0) { /* who else looks? */
        error = errno;
        bufferevent_setfd(bev, old);
        pyle_bev_hook(pv, bev);
        errno = error;
        return -1;
    }
    pv->own_fd = own;
    pv->connecting = 0;
    pyle_bev_hook(pv, bev);
    if (pv->nodelay && fd >= 0)
        set_nodelay(fd);
    if (pyle_accepting == fd)
        pyle_accepting = -1;
    return 0;
}

int pyle_bev_setfd(struct pyle_bev *pv, int fd, int own)
{
    if (fd < -1 || fd >= pv->pb->fd_limit || (pv->bev && (pv->under || pv->tls)))
        return PYLE_RANGE;
    CALL(pv, setfd(pv, bev, fd, own));
}

/* Nothing moves while a view is out. (Under the lock: another thread may be closing.) */
static int if_not_viewed(struct pyle_bev *pv, struct bufferevent *bev, int input, int output)
{
    int rc = 0;

    bufferevent_lock(bev);
    if ((input && viewed(pv->input)) || (output && viewed(pv->output)) ||
        (input && output && flush_viewed(pv, EV_READ | EV_WRITE)))
        rc = PYLE_VIEWED;
    bufferevent_unlock(bev);
    return rc;
}

static int write_data(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n)
{
    int rc = if_not_viewed(pv, bev, 0, 1);

    if (rc < 0)
        return rc;
    write_soon(pv, bev, n);
    return pyle_bev_put(pv, bev, data, n);
}

int pyle_bev_write(struct pyle_bev *pv, const void *data, size_t n)
{
    CALL_AFTER(begin, pv, write_data(pv, bev, data, n));
}

static int send_data(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n,
                     size_t most)
{
    int rc = if_not_viewed(pv, bev, 0, 1);

    if (rc < 0)
        return rc;
    write_soon(pv, bev, n);
    rc = pyle_bev_send(pv, bev, data, n);
    return rc < 0 ? rc : evbuffer_get_length(bev->output) > most; /* what is posted goes out anyway */
}

int pyle_bev_write_now(struct pyle_bev *pv, const void *data, size_t n, size_t most)
{
    CALL_AFTER(begin, pv, send_data(pv, bev, data, n, most));
}

static int move_out(struct pyle_bev *pv, struct bufferevent *bev, struct evbuffer *buf)
{
    int late, rc = if_not_viewed(pv, bev, 0, 1);

    if (rc < 0)
        return rc;
    write_soon(pv, bev, evbuffer_get_length(buf));
    late = pyle_bev_add_begin(pv, bev);
    rc = bufferevent_write_buffer(bev, buf);
    if (late)
        pyle_bev_add_end(pv, bev);
    return rc;
}

static int move_in(struct pyle_bev *pv, struct bufferevent *bev, struct evbuffer *buf)
{
    int rc = pyle_bev_asking(pv) ? PYLE_INUSE : if_not_viewed(pv, bev, 1, 0);

    return rc < 0 ? rc : bufferevent_read_buffer(bev, buf);
}

static int write_buffer(struct pyle_bev *pv, struct evbuffer *buf)
{
    CALL(pv, move_out(pv, bev, buf));
}

static int read_buffer(struct pyle_bev *pv, struct evbuffer *buf)
{
    CALL(pv, move_in(pv, bev, buf));
}

/* Its lock first, then that of the buffer, as in buffer.c: libevent holds it in callbacks. */
static int with_buffer(struct pyle_bev *pv, struct pyle_buf *b, int reads)
{
    struct pyle_use u;
    struct pyle_call c;
    int rc = begin_settled(pv, &u, 0);

    if (rc < 0)
        return rc;
    u.sync = pyle_sync_enter();
    bufferevent_lock(u.bev);
    rc = reads ? pyle_buf_enter(&c, b, 1) : pyle_buf_enter_to_read(&c, b, 1);
    if (rc == 0)
        rc = (int)pyle_buf_leave(&c, reads ? read_buffer(pv, b->buf) : write_buffer(pv, b->buf));
    bufferevent_unlock(u.bev);
    return done(pv, &u, rc);
}

int pyle_bev_write_buffer(struct pyle_bev *pv, struct pyle_buf *b)
{
    return with_buffer(pv, b, 0);
}

int pyle_bev_read_buffer(struct pyle_bev *pv, struct pyle_buf *b)
{
    int rc = with_buffer(pv, b, 1);

    if (pv->stuck || pv->stalled)
        pyle_bev_resume_soon(pv);
    return rc;
}

/* connect() makes the descriptor: then it is ours to close, and wants TCP_NODELAY. */
static int connected(struct pyle_bev *pv, struct bufferevent *bev, int had_fd, int rc)
{
    int error = errno, fd = pv->bev ? bufferevent_getfd(bev) : -1;

    if (pv->bev)
        pyle_bev_hook(pv, bev);
    if (!had_fd && fd >= 0) {
        pv->own_fd = 1;
        if (pv->nodelay)
            set_nodelay(fd);
    }
    if (pv->bev && fd >= 0 && bufferevent_enable(bev, bev->enabled & EV_READ) < 0) {
        pyle_bev_hold(pv, bev, EV_READ); /* as in pyle_bev_rearm */
        pyle_bev_resume_soon(pv);
    }
    errno = error;
    return rc;
}

static int connect_to(struct pyle_bev *pv, struct bufferevent *bev, const void *address, int length)
{
    int had_fd = bufferevent_getfd(bev) >= 0;

    if (!had_fd && !pyle_fd_fits(pv->pb->fd_limit))
        return -1;
    errno = 0;
    pv->connecting = 1;
    return connected(pv, bev, had_fd, bufferevent_socket_connect(bev, address, length));
}

int pyle_bev_connect(struct pyle_bev *pv, const void *address, int length)
{
    if (pv->bev && !pv->is_socket)
        return PYLE_RANGE;
    CALL(pv, connect_to(pv, bev, address, length));
}

static int connect_to_name(struct pyle_bev *pv, struct bufferevent *bev, int family,
                           const char *host, int port)
{
    int had_fd = bufferevent_getfd(bev) >= 0;

    if (!had_fd && !pyle_fd_fits(pv->pb->fd_limit))
        return -1;
    pv->connecting = 1;
    return connected(pv, bev, had_fd,
                     bufferevent_socket_connect_hostname(bev, NULL, family, host, port));
}

int pyle_bev_connect_hostname(struct pyle_bev *pv, int family, const char *host, int port)
{
    if (pv->bev && !pv->is_socket)
        return PYLE_RANGE;
    CALL(pv, connect_to_name(pv, bev, family, host, port));
}

int pyle_bev_connect_failed(struct pyle_bev *pv, int error)
{
    if (pv->bev && !pv->is_socket)
        return PYLE_RANGE;
    if (error < 0)
        CALL(pv, ((void)bev, 0));
    CALL(pv, (errno = error,
              bufferevent_trigger_event(bev, BEV_EVENT_ERROR, BEV_TRIG_DEFER_CALLBACKS), 0));
}

int pyle_bev_dns_error(struct pyle_bev *pv)
{
    CALL(pv, -bufferevent_socket_get_dns_error(bev)); /* EVUTIL_EAI_* are negative */
}

static int set_watermark(struct pyle_bev *pv, struct bufferevent *bev, int what, size_t low, size_t high)
{
    struct bufferevent *hushed;
    struct pyle_store store;
    short enabled = 0;

    if (pyle_store_fill(&store, 1, 128) < 0)
        return PYLE_NOMEM;
    hushed = hush(pv, &enabled);
    bufferevent_setwatermark(bev, (short)what, low, high);
    if (hushed)
        hushed->enabled = enabled;
    pyle_store_close(&store);
    return 0;
}

int pyle_bev_setwatermark(struct pyle_bev *pv, int what, size_t low, size_t high)
{
    if (!what || (what & ~(EV_READ | EV_WRITE)))
        return PYLE_RANGE;
    if (pv->stuck || pv->stalled)
        pyle_bev_resume_soon(pv);
    CALL(pv, set_watermark(pv, bev, what, low, high));
}

int pyle_bev_getwatermark(struct pyle_bev *pv, int what, size_t *low, size_t *high)
{
    if (what != EV_READ && what != EV_WRITE)
        return PYLE_RANGE;
    CALL(pv, bufferevent_getwatermark(bev, (short)what, low, high));
}

/* libevent takes them from what is pending only. An event that just timed out is not, though its
 * callback is still to come; what is added later gets the new ones. */
static int set_timeouts(struct bufferevent *bev, const struct timeval *read,
                        const struct timeval *write)
{
    int rc;

    bufferevent_lock(bev);
    pyle_forget_timeout(&bev->ev_read, EV_READ | EV_WRITE);
    pyle_forget_timeout(&bev->ev_write, EV_READ | EV_WRITE);
    rc = bufferevent_set_timeouts(bev, read, write);
    bufferevent_unlock(bev);
    return rc;
}

int pyle_bev_set_timeouts(struct pyle_bev *pv, double read, double write)
{
    struct timeval r, w;
    const struct timeval *rp, *wp;
    int rc = pyle_enter_base(pv->pb);

    if (rc < 0)
        return rc;
    rp = pyle_timeout(pv->pb, read, &r);
    wp = pyle_timeout(pv->pb, write, &w);
    pyle_leave_base(pv->pb);
    CALL(pv, set_timeouts(bev, rp, wp));
}

int pyle_bev_get_priority(struct pyle_bev *pv)
{
    CALL(pv, bufferevent_get_priority(bev));
}

int pyle_bev_set_priority(struct pyle_bev *pv, int priority)
{
    int rc = pyle_enter_base(pv->pb);

    if (rc < 0)
        return rc;
    if (priority < 0 || priority >= event_base_get_npriorities(pv->pb->base) ||
        (pv->bev && !pv->is_socket))
        rc = PYLE_RANGE;
    else
        pyle_note_priority(pv->pb, priority);
    pyle_leave_base(pv->pb);
    if (rc < 0)
        return rc;
    CALL(pv, bufferevent_priority_set(bev, priority));
}

static size_t held_bytes(struct bufferevent *bev)
{
    return evbuffer_get_length(bufferevent_get_input(bev)) +
           2 * evbuffer_get_length(bufferevent_get_output(bev));
}

/* libevent flushes from the top down, and tells nobody that input has moved. */
static void tell_of_input(struct pyle_bev *pv, size_t before)
{
    for (; pv && pv->under && pv->bev; pv = pv->under, before = 0)
        if (evbuffer_get_length(bufferevent_get_input(pv->bev)) > before)
            bufferevent_trigger(pv->bev, EV_READ, BEV_TRIG_DEFER_CALLBACKS);
}

static int flush(struct pyle_bev *pv, struct bufferevent *bev, int what, int mode)
{
    size_t before = held_bytes(bev), input = evbuffer_get_length(bufferevent_get_input(bev));
    int rc = under_closed(pv) ? PYLE_CLOSED : if_not_viewed(pv, bev, 1, 1);

    if (rc < 0)
        return rc;
    rc = bufferevent_flush(bev, (short)what, (enum bufferevent_flush_mode)mode);
    if (what & EV_READ)
        tell_of_input(pv, input);
    return rc < 0 ? rc : rc || held_bytes(bev) != before; /* a pair's answer is always 0 */
}

int pyle_bev_flush(struct pyle_bev *pv, int what, int mode)
{
    CALL(pv, flush(pv, bev, what, mode));
}

int pyle_bev_trigger(struct pyle_bev *pv, int what, int options)
{
    if (!what || (what & ~(EV_READ | EV_WRITE)))
        return PYLE_RANGE;
    pv->forced |= (short)what;
    CALL(pv, (bufferevent_trigger(bev, (short)what, options), 0));
}

int pyle_bev_trigger_event(struct pyle_bev *pv, int what, int options)
{
    CALL(pv, (bufferevent_trigger_event(bev, (short)what, options), 0));
}

/* ---- lock(): counted, so that what is locked is there to be unlocked ---- */

static int lock(struct pyle_bev *pv, struct bufferevent *bev, struct pyle_held *held)
{
    pthread_mutex_lock(&pv->pb->lock);
    ++pv->pb->locks;
    pthread_mutex_unlock(&pv->pb->lock);
    bufferevent_incref(bev);
    bufferevent_lock(bev);
    pv->locked = bev;
    pv->locker = PYLE_ME;
    ++pv->lock_depth;
    __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
    held->bev_lock = pv;
    return 0;
}

int pyle_bev_lock(struct pyle_bev *pv, struct pyle_held *held)
{
    CALL(pv, lock(pv, bev, held));
}

int pyle_bev_unlock(struct pyle_bev *pv)
{
    struct bufferevent *bev = pv->locked;
    struct pyle_base *pb = pv->pb;
    int free_now;

    if (pv->lock_depth == 0 || pv->locker != PYLE_ME)
        return PYLE_THREAD;
    if (--pv->lock_depth == 0)
        pv->locked = NULL;
    bufferevent_unlock(bev);
    bufferevent_decref(bev);
    pthread_mutex_lock(&pb->lock);
    free_now = --pb->locks == 0 && pb->free_after_unlock;
    pthread_mutex_unlock(&pb->lock);
    return free_now ? pyle_base_free(pb) : 0;
}

int pyle_unlock(struct pyle_held *held)
{
    struct pyle_buf *b = held->buf_lock;
    struct pyle_bev *pv = held->bev_lock;
    int rc = b ? pyle_buf_unlock(b) : pv ? pyle_bev_unlock(pv) : PYLE_THREAD;

    if (rc == PYLE_THREAD)
        return rc; /* another one has it, or nobody */
    held->buf_lock = NULL;
    held->bev_lock = NULL;
    if (b)
        pyle_buf_unref(b);
    else
        pyle_bev_unref(pv);
    return rc;
}
