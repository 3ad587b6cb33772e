/* DNS: look-ups, and questions of others. evdns calls back from the loop with no lock of its own
 * held; its struct evdns_request is gone after that call, and comes to one in any case. So a
 * look-up counts evdns as one that may look at it until then, whatever happens in between.
 * Of evdns_getaddrinfo nothing is used: it reads freed memory when its evdns_base is freed. */
#include "pyle.h"

#ifdef __linux__
#include <linux/filter.h>
#include <malloc.h>
#else
#include <malloc/malloc.h>
#define malloc_usable_size malloc_size
#endif

struct pyle_dns {
    struct evdns_base *dns;    /* NULL once closed */
    struct evdns_base *doomed; /* closed, freed by close_event */
    struct pyle_base *pb;
    long long token;
    int refs;
    struct event close_event;
    struct pyle_lookup *lookups; /* those that evdns will call back for */
    struct pyle_dns *next;       /* on pb->dead_dns, if dead */
    int dead;
};

struct pyle_lookup {
    struct pyle_dns *d;
    long long token;
    int refs;
    int over;                  /* delivered, or forgotten: no callback any more */
    int abandoned;             /* forgotten by another thread: counted for the loop's */
    int answered;              /* what stands below is to be delivered */
    struct evdns_request *request; /* NULL: evdns is done with it */
    struct pyle_lookup *next, **to_this; /* on d->lookups */
    struct event timer;        /* the time limit, or the delivery of an answer of our own */
    int error, type, count, ttl, length;
    char data[32 * 16];        /* as much as evdns has for one answer */
};

/* ---- the base ---- */

static void unlist(struct pyle_lookup *l)
{
    l->request = NULL;
    *l->to_this = l->next;
    if (l->next)
        l->next->to_this = l->to_this;
}

static int check(struct pyle_base *pb, int open)
{
    if (!open || pb->closed)
        return PYLE_CLOSED;
    if (pb->fork_gen != pyle_fork_gen)
        return PYLE_FORKED;
    if (pyle_elsewhere(pb))
        return PYLE_THREAD;
    errno = 0;
    return 0;
}

#define CHECK(d)                                    \
    do {                                            \
        int rc_ = check((d)->pb, (d)->dns != NULL); \
        if (rc_ < 0)                                \
            return rc_;                             \
    } while (0)

/* ---- nameservers that are gone ----
 * When an answer to evdns's probe of a nameserver waits in the loop, evdns frees the nameserver all
 * the same, and its callback then changes it, adds its timer again, and counts it as a good one of
 * its evdns_base. So it stays in memory, of another evdns_base's, until that has been. */

struct pyle_limbo {
    struct pyle_base *pb;      /* counted */
    struct event_base *base;   /* NULL once freed */
    struct evdns_base *dns;
    struct pyle_frees frees;
    struct event event;        /* behind what waits in the loop */
    int rounds;
    struct pyle_limbo *next, **to_this; /* on pb->limbos */
};

struct search {
    const struct pyle_frees *frees;
    struct event *found;
};

static int is_in(const struct event_base *base, const struct event *ev, void *arg)
{
    struct search *s = arg;
    int i;

    (void)base;
    for (i = 0; i < s->frees->n; ++i) {
        const char *block = s->frees->blocks[i];
        if ((const char *)ev >= block && (const char *)ev < block + malloc_usable_size((void *)block)) {
            s->found = (struct event *)ev;
            return 1;
        }
    }
    return 0;
}

static void end_limbo(struct pyle_limbo *l)
{
    struct pyle_base *pb = l->pb;
    struct search s = {&l->frees, NULL};

    if (l->base) {
        event_del(&l->event);
        while (event_base_foreach_event(l->base, is_in, &s))
            event_del(s.found);
    }
    event_debug_unassign(&l->event);
    if (!pb->lost)
        evdns_base_free(l->dns, 0);
    pyle_frees_release(&l->frees);
    *l->to_this = l->next;
    if (l->next)
        l->next->to_this = l->to_this;
    free(l);
    pyle_base_unref(pb);
}

static void on_limbo(evutil_socket_t fd, short what, void *arg)
{
    static const struct timeval now = {0, 0};
    struct pyle_limbo *l = arg;

    (void)fd;
    (void)what;
    if (l->rounds++ > 0 || event_add(&l->event, &now) < 0) /* of many, some wait for the next round */
        end_limbo(l);
}

static int clear(struct pyle_base *pb, struct evdns_base *dns)
{
    int i, n = evdns_base_count_nameservers(dns);
    struct pyle_limbo *l;

    if (n <= 0)
        return 0;
    if (event_base_get_num_events(pb->base, EVENT_BASE_COUNT_ACTIVE) == 0)
        return evdns_base_clear_nameservers_and_suspend(dns) ? PYLE_FAIL : 0;
    l = calloc(1, sizeof(*l));
    if (!l || !(l->dns = evdns_base_new(pb->base, 0))) {
        free(l);
        return PYLE_NOMEM;
    }
    if (evtimer_assign(&l->event, pb->base, on_limbo, l) < 0 || pyle_frees_hold(&l->frees, 16 * n) < 0) {
        evdns_base_free(l->dns, 0);
        free(l);
        return PYLE_NOMEM;
    }
    evdns_base_clear_nameservers_and_suspend(dns);
    pyle_frees_end();
    for (i = 0; i < l->frees.n; ++i) {
        struct evdns_base **word = l->frees.blocks[i];
        size_t left = malloc_usable_size(word) / sizeof(*word);

        for (; left > 0; --left, ++word)
            if (*word == dns)
                *word = l->dns;
    }
    pyle_note_priority(pb, event_get_priority(&l->event));
    l->pb = pb;
    l->base = pb->base;
    pyle_hold_base(pb);
    l->next = pb->limbos;
    l->to_this = &pb->limbos;
    if (l->next)
        l->next->to_this = &l->next;
    pb->limbos = l;
    event_active(&l->event, EV_TIMEOUT, 1);
    return 0;
}

static void free_base(struct pyle_dns *d)
{
    struct evdns_base *dns = d->doomed;

    d->doomed = NULL;
    if (!dns)
        return;
    event_del(&d->close_event);
    event_debug_unassign(&d->close_event);
    evdns_base_free(dns, d->pb->closed && d->pb->borrowed); /* whose loop goes on, and ends them */
}

static void on_close(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_dns *d = arg;
    struct pyle_base *pb = d->pb;

    (void)fd;
    (void)what;
    free_base(d);
    if (pyle_exiting)
        return;
    pyle_before();
    if (pyle_py_dns_closed(pb->slot, d->token) == PYLE_RETRY)
        pyle_raise(pb);
    pyle_after(pb);
}

struct pyle_dns *pyle_dns_new(struct pyle_owned *owned, struct pyle_base *pb, long long token)
{
    struct pyle_dns *d = pyle_own(owned, PYLE_DNS_BASES, sizeof(*d));

    if (!d)
        return NULL;
    d->refs = 1;
    d->pb = pb;
    d->token = token;
    pyle_hold_base(pb);
    return d;
}

void pyle_dns_unref(struct pyle_dns *d)
{
    if (__atomic_sub_fetch(&d->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    pyle_base_unref(d->pb);
    pyle_unmake(PYLE_DNS_BASES, d);
}

int pyle_dns_open(struct pyle_dns *d, int flags)
{
    int rc = pyle_enter_base(d->pb);

    if (rc < 0)
        return rc;
    if (pyle_elsewhere(d->pb)) {
        rc = PYLE_THREAD;
    } else {
        d->dns = evdns_base_new(d->pb->base, flags);
        if (!d->dns)
            rc = pyle_failed();
        else if (evtimer_assign(&d->close_event, d->pb->base, on_close, d) == 0)
            pyle_note_priority(d->pb, event_get_priority(&d->close_event));
    }
    pyle_leave_base(d->pb);
    return rc;
}

/* on_reply comes, and finds it answered: now, or if there is no memory for that, when evdns is through
 * with it or its base is closed. Evdns would forget to call, and free the request all the same. */
static void cancel(struct pyle_lookup *l)
{
    struct pyle_store store;

    if (pyle_store_fill(&store, 1, 1024) < 0)
        return;
    evdns_cancel_request(l->d->dns, l->request);
    pyle_store_close(&store);
}

int pyle_dns_close(struct pyle_dns *d, int by_base)
{
    struct pyle_lookup *l;

    if (d->pb->lost)
        return 0;
    if (d->dns && !by_base) {
        int rc = check(d->pb, 1);
        if (rc < 0)
            return rc == PYLE_CLOSED ? 0 : rc;
    }
    if (d->dns) {
        for (l = by_base ? NULL : d->lookups; l; l = l->next)
            cancel(l);
        d->doomed = d->dns;
        d->dns = NULL;
        clear(d->pb, d->doomed); /* without memory: as evdns has it */
        /* An answer to one of its probes may wait in the loop already, and those to look-ups do. */
        if (!by_base && (d->pb->runner || d->pb->borrowed || d->lookups))
            event_active(&d->close_event, EV_TIMEOUT, 1);
        else
            free_base(d);
    }
    if (by_base)
        free_base(d);
    /* Some may be called yet, as what is deferred. */
    if (by_base && d->lookups && !d->pb->borrowed && !d->dead) {
        d->dead = 1;
        __atomic_add_fetch(&d->refs, 1, __ATOMIC_RELAXED);
        d->next = d->pb->dead_dns;
        d->pb->dead_dns = d;
    }
    return d->doomed != NULL;
}

/* The base is gone, and evdns will not call back any more. */
void pyle_dns_sweep(struct pyle_base *pb)
{
    struct pyle_dns *d;

    while (pb->limbos && (pb->lost || !pb->borrowed)) {
        pb->limbos->base = NULL;
        end_limbo(pb->limbos);
    }
    while ((d = pb->dead_dns) != NULL) {
        pb->dead_dns = d->next;
        while (d->lookups) {
            struct pyle_lookup *l = d->lookups;
            unlist(l);
            pyle_lookup_unref(l);
        }
        pyle_dns_unref(d);
    }
}

struct evdns_base *pyle_dns_ptr(struct pyle_dns *d)
{
    return d->pb->closed ? NULL : d->dns;
}

int pyle_dns_nameserver(struct pyle_dns *d, const void *address, int length)
{
    int rc;

    CHECK(d);
    if (!pyle_fd_fits(d->pb->fd_limit))
        return PYLE_SYS;
    rc = evdns_base_nameserver_sockaddr_add(d->dns, address, (ev_socklen_t)length, 0);
    return rc == 3 ? PYLE_NONE : rc ? pyle_failed() : 0; /* 3: it is there already */
}

static int text_of(const struct sockaddr_storage *sa, char *out, int size, int *port, unsigned *scope)
{
    const void *in = &((const struct sockaddr_in *)sa)->sin_addr;

    *port = ntohs(((const struct sockaddr_in *)sa)->sin_port);
    if (sa->ss_family == AF_INET6) {
        in = &((const struct sockaddr_in6 *)sa)->sin6_addr;
        *port = ntohs(((const struct sockaddr_in6 *)sa)->sin6_port);
        if (scope)
            *scope = ((const struct sockaddr_in6 *)sa)->sin6_scope_id;
    } else if (sa->ss_family != AF_INET) {
        return PYLE_FAIL;
    }
    return inet_ntop(sa->ss_family, in, out, (socklen_t)size) ? sa->ss_family : PYLE_FAIL;
}

int pyle_dns_get_nameserver(struct pyle_dns *d, int index, char *out, int size, int *port)
{
    struct sockaddr_storage sa;

    CHECK(d);
    if (evdns_base_get_nameserver_addr(d->dns, index, (struct sockaddr *)&sa, sizeof(sa)) <= 0)
        return PYLE_NONE;
    return text_of(&sa, out, size, port, NULL);
}

int pyle_dns_count(struct pyle_dns *d)
{
    CHECK(d);
    return evdns_base_count_nameservers(d->dns);
}

int pyle_dns_clear_nameservers(struct pyle_dns *d)
{
    CHECK(d);
    return clear(d->pb, d->dns);
}

int pyle_dns_resume(struct pyle_dns *d)
{
    CHECK(d);
    return evdns_base_resume(d->dns) ? PYLE_FAIL : 0;
}

int pyle_dns_resolv_conf(struct pyle_dns *d, int flags, const char *path)
{
    CHECK(d);
    if (!pyle_fd_fits(d->pb->fd_limit))
        return PYLE_SYS;
    return evdns_base_resolv_conf_parse(d->dns, flags, path);
}

int pyle_dns_hosts(struct pyle_dns *d, const char *path)
{
    CHECK(d);
    if (path)
        return evdns_base_load_hosts(d->dns, path) ? 1 : 0;
    evdns_base_clear_host_addresses(d->dns);
    return 0;
}

int pyle_dns_search(struct pyle_dns *d, const char *domain, int ndots)
{
    CHECK(d);
    if (ndots >= 0)
        evdns_base_search_ndots_set(d->dns, ndots);
    else if (domain)
        evdns_base_search_add(d->dns, domain);
    else
        evdns_base_search_clear(d->dns);
    return 0;
}

int pyle_dns_set_option(struct pyle_dns *d, const char *name, const char *value)
{
    CHECK(d);
    return evdns_base_set_option(d->dns, name, value) ? PYLE_RANGE : 0;
}

/* ---- look-ups ---- */

static void deliver(struct pyle_lookup *l)
{
    struct pyle_base *pb = l->d->pb;
    int answer;

    if (pyle_exiting || pb->closed || l->over)
        return;
    __atomic_add_fetch(&l->refs, 1, __ATOMIC_RELAXED);
    l->over = l->answered = 1;
    event_del(&l->timer);
    pyle_before();
    answer = pyle_py_dns(pb->slot, l->token, l->error, l->type, l->count, l->ttl, l->data, l->length);
    if (answer == PYLE_RETRY && !pb->closed) {
        l->over = 0;
        event_active(&l->timer, EV_TIMEOUT, 1);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
    pyle_lookup_unref(l);
}

static void on_reply(int error, char type, int count, int ttl, void *addresses, void *arg)
{
    struct pyle_lookup *l = arg;

    unlist(l);
    if (!l->over && !l->answered) {
        l->answered = 1;
        l->error = error;
        l->ttl = ttl;
        if (error == DNS_ERR_NONE && type == DNS_PTR) {
            l->length = snprintf(l->data, sizeof(l->data), "%s", *(char **)addresses);
            l->count = 1;
        } else if (error == DNS_ERR_NONE) {
            int size = type == DNS_IPv6_AAAA ? 16 : 4;
            l->count = count < (int)sizeof(l->data) / size ? count : (int)sizeof(l->data) / size;
            l->length = l->count * size;
            memcpy(l->data, addresses, (size_t)l->length);
        }
        deliver(l);
    }
    pyle_lookup_unref(l);
}

static void end(struct pyle_lookup *l, int error)
{
    if (!l->answered) {
        l->answered = 1;
        l->error = error;
    }
    if (l->request && l->d->dns)
        cancel(l);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_lookup *l = arg;

    (void)fd;
    (void)what;
    if (!l->over) {
        end(l, DNS_ERR_TIMEOUT);
        deliver(l);
    } else if (l->abandoned) {
        l->abandoned = 0;
        event_del(&l->timer);
        end(l, DNS_ERR_CANCEL);
        pyle_lookup_unref(l);
    }
}

struct pyle_lookup *pyle_lookup_new(struct pyle_owned *owned, struct pyle_dns *d, long long token)
{
    struct pyle_lookup *l;

    if (check(d->pb, d->dns != NULL) < 0 || !(l = pyle_own(owned, PYLE_LOOKUPS, sizeof(*l))))
        return NULL;
    l->refs = 1;
    l->d = d;
    l->token = token;
    evtimer_assign(&l->timer, d->pb->base, on_timer, l);
    __atomic_add_fetch(&d->refs, 1, __ATOMIC_RELAXED);
    return l;
}

void pyle_lookup_unref(struct pyle_lookup *l)
{
    if (__atomic_sub_fetch(&l->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    event_debug_unassign(&l->timer);
    pyle_dns_unref(l->d);
    pyle_unmake(PYLE_LOOKUPS, l);
}

int pyle_lookup_start(struct pyle_lookup *l, int type, const char *what, int length, int flags)
{
    struct evdns_base *dns = l->d->dns;

    CHECK(l->d);
    l->type = type;
    if (type == DNS_IPv4_A)
        l->request = evdns_base_resolve_ipv4(dns, what, flags, on_reply, l);
    else if (type == DNS_IPv6_AAAA)
        l->request = evdns_base_resolve_ipv6(dns, what, flags, on_reply, l);
    else if (length == 4)
        l->request = evdns_base_resolve_reverse(dns, (const void *)what, flags, on_reply, l);
    else
        l->request = evdns_base_resolve_reverse_ipv6(dns, (const void *)what, flags, on_reply, l);
    if (!l->request)
        return pyle_failed();
    __atomic_add_fetch(&l->refs, 1, __ATOMIC_RELAXED);
    l->next = l->d->lookups;
    l->to_this = &l->d->lookups;
    if (l->next)
        l->next->to_this = &l->next;
    l->d->lookups = l;
    return 0;
}

int pyle_lookup_wait(struct pyle_lookup *l, double seconds)
{
    struct timeval tv;

    CHECK(l->d);
    if (l->over || l->answered)
        return 0;
    if (!pyle_timeval(seconds, &tv))
        return event_del(&l->timer);
    return event_add(&l->timer, &tv) < 0 ? pyle_failed() : 0;
}

int pyle_lookup_end(struct pyle_lookup *l, int error)
{
    int rc = check(l->d->pb, 1); /* its evdns_base may be closed: then it is answered */

    if (rc < 0)
        return rc;
    if (l->over || l->answered)
        return 0;
    end(l, error);
    event_active(&l->timer, EV_TIMEOUT, 1);
    return 1;
}

int pyle_lookup_forget(struct pyle_lookup *l)
{
    struct pyle_base *pb = l->d->pb;

    if (pb->lost)
        return 0;
    l->over = 1;
    if (pyle_elsewhere(pb)) { /* a bufferevent that was closed there: the loop's thread ends it */
        __atomic_add_fetch(&l->refs, 1, __ATOMIC_RELAXED);
        l->abandoned = 1;
        event_active(&l->timer, EV_TIMEOUT, 1);
        return 0;
    }
    event_del(&l->timer);
    if (l->request && l->d->dns && !pb->closed)
        cancel(l);
    return 0;
}

/* ---- the server's side ----
 * A question is not delivered where evdns reads it, but by an event: there the port may be closed
 * and the question answered in any order, which evdns does not survive in the middle of its reads. */

#define MAX_WAITING 4096
#define MAX_REPLY 1400 /* bytes without compression: evdns writes past the end of 1500 */

struct pyle_port {
    struct evdns_server_port *port; /* NULL once closed */
    struct pyle_base *pb;
    long long token;
    int refs;
    int fd;
    int pinned;                /* evdns may keep the port beyond its close: an answer waits */
    struct event deliver_event;
    struct pyle_query *waiting, **waiting_end; /* not yet delivered, oldest first */
    int n_waiting;
    struct pyle_query *out;    /* delivered, not yet freed; under the base's lock */
};

struct pyle_query {
    struct evdns_server_request *request; /* NULL once answered, or dropped */
    struct pyle_port *p;       /* counted */
    struct sockaddr_storage from;
    int refs;
    int size;                  /* of the answer, without compression */
    struct pyle_query *next, **to_this; /* on p->waiting; on p->out */
};

static __thread struct pyle_query *delivering;

static void drop(struct pyle_query *q)
{
    struct evdns_server_request *request = q->request;

    q->request = NULL;
    if (request)
        evdns_server_request_drop(request);
}

static void put_out(struct pyle_query *q)
{
    q->next = q->p->out;
    q->to_this = &q->p->out;
    if (q->next)
        q->next->to_this = &q->next;
    q->p->out = q;
}

static void take_out(struct pyle_query *q)
{
    if (!q->to_this)
        return;
    *q->to_this = q->next;
    if (q->next)
        q->next->to_this = q->to_this;
    q->to_this = NULL;
}

static void free_query(struct pyle_query *q)
{
    drop(q);
    pyle_port_unref(q->p);
    pyle_unmake(PYLE_QUERIES, q);
}

void pyle_query_unref(struct pyle_query *q)
{
    struct pyle_base *pb = q->p->pb;

    if (__atomic_sub_fetch(&q->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    pthread_mutex_lock(&pb->lock);
    if (q->to_this && pyle_elsewhere(pb)) {
        event_active(&q->p->deliver_event, EV_TIMEOUT, 1); /* the loop's thread frees it */
        q = NULL;
    } else {
        take_out(q);
    }
    pthread_mutex_unlock(&pb->lock);
    if (q)
        free_query(q);
}

/* The first on p->out, or the first that nobody has any more; taken out. */
static struct pyle_query *next_out(struct pyle_port *p, int all)
{
    struct pyle_query *q;

    pthread_mutex_lock(&p->pb->lock);
    for (q = p->out; q && !all && __atomic_load_n(&q->refs, __ATOMIC_ACQUIRE) != 0;)
        q = q->next;
    if (q)
        take_out(q);
    pthread_mutex_unlock(&p->pb->lock);
    return q;
}

static void deliver_next(struct pyle_port *p)
{
    struct pyle_base *pb = p->pb;
    struct pyle_query *q = p->waiting, *outer = delivering;
    int answer;

    p->waiting = q->next;
    if (!p->waiting)
        p->waiting_end = &p->waiting;
    --p->n_waiting;
    pthread_mutex_lock(&pb->lock);
    put_out(q);
    pthread_mutex_unlock(&pb->lock);
    delivering = q;
    pyle_before();
    answer = pyle_py_dns_query(pb->slot, p->token);
    delivering = outer;
    if (answer == PYLE_RETRY && q->request) { /* not seen yet: the first one the next time */
        pthread_mutex_lock(&pb->lock);
        take_out(q);
        pthread_mutex_unlock(&pb->lock);
        q->next = p->waiting;
        if (!q->next)
            p->waiting_end = &q->next;
        p->waiting = q;
        ++p->n_waiting;
    } else {
        pyle_query_unref(q);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
}

static void on_deliver(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_port *p = arg;
    struct pyle_base *pb = p->pb;
    struct pyle_query *q;

    (void)fd;
    (void)what;
    __atomic_add_fetch(&p->refs, 1, __ATOMIC_RELAXED);
    while ((q = next_out(p, 0)))
        free_query(q);
    while (p->waiting && p->port && !pb->closed && !pyle_exiting) {
        int raised = pb->raised;
        deliver_next(p);
        if (pb->raised != raised)
            break;
    }
    if (p->waiting && p->port && !pb->closed)
        event_active(&p->deliver_event, EV_TIMEOUT, 1);
    pyle_port_unref(p);
}

static int size_of_name(const char *name)
{
    return (int)strlen(name) + 2;
}

static void on_request(struct evdns_server_request *request, void *arg)
{
    struct pyle_port *p = arg;
    struct pyle_query *q = NULL;
    int i, size = 12;

    for (i = 0; i < request->nquestions && size <= MAX_REPLY; ++i)
        size += size_of_name(request->questions[i]->name) + 4;
    if (p->port && !p->pb->closed && size <= MAX_REPLY && p->n_waiting < MAX_WAITING)
        q = pyle_make(PYLE_QUERIES, sizeof(*q));
    if (!q) {
        evdns_server_request_drop(request);
        return;
    }
    q->refs = 1;
    q->request = request;
    q->size = size;
    q->p = p;
    __atomic_add_fetch(&p->refs, 1, __ATOMIC_RELAXED);
    evdns_server_request_get_requesting_addr(request, (struct sockaddr *)&q->from, sizeof(q->from));
    *p->waiting_end = q;
    p->waiting_end = &q->next;
    ++p->n_waiting;
    event_active(&p->deliver_event, EV_TIMEOUT, 1);
}

struct pyle_port *pyle_port_new(struct pyle_owned *owned, struct pyle_base *pb, long long token)
{
    struct pyle_port *p = pyle_own(owned, PYLE_PORTS, sizeof(*p));

    if (!p)
        return NULL;
    p->refs = 1;
    p->pb = pb;
    p->token = token;
    p->fd = -1;
    p->waiting_end = &p->waiting;
    pyle_hold_base(pb);
    return p;
}

void pyle_port_unref(struct pyle_port *p)
{
    if (__atomic_sub_fetch(&p->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    pyle_base_unref(p->pb);
    pyle_unmake(PYLE_PORTS, p);
}

/* evdns ends the process when it reads less than a header: the kernel keeps that from it. */
static int keep_short_ones_out(int fd)
{
#ifdef __linux__
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_LEN, 0),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 8 + 12, 0, 1), /* with the header of UDP */
        BPF_STMT(BPF_RET | BPF_K, 0xffffffff),
        BPF_STMT(BPF_RET | BPF_K, 0),
    };
    struct sock_fprog filter = {sizeof(code) / sizeof(code[0]), code};
    char byte;

    if (setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &filter, sizeof(filter)) < 0)
        return -1;
    while (recv(fd, &byte, 1, MSG_DONTWAIT) >= 0) /* those that are there already */
        ;
#else
    (void)fd;
#endif
    return 0;
}

int pyle_port_open(struct pyle_port *p, int fd)
{
    int rc = pyle_enter_base(p->pb);

    if (rc < 0)
        return rc;
    if (pyle_elsewhere(p->pb)) {
        rc = PYLE_THREAD;
    } else if (fd <= 0 || fd >= p->pb->fd_limit) { /* 0 evdns does not close */
        rc = PYLE_RANGE;
    } else if (evutil_make_socket_nonblocking(fd) < 0 || keep_short_ones_out(fd) < 0) {
        rc = pyle_failed();
    } else {
        errno = 0;
        p->port = evdns_add_server_port_with_base(p->pb->base, fd, 0, on_request, p);
        if (p->port) {
            p->fd = fd;
            evtimer_assign(&p->deliver_event, p->pb->base, on_deliver, p);
            pyle_note_priority(p->pb, event_get_priority(&p->deliver_event));
        } else {
            rc = pyle_failed();
        }
    }
    pyle_leave_base(p->pb);
    return rc;
}

int pyle_port_close(struct pyle_port *p)
{
    struct evdns_server_port *port = p->port;
    struct pyle_query *q;

    if (!port || p->pb->lost)
        return 0;
    if (!p->pb->closed) {
        int rc = check(p->pb, 1);
        if (rc < 0)
            return rc;
    }
    p->port = NULL;
    event_del(&p->deliver_event);
    event_debug_unassign(&p->deliver_event);
    while ((q = next_out(p, 1))) {
        drop(q);
        if (__atomic_load_n(&q->refs, __ATOMIC_ACQUIRE) == 0)
            free_query(q);
    }
    while ((q = p->waiting)) {
        p->waiting = q->next;
        pyle_query_unref(q);
    }
    p->waiting_end = &p->waiting;
    p->n_waiting = 0;
    evdns_close_server_port(port);
    return 0;
}

struct evdns_server_port *pyle_port_ptr(struct pyle_port *p)
{
    return p->pb->closed ? NULL : p->port;
}

int pyle_port_fd(struct pyle_port *p)
{
    int rc = check(p->pb, p->port != NULL);

    return rc < 0 ? rc : p->fd;
}

/* ---- a question ---- */

struct pyle_query *pyle_query_take(struct pyle_owned *owned)
{
    if (delivering)
        __atomic_add_fetch(&delivering->refs, 1, __ATOMIC_RELAXED);
    owned->what = PYLE_QUERIES;
    return owned->it = delivering;
}

struct evdns_server_request *pyle_query_ptr(struct pyle_query *q)
{
    return q->p->pb->closed ? NULL : q->request;
}

#define CHECK_QUERY(q)                                     \
    do {                                                   \
        int rc_ = check((q)->p->pb, (q)->request != NULL); \
        if (rc_ < 0)                                       \
            return rc_;                                    \
    } while (0)

int pyle_query_question(struct pyle_query *q, int index, char *name, int size, int *type, int *cls)
{
    struct evdns_server_question *question;

    CHECK_QUERY(q);
    if (index < 0 || index >= q->request->nquestions)
        return 1;
    question = q->request->questions[index];
    *type = question->type;
    *cls = question->dns_question_class;
    snprintf(name, (size_t)size, "%s", question->name);
    return 0;
}

int pyle_query_address(struct pyle_query *q, char *host, int size, int *port, unsigned *scope)
{
    *scope = 0;
    return text_of(&q->from, host, size, port, scope);
}

int pyle_query_flags(struct pyle_query *q, int set, int flags)
{
    CHECK_QUERY(q);
    if (set)
        evdns_server_request_set_flags(q->request, flags);
    return q->request->flags & 0xffff;
}

int pyle_query_add(struct pyle_query *q, int section, const char *name, int type, int cls, int ttl,
                   int length, int is_name, const char *data)
{
    int size;

    CHECK_QUERY(q);
    size = q->size + size_of_name(name) + 10 + (is_name ? size_of_name(data) : length);
    if (size > MAX_REPLY)
        return PYLE_SMALL;
    if (evdns_server_request_add_reply(q->request, section, name, type, cls, ttl, length, is_name,
                                       is_name || length > 0 ? data : NULL) < 0) /* malloc(0) fails it */
        return PYLE_FAIL;
    q->size = size;
    return 0;
}

int pyle_query_respond(struct pyle_query *q, int error)
{
    int rc;

    CHECK_QUERY(q);
    rc = evdns_server_request_respond(q->request, error);
    if (rc < 0)
        return pyle_failed(); /* it may be tried again */
    q->request = NULL;
    if (rc == 1 && !q->p->pinned) {
        q->p->pinned = 1;
        __atomic_add_fetch(&q->p->refs, 1, __ATOMIC_RELAXED);
    }
    return rc;
}

int pyle_query_drop(struct pyle_query *q)
{
    if (!q->request)
        return 0;
    CHECK_QUERY(q);
    drop(q);
    return 0;
}
