/* Listeners. An accepted descriptor always has an owner: the user's callback, or us again when
 * that raises; a failed accept costs a pause, not a busy loop. */
#include "pyle.h"

#include <arpa/inet.h>
#include <sys/un.h>
#include <unistd.h>

__thread int pyle_accepting = -1;
__thread int pyle_accepted = -1;

static const struct timeval pause_time = {0, 100000};

static void deliver(struct pyle_listener *pl, int fd, const struct sockaddr *sa, int length);

/* ---- life ---- */

static void enable_or_retry(struct pyle_listener *pl)
{
    if (evconnlistener_enable(pl->lev) < 0)
        event_add(&pl->resume_event, &pause_time);
}

static void on_resume(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_listener *pl = arg;

    (void)fd;
    (void)what;
    if (!pl->lev || pl->pb->closed)
        return;
    if (pl->held_fd >= 0) {
        int held = pl->held_fd;
        struct sockaddr_storage address = pl->held_addr;

        pl->held_fd = -1;
        __atomic_add_fetch(&pl->refs, 1, __ATOMIC_RELAXED);
        deliver(pl, held, (struct sockaddr *)&address, pl->held_len);
        if (pl->lev && pl->held_fd < 0 && pl->wanted && !pl->paused)
            enable_or_retry(pl);
        pyle_listener_unref(pl);
    } else if (pl->wanted) {
        enable_or_retry(pl);
    }
}

struct pyle_listener *pyle_listener_new(struct pyle_owned *owned, struct pyle_base *pb,
                                        long long token)
{
    struct pyle_listener *pl = pyle_own(owned, PYLE_LISTENERS, sizeof(*pl));

    if (!pl)
        return NULL;
    pl->refs = 1;
    pl->pb = pb;
    pl->token = token;
    pl->held_fd = -1;
    pyle_hold_base(pb);
    return pl;
}

void pyle_listener_free(struct pyle_listener *pl)
{
    pyle_base_unref(pl->pb);
    pyle_unmake(PYLE_LISTENERS, pl);
}

void pyle_listener_unref(struct pyle_listener *pl)
{
    struct pyle_base *pb = pl->pb;

    if (__atomic_sub_fetch(&pl->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    pthread_mutex_lock(&pb->lock);
    if (pyle_elsewhere(pb)) {
        pl->next = pb->listener_grave;
        pb->listener_grave = pl;
        pl = NULL;
    }
    pthread_mutex_unlock(&pb->lock);
    if (pl)
        pyle_listener_free(pl);
}

static int check(struct pyle_listener *pl, int closing)
{
    if (!pl->lev || (closing ? pl->pb->lost : pl->pb->closed))
        return PYLE_CLOSED;
    if (pl->pb->fork_gen != pyle_fork_gen)
        return PYLE_FORKED;
    if (pyle_elsewhere(pl->pb))
        return PYLE_THREAD;
    errno = 0;
    return 0;
}

/* ---- accepting ---- */

/* After an exception no more connections are taken until it has left the loop. */
static void stop_for_now(struct pyle_listener *pl)
{
    if (!pl->lev || pl->pb->closed)
        return;
    evconnlistener_disable(pl->lev);
    if (!pl->paused) {
        pl->paused = 1;
        __atomic_add_fetch(&pl->refs, 1, __ATOMIC_RELAXED);
        pl->next = pl->pb->paused;
        pl->pb->paused = pl;
    }
}

void pyle_listener_unpause(struct pyle_base *pb)
{
    struct pyle_listener *pl = pb->paused;

    pb->paused = NULL;
    while (pl) {
        struct pyle_listener *next = pl->next;

        pl->paused = 0;
        pl->next = NULL;
        if (pl->lev && !pb->closed) {
            if (pl->held_fd >= 0)
                event_active(&pl->resume_event, EV_TIMEOUT, 1);
            else if (pl->wanted)
                enable_or_retry(pl);
        }
        pyle_listener_unref(pl);
        pl = next;
    }
}

static void deliver(struct pyle_listener *pl, int fd, const struct sockaddr *sa, int length)
{
    struct pyle_base *pb = pl->pb;
    char host[INET6_ADDRSTRLEN + 1] = "";
    const char *name = host;
    int name_length = 0, port = 0, answer, outer = pyle_accepting, outer_fd = pyle_accepted;
    unsigned flowinfo = 0, scope = 0;

    if (sa->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)sa;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        name_length = (int)strlen(host);
        port = ntohs(in->sin_port);
    } else if (sa->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)sa;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        name_length = (int)strlen(host);
        port = ntohs(in6->sin6_port);
        flowinfo = ntohl(in6->sin6_flowinfo);
        scope = in6->sin6_scope_id;
    } else if (sa->sa_family == AF_UNIX) {
        const struct sockaddr_un *un = (const struct sockaddr_un *)sa;
        name = un->sun_path;
        name_length = length - (int)offsetof(struct sockaddr_un, sun_path);
        if (name_length > 0 && name[0] != '\0')
            name_length = (int)strnlen(name, (size_t)name_length);
        if (name_length < 0)
            name_length = 0;
    }
    pyle_accepting = pyle_accepted = fd;
    pyle_before();
    answer = pyle_py_accept(pb->slot, pl->token, fd, sa->sa_family, name, name_length, port,
                            flowinfo, scope);
    if (answer == PYLE_RETRY && pyle_accepting != fd)
        answer = PYLE_ERROR; /* not seen yet? taken all the same */
    if (answer == PYLE_RETRY) {
        if (pl->lev && !pb->closed) {
            pl->held_fd = fd;
            memcpy(&pl->held_addr, sa, (size_t)length);
            pl->held_len = length;
        } else {
            close(fd);
        }
    } else if (answer != PYLE_DONE && pyle_accepting == fd) {
        close(fd);
    }
    pyle_accepting = outer;
    pyle_accepted = outer_fd;
    if (answer == PYLE_RETRY || answer == PYLE_ERROR) {
        stop_for_now(pl);
        pyle_raise(pb);
    }
    pyle_after(pb);
}

static void on_accept(struct evconnlistener *lev, evutil_socket_t fd, struct sockaddr *sa,
                      int length, void *arg)
{
    struct pyle_listener *pl = arg;

    (void)lev;
    if (pyle_exiting || !pl->lev || pl->pb->closed) {
        close(fd);
        if (pl->pb->base)
            event_base_loopbreak(pl->pb->base);
        return;
    }
    __atomic_add_fetch(&pl->refs, 1, __ATOMIC_RELAXED);
    deliver(pl, fd, sa, length);
    pyle_listener_unref(pl);
}

static void on_accept_error(struct evconnlistener *lev, void *arg)
{
    struct pyle_listener *pl = arg;
    struct pyle_base *pb = pl->pb;
    int answer, error = EVUTIL_SOCKET_ERROR();

    (void)lev;
    if (pyle_exiting || !pl->lev || pb->closed)
        return;
    __atomic_add_fetch(&pl->refs, 1, __ATOMIC_RELAXED);
    pyle_before();
    answer = pyle_py_accept_error(pb->slot, pl->token, error);
    if (pl->lev && !pb->closed && pl->wanted) {
        /* It would fail again at once: let some connections end first. */
        if (event_add(&pl->resume_event, &pause_time) == 0)
            evconnlistener_disable(pl->lev);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
    pyle_listener_unref(pl);
}

/* ---- opening, closing ---- */

static int assign_resume(struct pyle_listener *pl)
{
    int rc = event_assign(&pl->resume_event, pl->pb->base, -1, 0, on_resume, pl);

    if (rc == 0)
        pyle_note_priority(pl->pb, event_get_priority(&pl->resume_event));
    return rc;
}

/* libevent does not look whether it can be enabled, nor could be freed then without closing a
 * descriptor that is the caller's: both is done here. */
#define OURS(flags) (((unsigned)(flags) & ~LEV_OPT_CLOSE_ON_FREE) | LEV_OPT_DISABLED)

static int opened(struct pyle_listener *pl, int flags)
{
    int rc;

    if (!pl->lev)
        return pyle_failed();
    pl->wanted = !(flags & LEV_OPT_DISABLED);
    rc = pyle_went_short() ? PYLE_NOMEM : 0; /* for its lock */
    if (rc == 0 && pl->wanted && evconnlistener_enable(pl->lev) < 0)
        rc = pyle_failed();
    if (rc < 0) {
        evconnlistener_free(pl->lev);
        pl->lev = NULL;
        return rc;
    }
    evconnlistener_set_error_cb(pl->lev, on_accept_error);
    pl->closes = (flags & LEV_OPT_CLOSE_ON_FREE) != 0;
    return assign_resume(pl);
}

static int enter(struct pyle_listener *pl)
{
    int rc = pyle_enter_base(pl->pb);

    pyle_went_short();
    if (rc == 0 && pyle_elsewhere(pl->pb)) {
        pyle_leave_base(pl->pb);
        rc = PYLE_THREAD;
    }
    return rc;
}

int pyle_listener_open(struct pyle_listener *pl, int fd, int flags, int backlog)
{
    int listens = 0, rc = enter(pl);
    socklen_t length = sizeof(listens);

    if (rc < 0)
        return rc;
    if (fd < 0 || fd >= pl->pb->fd_limit) {
        rc = PYLE_RANGE;
    } else if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) < 0) {
        rc = pyle_failed();
    } else if (backlog == 0 && !listens) {
        errno = EINVAL;
        rc = PYLE_SYS;
    } else if (evutil_make_socket_nonblocking(fd) < 0) {
        rc = pyle_failed();
    } else {
        pl->lev = evconnlistener_new(pl->pb->base, on_accept, pl, OURS(flags), backlog, fd);
        rc = opened(pl, flags);
    }
    pyle_leave_base(pl->pb);
    return rc;
}

int pyle_listener_bind(struct pyle_listener *pl, const void *address, int length,
                       int flags, int backlog)
{
    int fd, rc = enter(pl);

    if (rc < 0)
        return rc;
    if (pyle_fd_fits(pl->pb->fd_limit)) {
        pl->lev = evconnlistener_new_bind(pl->pb->base, on_accept, pl, OURS(flags), backlog,
                                          address, length);
        fd = pl->lev ? evconnlistener_get_fd(pl->lev) : -1;
        rc = opened(pl, flags);
        if (rc < 0 && fd >= 0)
            close(fd);
    } else {
        rc = PYLE_SYS;
    }
    pyle_leave_base(pl->pb);
    return rc;
}

int pyle_listener_borrow(struct pyle_listener *pl, struct evconnlistener *lev)
{
    int rc = enter(pl);

    if (rc < 0)
        return rc;
    pl->lev = lev;
    pl->borrowed = pl->wanted = 1;
    rc = assign_resume(pl);
    pyle_leave_base(pl->pb);
    return rc;
}

int pyle_listener_setcb(struct pyle_listener *pl, int errors)
{
    int rc = check(pl, 0);

    if (rc < 0 || !pl->borrowed)
        return rc;
    pl->has_callbacks = 1;
    if (errors)
        evconnlistener_set_error_cb(pl->lev, on_accept_error);
    else
        evconnlistener_set_cb(pl->lev, on_accept, pl);
    return 0;
}

static void give_back(struct pyle_listener *pl, struct evconnlistener *lev)
{
    if (!pl->has_callbacks)
        return;
    evconnlistener_set_error_cb(lev, NULL);
    evconnlistener_disable(lev);
    evconnlistener_set_cb(lev, NULL, NULL);
    evconnlistener_enable(lev); /* in this order connections wait until C sets another callback */
}

int pyle_listener_close(struct pyle_listener *pl)
{
    struct evconnlistener *lev = pl->lev;
    int fd, rc = check(pl, 1);

    if (rc < 0)
        return rc == PYLE_CLOSED ? 0 : rc;
    pl->lev = NULL;
    event_del(&pl->resume_event);
    event_debug_unassign(&pl->resume_event);
    if (pl->held_fd >= 0)
        close(pl->held_fd);
    pl->held_fd = -1;
    if (pl->borrowed) {
        give_back(pl, lev);
        return 0;
    }
    fd = evconnlistener_get_fd(lev);
    evconnlistener_disable(lev); /* in its callback it is freed later */
    evconnlistener_free(lev);
    if (pl->closes)
        close(fd);
    return 0;
}

/* ---- the rest ---- */

int pyle_listener_enable(struct pyle_listener *pl, int on)
{
    int rc = check(pl, 0);

    if (rc < 0)
        return rc;
    pl->wanted = on;
    if (pl->held_fd < 0)
        event_del(&pl->resume_event);
    if (on && !pl->paused && pl->held_fd < 0)
        rc = evconnlistener_enable(pl->lev);
    else if (!on)
        rc = evconnlistener_disable(pl->lev);
    return rc < 0 ? pyle_failed() : 0;
}

int pyle_listener_enabled(struct pyle_listener *pl)
{
    int rc = check(pl, 0);

    return rc < 0 ? rc : pl->wanted;
}

int pyle_listener_fd(struct pyle_listener *pl)
{
    int rc = check(pl, 0);

    return rc < 0 ? rc : evconnlistener_get_fd(pl->lev);
}

struct evconnlistener *pyle_listener_ptr(struct pyle_listener *pl)
{
    return pl->pb->closed ? NULL : pl->lev;
}

int pyle_listener_accepting(void)
{
    return pyle_accepting;
}

int pyle_sockaddr_inet(void *out, int family, const char *host, int port,
                       unsigned flowinfo, unsigned scope)
{
    memset(out, 0, sizeof(struct sockaddr_storage));
    if (family == AF_INET) {
        struct sockaddr_in *in = out;
        in->sin_family = AF_INET;
        in->sin_port = htons((uint16_t)port);
        return inet_pton(AF_INET, host, &in->sin_addr) == 1 ? (int)sizeof(*in) : 0;
    }
    if (family == AF_INET6) {
        struct sockaddr_in6 *in6 = out;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons((uint16_t)port);
        in6->sin6_flowinfo = htonl(flowinfo);
        in6->sin6_scope_id = scope;
        return inet_pton(AF_INET6, host, &in6->sin6_addr) == 1 ? (int)sizeof(*in6) : 0;
    }
    return 0;
}

int pyle_sockaddr_unix(void *out, const char *path, int length)
{
    struct sockaddr_un *un = out;

    memset(out, 0, sizeof(struct sockaddr_storage));
    /* A path needs its NUL, a name in Linux' abstract space has none. */
    if (length < 1 || length + (path[0] != '\0') > (int)sizeof(un->sun_path))
        return 0;
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, path, (size_t)length);
    return (int)offsetof(struct sockaddr_un, sun_path) + length + (path[0] != '\0');
}
