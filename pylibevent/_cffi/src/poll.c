/* What asyncio's loop waits with: the descriptors of a selector as events of a base. Which of them
 * are ready is noted here, and goes to Python once a round. The callbacks below run nothing of
 * Python's, so a watch is never freed under its own. */
#include "pyle.h"

#include <math.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/timerfd.h>
#endif

#define MOST_CALLS 256         /* of Python's in one wait: then coroutines have their turn */
#define FOREVER 1e9
#define SLACK 500000           /* ns that a timeout may be late */

struct watch {
    struct event ev[2];        /* for reading, for writing: a change of one is one system call */
    struct pyle_poll *poll;
    int fd;
    int events;                /* what is added: PYLE_POLL_* */
    int ready;
    int at;                    /* where in poll->ready, or -1 */
    int parked;                /* what has been taken off the base until the next wait */
};

struct pyle_poll {
    struct pyle_base *pb;
    int refs;
    int open;
    struct watch **watches;    /* by descriptor */
    int room;
    int n_watches;
    struct watch **ready;      /* NULL: not watched any more; there is room for all */
    int n_ready, ready_room;
    int n_parked;
    int waiting;
    int broke;                 /* the wait was cut short here, not by the user */
    struct event nudge;        /* ends the wait */
    struct event noting;       /* comes after the bufferevents that are ready with it */
    long long token;
    struct event alarm;        /* the end of the timeout */
    int timer;                 /* its timerfd, or -1 */
    long long due;             /* when that goes off, 0: not set */
    unsigned fork_gen;
};

static int check(const struct pyle_poll *poll)
{
    if (!poll->open || poll->pb->closed)
        return PYLE_CLOSED;
    if (poll->pb->lost || poll->pb->fork_gen != pyle_fork_gen)
        return PYLE_FORKED;
    if (pyle_elsewhere(poll->pb))
        return PYLE_THREAD;
    errno = 0;
    return 0;
}

/* ---- descriptors ---- */

static void on_ready(evutil_socket_t fd, short what, void *arg)
{
    struct watch *w = arg;
    struct pyle_poll *poll = w->poll;
    int events = (what & EV_READ ? PYLE_POLL_READ : 0) | (what & EV_WRITE ? PYLE_POLL_WRITE : 0), i;

    (void)fd;
    if (!poll->waiting) { /* a loop that is not asyncio's: it would find it ready for ever */
        for (i = 0; i < 2; ++i)
            if (events & 1 << i)
                event_del(&w->ev[i]);
        poll->n_parked += !w->parked;
        w->parked |= events;
        return;
    }
    if (w->at < 0) {
        w->at = poll->n_ready;
        poll->ready[poll->n_ready++] = w;
    } else if ((w->ready & events) == events) { /* once more in one wait: others may wait for Python */
        poll->broke = 1;
        event_base_loopbreak(poll->pb->base);
    }
    w->ready |= events;
}

static int add(struct watch *w, int events)
{
    int i;

    for (i = 0; i < 2; ++i)
        if ((events & 1 << i) && !(w->events & 1 << i)) {
            if (event_add(&w->ev[i], NULL) < 0)
                return pyle_failed();
            w->events |= 1 << i;
        }
    return 0;
}

static void take_off(struct watch *w, int events)
{
    int i;

    for (i = 0; i < 2; ++i)
        if (events & w->events & 1 << i)
            event_del(&w->ev[i]);
    w->events &= ~events;
    w->ready &= w->events;
    if (w->parked && !(w->parked &= ~events))
        --w->poll->n_parked;
}

static void drop(struct watch *w)
{
    struct pyle_poll *poll = w->poll;
    int i;

    if (w->at >= 0)
        poll->ready[w->at] = NULL;
    take_off(w, PYLE_POLL_READ | PYLE_POLL_WRITE);
    for (i = 0; i < 2; ++i)
        event_debug_unassign(&w->ev[i]);
    poll->watches[w->fd] = NULL;
    --poll->n_watches;
    pyle_unmake(PYLE_WATCHES, w);
}

static int grow(struct watch ***array, int *room, int least)
{
    int n = *room ? *room : 16;
    struct watch **more;

    if (least <= *room)
        return 0;
    while (n < least)
        n *= 2;
    more = realloc(*array, (size_t)n * sizeof(*more));
    if (!more)
        return PYLE_NOMEM;
    memset(more + *room, 0, (size_t)(n - *room) * sizeof(*more));
    *array = more;
    *room = n;
    return 0;
}

static struct watch *watch(struct pyle_poll *poll, int fd, int *rc)
{
    struct watch *w = NULL;
    int i;

    if (fd >= poll->pb->fd_limit)
        *rc = PYLE_RANGE;
    else if (pyle_debug_mode && pyle_fd_blocks(fd))
        *rc = PYLE_BLOCKS;
    else
        *rc = pyle_fd_waits(poll->pb, fd);
    if (*rc < 0)
        return NULL;
    if (grow(&poll->watches, &poll->room, fd + 1) < 0 ||
        grow(&poll->ready, &poll->ready_room, poll->n_ready + poll->n_watches + 1) < 0 ||
        !(w = pyle_make(PYLE_WATCHES, sizeof(*w)))) {
        *rc = PYLE_NOMEM;
        return NULL;
    }
    w->poll = poll;
    w->fd = fd;
    w->at = -1;
    for (i = 0; i < 2; ++i)
        event_assign(&w->ev[i], poll->pb->base, fd, (short)((i ? EV_WRITE : EV_READ) | EV_PERSIST),
                     on_ready, w);
    pyle_note_priority(poll->pb, event_get_priority(&w->ev[0]));
    poll->watches[fd] = w;
    ++poll->n_watches;
    return w;
}

int pyle_poll_set(struct pyle_poll *poll, int fd, int events)
{
    struct watch *w;
    int rc = check(poll);

    if (rc < 0)
        return rc;
    if (fd < 0 || (events & ~(PYLE_POLL_READ | PYLE_POLL_WRITE)))
        return PYLE_RANGE;
    w = fd < poll->room ? poll->watches[fd] : NULL;
    if (!w && !(w = events ? watch(poll, fd, &rc) : NULL))
        return rc;
    take_off(w, ~events & (PYLE_POLL_READ | PYLE_POLL_WRITE));
    rc = add(w, events);
    if (rc < 0 || !events) {
        int error = errno;
        drop(w);
        errno = error;
    }
    return rc;
}

/* ---- the wait ---- */

static void on_nudge(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg;
}

static void on_noting(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_poll *poll = arg;
    struct pyle_base *pb = poll->pb;
    int answer;

    (void)fd;
    (void)what;
    if (pyle_exiting || !poll->waiting) /* it is not asyncio that runs the loop: the next wait sees to them */
        return;
    pyle_before();
    pb->going_on = 1;
    answer = pyle_py_noted(pb->slot, poll->token);
    pb->going_on = 0;
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
}

static void on_alarm(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_poll *poll = arg;
    uint64_t times;

    (void)what;
    if (poll->fork_gen != pyle_fork_gen) { /* it is the parent's */
        event_del(&poll->alarm);
        return;
    }
    poll->due = 0;
    while (fd >= 0 && read(fd, &times, sizeof(times)) < 0 && errno == EINTR)
        ;
    if (poll->waiting)
        event_active(&poll->nudge, EV_TIMEOUT, 1);
}

/* libevent's own timers go by a clock that lags by milliseconds, unless asked for one that costs a
 * system call a round. A timerfd that goes off too early is left alone, most timeouts are never reached. */
#ifdef __linux__
static int open_timer(struct pyle_poll *poll)
{
    poll->due = 0;
    poll->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (poll->timer < 0)
        return PYLE_SYS;
    if (poll->timer >= poll->pb->fd_limit) {
        close(poll->timer);
        poll->timer = -1;
        errno = EMFILE;
        return PYLE_SYS;
    }
    event_assign(&poll->alarm, poll->pb->base, poll->timer, EV_READ | EV_PERSIST, on_alarm, poll);
    pyle_make_internal(&poll->alarm);
    return event_add(&poll->alarm, NULL) < 0 ? pyle_failed() : 0;
}

static int set_timer(struct pyle_poll *poll, double seconds)
{
    struct itimerspec when = {{0, 0}, {0, 0}};
    long long due;

    clock_gettime(CLOCK_MONOTONIC, &when.it_value);
    due = when.it_value.tv_sec * 1000000000LL + when.it_value.tv_nsec + (long long)ceil(seconds * 1e9);
    if (poll->due && poll->due <= due + SLACK)
        return 0;
    poll->due = due;
    when.it_value.tv_sec = due / 1000000000;
    when.it_value.tv_nsec = due % 1000000000;
    return timerfd_settime(poll->timer, TFD_TIMER_ABSTIME, &when, NULL) < 0 ? PYLE_SYS : 0;
}
#else
static int open_timer(struct pyle_poll *poll)
{
    event_assign(&poll->alarm, poll->pb->base, -1, 0, on_alarm, poll);
    pyle_make_internal(&poll->alarm);
    return 0;
}

static int set_timer(struct pyle_poll *poll, double seconds)
{
    struct timeval tv;

    pyle_timeval(seconds, &tv);
    return event_add(&poll->alarm, &tv) < 0 ? pyle_failed() : 0;
}
#endif

/* After a fork and a reinit(): the timer is the parent's, too. */
static int renew_timer(struct pyle_poll *poll)
{
    int rc;

    event_del(&poll->alarm);
    event_debug_unassign(&poll->alarm);
    if (poll->timer >= 0)
        close(poll->timer);
    rc = open_timer(poll);
    if (rc == 0)
        poll->fork_gen = pyle_fork_gen;
    return rc;
}

static int unpark(struct pyle_poll *poll)
{
    int fd, events, rc;

    for (fd = 0; fd < poll->room && poll->n_parked; ++fd) {
        struct watch *w = poll->watches[fd];
        if (!w || !w->parked)
            continue;
        events = w->parked;
        w->parked = 0;
        --poll->n_parked;
        w->events &= ~events;
        rc = add(w, events);
        if (rc < 0)
            return rc;
    }
    return 0;
}

int pyle_poll_wait(struct pyle_poll *poll, double seconds, int *out, int room, long long *noted)
{
    struct pyle_base *pb = poll->pb;
    int rc = check(poll), i, n = 0, stop, flags = EVLOOP_ONCE | EVLOOP_NO_EXIT_ON_EMPTY;

    if (rc < 0)
        return rc;
    if (pb->runner)
        return PYLE_RUNNING;
    if (poll->fork_gen != pyle_fork_gen && (rc = renew_timer(poll)) < 0)
        return rc;
    if (poll->n_parked && (rc = unpark(poll)) < 0)
        return rc;
    if (!(seconds > 0))
        flags |= EVLOOP_NONBLOCK;
    else if (seconds < FOREVER && (rc = set_timer(poll, seconds)) < 0)
        return rc;
    stop = __atomic_load_n(&pb->break_requested, __ATOMIC_ACQUIRE);
    poll->n_ready = poll->broke = pb->user_broke = 0;
    poll->waiting = 1;
    pb->nudge = &poll->nudge;
    pb->noting = &poll->noting;
    pb->noted = noted;
    if (noted && noted[0] > 0) /* an exception has left them over */
        event_active(pb->noting, EV_TIMEOUT, 1);
    pb->calls_left = MOST_CALLS;
    __atomic_add_fetch(&poll->refs, 1, __ATOMIC_RELAXED);
    rc = pyle_base_loop(pb, flags, -1);
    poll->waiting = 0;
    pb->noted = NULL;
    pb->nudge = NULL;
    for (i = 0; i < poll->n_ready; ++i) {
        struct watch *w = poll->ready[i];
        if (!w)
            continue;
        if (w->ready && n < room) { /* the others will be ready again */
            out[2 * n] = w->fd;
            out[2 * n++ + 1] = w->ready;
        }
        w->ready = 0;
        w->at = -1;
    }
    poll->n_ready = 0;
    if (rc >= 0)
        rc = check(poll);
    if (rc >= 0) {
        if (event_base_got_exit(pb->base) || stop || pb->user_broke ||
            (event_base_got_break(pb->base) && !poll->broke && pb->calls_left))
            n |= PYLE_POLL_STOP;
        rc = n;
    }
    pb->calls_left = 0;
    pyle_poll_unref(poll);
    return rc;
}

/* ---- life ---- */

struct pyle_poll *pyle_poll_new(struct pyle_owned *owned, struct pyle_base *pb)
{
    struct pyle_poll *poll = pyle_own(owned, PYLE_POLLS, sizeof(*poll));

    if (!poll)
        return NULL;
    poll->refs = 1;
    poll->pb = pb;
    poll->timer = -1;
    pyle_hold_base(pb);
    return poll;
}

void pyle_poll_unref(struct pyle_poll *poll)
{
    if (__atomic_sub_fetch(&poll->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    pyle_base_unref(poll->pb);
    free(poll->watches);
    free(poll->ready);
    pyle_unmake(PYLE_POLLS, poll);
}

int pyle_poll_open(struct pyle_poll *poll, long long token)
{
    int rc = pyle_enter_base(poll->pb);

    if (rc < 0)
        return rc;
    if (pyle_elsewhere(poll->pb)) {
        rc = PYLE_THREAD;
    } else {
        event_assign(&poll->nudge, poll->pb->base, -1, 0, on_nudge, poll);
        event_assign(&poll->noting, poll->pb->base, -1, 0, on_noting, poll);
        poll->token = token;
        pyle_note_priority(poll->pb, event_get_priority(&poll->nudge));
        poll->fork_gen = pyle_fork_gen;
        rc = open_timer(poll);
        poll->open = 1;
        if (rc < 0) {
            int error = errno;
            pyle_poll_close(poll, 1);
            errno = error;
        }
    }
    pyle_leave_base(poll->pb);
    return rc;
}

/* by_base: the base has looked after a fork and threads. */
int pyle_poll_close(struct pyle_poll *poll, int by_base)
{
    int fd, rc = by_base ? 0 : check(poll);

    if (!poll->open || rc == PYLE_CLOSED)
        return 0;
    if (rc < 0)
        return rc;
    poll->open = 0;
    if (poll->pb->nudge == &poll->nudge)
        poll->pb->nudge = NULL;
    if (!poll->pb->lost) {
        for (fd = 0; fd < poll->room; ++fd)
            if (poll->watches[fd])
                drop(poll->watches[fd]);
        event_del(&poll->nudge);
        event_debug_unassign(&poll->nudge);
        event_del(&poll->noting);
        event_debug_unassign(&poll->noting);
        if (event_initialized(&poll->alarm)) {
            event_del(&poll->alarm);
            event_debug_unassign(&poll->alarm);
        }
    }
    if (poll->timer >= 0)
        close(poll->timer);
    poll->timer = -1;
    return 0;
}
