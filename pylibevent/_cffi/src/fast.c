/* Sockets the short way: what libevent does in several steps and system calls, done in one, with
 * libevent's own meaning. It reads 64 KiB at once, not 4, and does not ask how much there is; what
 * callbacks write goes out when the callback is over, and EV_WRITE is armed only for what the
 * socket does not take.
 *
 * Only where that can make no difference: see short_way(). Everything else takes libevent's way,
 * whose callbacks stand behind ours in the same events. */
#include "pyle.h"

#include <event2/bufferevent_struct.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0         /* Python ignores SIGPIPE */
#endif
#define SCRATCH 65408          /* read at once: 64 KiB with what libevent adds, and rounds up */
#define MOST_READ (4 * SCRATCH) /* and so much before others have their turn */
#define MOST_WRITTEN (1 << 18)
#define OUTBOX 262144          /* answers that are on their way through it, not through a buffer */
#define MOST_POSTED 131072
#define SPARE 1024             /* a chain that refers to a block */

static event_callback_fn libevent_reads, libevent_writes;

static void on_readable(evutil_socket_t fd, short what, void *arg);
static void on_writable(evutil_socket_t fd, short what, void *arg);

static void take_over(struct event *ev, event_callback_fn ours, event_callback_fn *theirs)
{
    if (event_get_callback(ev) == ours)
        return;
    *theirs = event_get_callback(ev);
    ev->ev_evcallback.evcb_cb_union.evcb_callback = ours;
}

/* After each call of libevent's that makes the events of a socket anew. */
void pyle_bev_hook(struct pyle_bev *pv, struct bufferevent *bev)
{
    pv->no_socket = 0;
    if (!pv->plain) {
        take_over(&bev->ev_read, on_readable, &libevent_reads);
        take_over(&bev->ev_write, on_writable, &libevent_writes);
    }
}

static int short_way(struct pyle_bev *pv, struct bufferevent *bev, short io)
{
    return !pv->plain && !pv->limit && !pv->group && !(pv->capped & io) && !pv->connecting &&
           pv->bev == bev && !pv->pb->closed;
}

static void failed(struct bufferevent *bev, short io, short what, int error, int options)
{
    bufferevent_disable(bev, io);
    EVUTIL_SET_SOCKET_ERROR(error);
    bufferevent_trigger_event(bev, what | (io == EV_READ ? BEV_EVENT_READING : BEV_EVENT_WRITING),
                              options);
}

static int is_retriable(int error)
{
    return error == EAGAIN || error == EWOULDBLOCK || error == EINTR;
}

/* As read and write, which take longer. */
static ssize_t receive(struct pyle_bev *pv, int fd, void *data, size_t most)
{
    ssize_t n = pv->no_socket ? -1 : recv(fd, data, most, 0);

    if (n >= 0 || (!pv->no_socket && errno != ENOTSOCK))
        return n;
    pv->no_socket = 1;
    return read(fd, data, most);
}

static ssize_t transmit(struct pyle_bev *pv, int fd, const void *data, size_t length)
{
    ssize_t n = pv->no_socket ? -1 : send(fd, data, length, MSG_NOSIGNAL);

    if (n >= 0 || (!pv->no_socket && errno != ENOTSOCK))
        return n;
    pv->no_socket = 1;
    return write(fd, data, length);
}

/* ---- reading ---- */

enum { SCRATCH_BLOCK, OUTBOX_BLOCK };

static int have(struct pyle_base *pb, int which)
{
    char **block = which == SCRATCH_BLOCK ? &pb->scratch : &pb->outbox;

    if (!*block)
        *block = malloc(which == SCRATCH_BLOCK ? SCRATCH : OUTBOX);
    if (!pb->spare[which])
        pb->spare[which] = malloc(SPARE);
    return *block && pb->spare[which];
}

static void free_block(const void *block, size_t n, void *arg)
{
    (void)n;
    (void)arg;
    free((void *)block);
}

/* There was no memory for its n bytes: the buffer gets the block itself. */
static void hand_over(struct pyle_base *pb, int which, struct evbuffer *buf, size_t n)
{
    char **block = which == SCRATCH_BLOCK ? &pb->scratch : &pb->outbox, *data = *block;
    struct pyle_store store = {.n = SPARE, .blocks = {pb->spare[which]}};

    *block = NULL;
    pb->spare[which] = NULL;
    pyle_store_open(&store);
    if (evbuffer_add_reference(buf, data, n, free_block, NULL) < 0)
        free(data);
    pyle_store_close(&store);
}

/* A little: by way of the scratch, so that the buffer has memory for what there is, no more. */
static ssize_t read_some(struct pyle_bev *pv, struct evbuffer *input, int fd, size_t most)
{
    struct pyle_base *pb = pv->pb;
    ssize_t n = receive(pv, fd, pb->scratch, most);

    if (n > 0 && evbuffer_add(input, pb->scratch, (size_t)n) < 0)
        hand_over(pb, SCRATCH_BLOCK, input, (size_t)n);
    return n;
}

/* Much: straight into the buffer. */
static ssize_t read_much(struct pyle_bev *pv, struct evbuffer *input, int fd, size_t most)
{
    struct evbuffer_iovec vec;
    ssize_t n;

    if (evbuffer_reserve_space(input, (ssize_t)most, &vec, 1) != 1) {
        errno = ENOMEM;
        return -1;
    }
    n = receive(pv, fd, vec.iov_base, most);
    if (n > 0) {
        vec.iov_len = (size_t)n;
        if (evbuffer_commit_space(input, &vec, 1) < 0) {
            errno = ENOMEM;
            return -1;
        }
    }
    return n;
}

/* Until there is no more, up to a bound. What the last read said; *total: what came before. A
 * callback of the input's may end it (closing, too: pv may be gone then). */
static ssize_t read_in(struct pyle_bev *pv, struct bufferevent *bev, size_t room, size_t *total)
{
    ssize_t n;
    size_t most;
    int fd;

    do {
        fd = event_get_fd(&bev->ev_read);
        most = room < SCRATCH ? room : SCRATCH;
        n = pv->bulk || !have(pv->pb, SCRATCH_BLOCK) ? read_much(pv, bev->input, fd, most)
                                                     : read_some(pv, bev->input, fd, most);
        if (n < 0)
            return n;
        *total += (size_t)n;
        room -= (size_t)n;
        if (!(bev->enabled & EV_READ))
            return n;
        pv->bulk = *total >= SCRATCH / 2;
    } while ((size_t)n == SCRATCH && room > 0);
    return n;
}

static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct bufferevent *bev = arg;
    struct pyle_bev *pv = pyle_bev_behind(bev);
    struct pyle_base *pb;
    size_t room, length, total = 0, high = bev->wm_read.high;
    ssize_t n;
    int error;

    if (pv && pv->input)
        pv->input->dry = 0;
    if (!pv || !(what & EV_READ) || !short_way(pv, bev, EV_READ)) {
        libevent_reads(fd, what, arg);
        return;
    }
    length = evbuffer_get_length(bev->input);
    room = high == 0 ? MOST_READ : high > length ? high - length : 0;
    if (room > MOST_READ)
        room = MOST_READ;
    pb = pv->pb;
    if (room == 0 || !have(pb, SCRATCH_BLOCK)) {
        libevent_reads(fd, what, arg);
        return;
    }
    bufferevent_incref(bev);
    evbuffer_unfreeze(bev->input, 0);
    n = read_in(pv, bev, room, &total);
    error = n < 0 && !is_retriable(errno) && errno != ECONNREFUSED ? errno : 0;
    evbuffer_freeze(bev->input, 0);
    if (total > 0) {
        bufferevent_trigger(bev, EV_READ, 0);
        /* An error is told once, to the read that meets it. An end is told again. */
        if (error) /* nobody is told if it is closed, and pv may be gone */
            failed(bev, EV_READ, BEV_EVENT_ERROR, error, BEV_TRIG_DEFER_CALLBACKS);
    } else if (n == 0 || error) {
        failed(bev, EV_READ, n == 0 ? BEV_EVENT_EOF : BEV_EVENT_ERROR, error, 0);
    }
    bufferevent_decref(bev);
}

/* ---- writing ---- */

/* Writes what the socket takes of what there is now, up to a bound. 1: something was written, 0: it
 * takes nothing now; else it has failed, and the event callback knows. A callback of the output's
 * may add to it, or end it. */
static int write_out(struct bufferevent *bev, int options)
{
    struct evbuffer *output = bev->output;
    ssize_t n, written = 0, most = (ssize_t)evbuffer_get_length(output);
    int error;

    if (most > MOST_WRITTEN)
        most = MOST_WRITTEN;
    do {
        evbuffer_unfreeze(output, 1);
        n = evbuffer_write_atmost(output, event_get_fd(&bev->ev_write), most - written);
        error = errno;
        evbuffer_freeze(output, 1);
        if (n > 0)
            written += n;
    } while (n > 0 && written < most && (bev->enabled & EV_WRITE));
    /* 0 is what libevent makes of sendfile's EAGAIN, too: not to be believed but when writable. */
    if (n > 0 || (n < 0 && is_retriable(error)) || (n == 0 && (written > 0 || options)))
        return written > 0;
    failed(bev, EV_WRITE, n == 0 ? BEV_EVENT_EOF : BEV_EVENT_ERROR, error, options);
    return -1;
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    struct bufferevent *bev = arg;
    struct pyle_bev *pv = pyle_bev_behind(bev);
    struct sockaddr_storage peer;
    socklen_t length = sizeof(peer);
    int connecting = pv && pv->connecting;

    if (!pv || !(what & EV_WRITE) || !short_way(pv, bev, EV_WRITE) ||
        evbuffer_get_length(bev->output) == 0) {
        libevent_writes(fd, what, arg);
        if (connecting && (pv = pyle_bev_behind(bev)) != NULL &&
            getpeername(bufferevent_getfd(bev), (struct sockaddr *)&peer, &length) == 0)
            pv->connecting = 0;
        return;
    }
    bufferevent_incref(bev);
    if (write_out(bev, 0) > 0) {
        if (evbuffer_get_length(bev->output) == 0)
            event_del(&bev->ev_write);
        bufferevent_trigger(bev, EV_WRITE, 0);
    }
    bufferevent_decref(bev);
}

/* ---- what callbacks write ---- */

/* It may wait until the callback that runs is over: libevent would arm EV_WRITE for it now. */
static int may_wait(struct pyle_bev *pv, struct bufferevent *bev)
{
    return pyle_here == pv->pb && pyle_depth > 0 && !pv->pb->sending && (bev->enabled & EV_WRITE) &&
           short_way(pv, bev, EV_WRITE) && !IS_ARMED(&bev->ev_write) &&
           event_get_fd(&bev->ev_write) >= 0;
}

static void send_later(struct pyle_bev *pv)
{
    struct pyle_base *pb = pv->pb;

    if (pv->unsent)
        return;
    pv->unsent = 1;
    __atomic_add_fetch(&pv->refs, 1, __ATOMIC_RELAXED);
    pv->next_unsent = NULL;
    *(pb->unsent ? pb->unsent_end : &pb->unsent) = pv;
    pb->unsent_end = &pv->next_unsent;
}

/* Around what adds to the output. */
int pyle_bev_add_begin(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (!may_wait(pv, bev))
        return 0;
    pv->masked = 1;
    bev->enabled &= ~EV_WRITE;
    return 1;
}

void pyle_bev_add_end(struct pyle_bev *pv, struct bufferevent *bev)
{
    if (!pv->masked) /* the user has switched it off, or on, meanwhile */
        return;
    pv->masked = 0;
    if (pv->bev != bev)
        return;
    bev->enabled |= EV_WRITE;
    if (evbuffer_get_length(bev->output) > 0)
        send_later(pv);
}

static int add(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n)
{
    int late = pyle_bev_add_begin(pv, bev);
    int rc = bufferevent_write(bev, data, n);

    if (late)
        pyle_bev_add_end(pv, bev);
    return rc;
}

/* Bytes that are as good as in the output get there, before anyone looks. */
void pyle_bev_unpost(struct pyle_bev *pv)
{
    struct pyle_base *pb = pv->pb;
    size_t n = pv->posted;

    pv->posted = 0;
    pb->posting = NULL;
    if (pv->bev && add(pv, pv->bev, pb->outbox, n) < 0)
        hand_over(pb, OUTBOX_BLOCK, pv->bev->output, n);
}

/* The same answers as write_out(). */
static int send_posted(struct pyle_bev *pv, struct bufferevent *bev)
{
    ssize_t posted = (ssize_t)pv->posted;
    ssize_t n = transmit(pv, event_get_fd(&bev->ev_write), pv->pb->outbox, (size_t)posted);
    int error = errno;

    if (n == posted) {
        pv->posted = 0;
        pv->pb->posting = NULL;
        return 1;
    }
    if (n > 0) {
        memmove(pv->pb->outbox, pv->pb->outbox + n, (size_t)(posted - n));
        pv->posted -= (size_t)n;
    }
    pyle_bev_unpost(pv);
    if (n > 0 || (n < 0 && is_retriable(error)))
        return n > 0;
    failed(bev, EV_WRITE, n == 0 ? BEV_EVENT_EOF : BEV_EVENT_ERROR, error, BEV_TRIG_DEFER_CALLBACKS);
    return -1;
}

/* Another one needs the outbox. Where many go on one after the other, what is in it has waited long enough. */
static void empty_outbox(struct pyle_base *pb)
{
    struct pyle_bev *pv = pb->posting;
    struct bufferevent *bev = pv->bev;

    if (!pb->going_on || !bev || pv->finishing || bev->writecb || (pv->output && pyle_buf_viewed(pv->output))) {
        pyle_bev_unpost(pv);
    } else if (send_posted(pv, bev) > 0 && !pv->posted && pb->unsent == pv && !pv->next_unsent &&
               evbuffer_get_length(bev->output) == 0) {
        pb->unsent = NULL; /* the list is as if it had never been on it */
        pv->unsent = 0;
        pyle_bev_unref(pv);
    }
}

/* Into the outbox, where that holds nobody else's and the output is empty and not looked at. */
static int post(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n)
{
    struct pyle_base *pb = pv->pb;

    if (pv->posted == 0) {
        if (n == 0 || n > MOST_POSTED || !may_wait(pv, bev) || pv->unsent ||
            evbuffer_get_length(bev->output) > 0 || (pv->output && pv->output->cb) ||
            !have(pb, OUTBOX_BLOCK))
            return 0;
        if (pb->posting)
            empty_outbox(pb);
        pb->posting = pv;
        send_later(pv);
    } else if (n > OUTBOX - pv->posted) {
        pyle_bev_unpost(pv);
        return 0;
    }
    memcpy(pb->outbox + pv->posted, data, n);
    pv->posted += n;
    return 1;
}

int pyle_bev_put(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n)
{
    return post(pv, bev, data, n) ? 0 : add(pv, bev, data, n);
}

/* The same outside of the loop, where nothing would send it when a callback is over: to the socket,
 * unless others are before it. What that does not take waits in the output. */
int pyle_bev_send(struct pyle_bev *pv, struct bufferevent *bev, const void *data, size_t n)
{
    ssize_t sent = 0;

    if (pyle_here != pv->pb && n > 0 && !pv->posted && !pv->unsent && (bev->enabled & EV_WRITE) &&
        short_way(pv, bev, EV_WRITE) && !IS_ARMED(&bev->ev_write) &&
        evbuffer_get_length(bev->output) == 0 && !(pv->output && pv->output->cb) &&
        event_get_fd(&bev->ev_write) >= 0) {
        sent = transmit(pv, event_get_fd(&bev->ev_write), data, n);
        if (sent < 0 && !is_retriable(errno))
            failed(bev, EV_WRITE, BEV_EVENT_ERROR, errno, BEV_TRIG_DEFER_CALLBACKS);
        if (sent < 0)
            sent = 0;
        else if ((size_t)sent == n)
            pyle_bev_written(pv, bev);
    }
    return (size_t)sent == n ? 0 : pyle_bev_put(pv, bev, (const char *)data + sent, n - (size_t)sent);
}

static void send_now(struct pyle_bev *pv, struct bufferevent *bev)
{
    int rc;

    if (pv->output && pyle_buf_viewed(pv->output)) {
        pyle_bev_hold(pv, bev, EV_WRITE);
        return;
    }
    if (pv->posted == 0 && (!(bev->enabled & EV_WRITE) || IS_ARMED(&bev->ev_write) ||
                            evbuffer_get_length(bev->output) == 0))
        return;
    bufferevent_incref(bev);
    if (pv->posted > 0) {
        rc = send_posted(pv, bev);
    } else if (short_way(pv, bev, EV_WRITE)) {
        rc = write_out(bev, BEV_TRIG_DEFER_CALLBACKS);
    } else {
        rc = 0;
    }
    if (rc >= 0 && (bev->enabled & EV_WRITE) && evbuffer_get_length(bev->output) > 0)
        bufferevent_enable(bev, EV_WRITE);
    if (rc > 0)
        pyle_bev_written(pv, bev);
    bufferevent_decref(bev);
}

/* The outermost callback is over. */
void pyle_send_unsent(struct pyle_base *pb)
{
    struct pyle_bev *pv;

    if (pb->sending)
        return;
    pb->sending = 1;
    while ((pv = pb->unsent)) {
        pb->unsent = pv->next_unsent;
        pv->unsent = 0;
        if (pv->bev && !pb->closed && pb->fork_gen == pyle_fork_gen) {
            send_now(pv, pv->bev);
        } else if (pv->posted) {
            pv->posted = 0;
            pb->posting = NULL;
        }
        pyle_bev_unref(pv);
    }
    pb->sending = 0;
}

/* A fork, in a callback: parent and child find EV_WRITE armed, as libevent has it. */
void pyle_arm_unsent(struct pyle_base *pb)
{
    struct pyle_bev *pv;

    if (pb->posting)
        pyle_bev_unpost(pb->posting);
    for (pv = pb->unsent; pv; pv = pv->next_unsent)
        if (pv->bev && (pv->bev->enabled & EV_WRITE))
            bufferevent_enable(pv->bev, EV_WRITE);
}
