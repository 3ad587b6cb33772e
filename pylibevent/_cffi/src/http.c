/* HTTP: requests and their headers, the server. evhttp frees a request, and the connection it came
 * on, where it likes; our structs outlive them and are told. */
#include "http.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

static void pyle_http_put(struct pyle_http *s);

/* ---- requests ---- */

static pthread_mutex_t request_lock = PTHREAD_MUTEX_INITIALIZER; /* a buffer's end, which any thread may bring about */

void pyle_request_lock(int on)
{
    if (on)
        pthread_mutex_lock(&request_lock);
    else
        pthread_mutex_unlock(&request_lock);
}

struct pyle_request *pyle_request_make(struct pyle_owned *owned, struct pyle_base *pb, long long token)
{
    struct pyle_request *r = owned ? pyle_own(owned, PYLE_REQUESTS, sizeof(*r))
                                   : pyle_make(PYLE_REQUESTS, sizeof(*r));

    if (!r)
        return NULL;
    r->refs = 1;
    r->token = token;
    r->left = -1;
    r->pb = pb;
    if (pb)
        pyle_hold_base(pb);
    return r;
}

struct pyle_request *pyle_request_new(struct pyle_owned *owned, long long token)
{
    struct pyle_request *r;
    struct pyle_store store;

    if (pyle_store_fill(&store, 6, 512) < 0) /* evhttp reads through NULL where it has too little */
        return NULL;
    r = pyle_request_make(owned, NULL, token);
    if (r)
        r->req = evhttp_request_new(NULL, r);
    pyle_store_close(&store);
    if (r && !r->req) {
        pyle_disown(owned);
        return NULL;
    }
    return r;
}

void pyle_request_hold(struct pyle_request *r)
{
    __atomic_add_fetch(&r->refs, 1, __ATOMIC_RELAXED);
}

/* Where evhttp is not through with it, it is evhttp that frees it. */
static void free_it(struct pyle_request *r)
{
    struct evhttp_request *req = r->req;
    int ours = !(req->flags & EVHTTP_REQ_DEFER_FREE) || (req->flags & EVHTTP_REQ_NEEDS_FREE);

    r->req = NULL;
    req->flags &= ~(EVHTTP_REQ_DEFER_FREE | EVHTTP_REQ_NEEDS_FREE);
    if (ours)
        evhttp_request_free(req);
}

void pyle_request_put(struct pyle_request *r)
{
    if (__atomic_sub_fetch(&r->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    if (r->req)
        free_it(r);
    if (r->server)
        pyle_http_put(r->server);
    for (int i = 0; i < 2; ++i)
        if (r->shown[i])
            evbuffer_free(r->shown[i]);
    if (r->pb)
        pyle_base_unref(r->pb);
    pyle_unmake(PYLE_REQUESTS, r);
}

void pyle_request_unref(struct pyle_request *r)
{
    if (r->dropped)
        r->dropped(r);
    pyle_request_put(r);
    pyle_release_pins();
}

/* To Python; it may be there yet, for us. */
static int gone(struct pyle_request *r)
{
    return !r->req || (r->over && !r->owned && !r->told);
}

static int check(struct pyle_request *r)
{
    struct pyle_base *pb = r->pb;

    if (gone(r))
        return PYLE_CLOSED;
    if (pb && !pb->closed && pb->fork_gen != pyle_fork_gen)
        return PYLE_FORKED;
    if (pb && pyle_elsewhere(pb))
        return PYLE_THREAD;
    errno = 0;
    return 0;
}

int pyle_request_enter(struct pyle_request *r)
{
    uintptr_t nobody = 0;
    int rc = check(r);

    if (rc < 0)
        return rc;
    if (!__atomic_compare_exchange_n(&r->user, &nobody, PYLE_ME, 0, __ATOMIC_ACQUIRE, __ATOMIC_ACQUIRE) &&
        nobody != PYLE_ME)
        return PYLE_THREAD;
    ++r->depth;
    return 0;
}

int pyle_request_leave(struct pyle_request *r, int rc)
{
    if (--r->depth == 0) {
        if (r->over && !r->owned && r->req)
            pyle_request_over(r, 0);
        __atomic_store_n(&r->user, 0, __ATOMIC_RELEASE);
    }
    return rc;
}

/* What memoryviews still show of a buffer stays, and so does all while a call is in the middle of it:
 * until the struct goes, which whoever makes the call has. */
void pyle_request_over(struct pyle_request *r, int left)
{
    int i, busy = r->depth > 0 || r->told;

    if (!r->req || r->conn) /* a 503 may be under way, which nobody waits for any more */
        return;
    r->over = 1;
    if (left)
        r->req->flags |= EVHTTP_REQ_NEEDS_FREE;
    pthread_mutex_lock(&request_lock);
    for (i = 0; i < 2; ++i)
        busy |= r->bufs[i] && r->bufs[i]->depth > 0;
    for (i = 0; i < 2 && !busy && !r->owned; ++i)
        if (r->bufs[i]) {
            pyle_buf_orphan(r->bufs[i], r->bufs[i]->buf);
            r->bufs[i]->borrowed = 0;
            r->bufs[i] = NULL;
        }
    pthread_mutex_unlock(&request_lock);
    if (!busy && !r->owned)
        free_it(r);
}

/* Python lets go of a buffer. */
void pyle_request_forget_buf(struct pyle_buf *b)
{
    struct pyle_request *r = b->request;

    pthread_mutex_lock(&request_lock);
    if (r->bufs[b->is_input] == b)
        r->bufs[b->is_input] = NULL;
    pthread_mutex_unlock(&request_lock);
    pyle_request_put(r);
}

struct evhttp_request *pyle_request_ptr(struct pyle_request *r)
{
    return gone(r) ? NULL : r->req;
}

int pyle_request_check(struct pyle_request *r)
{
    return check(r);
}

int pyle_request_own(struct pyle_request *r)
{
    int rc = check(r);

    if (rc == 0) {
        r->owned = 1;
        if (!r->server) /* of a server's, evhttp would not tell when it is done with it */
            evhttp_request_own(r->req);
    }
    return rc;
}

int pyle_request_text(struct pyle_request *r, int what, struct pyle_text *text)
{
    const char *found = NULL;
    int rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    pyle_went_short();
    switch (what) {
    case PYLE_REQUEST_URI: found = r->req->uri; break;
    case PYLE_REQUEST_HOST: found = evhttp_request_get_host(r->req); break;
    case PYLE_REQUEST_REMOTE: found = r->req->remote_host; break;
    case PYLE_REQUEST_REASON: found = r->req->response_code_line; break;
    default: break;
    }
    if (!found)
        rc = pyle_went_short() ? PYLE_NOMEM : PYLE_NONE;
    else if (!(text->bytes = strdup(found)))
        rc = PYLE_NOMEM;
    else
        text->n = strlen(found);
    return pyle_request_leave(r, rc);
}

int pyle_request_number(struct pyle_request *r, int what)
{
    int rc = check(r);

    if (rc < 0)
        return rc;
    switch (what) {
    case PYLE_REQUEST_TYPE: return (int)r->req->type;
    case PYLE_REQUEST_MAJOR: return r->req->major;
    case PYLE_REQUEST_MINOR: return r->req->minor;
    case PYLE_REQUEST_PORT: return r->req->remote_port;
    case PYLE_REQUEST_OWNED: return r->owned;
    default: return r->req->response_code;
    }
}

struct pyle_buf *pyle_request_buffer(struct pyle_owned *owned, struct pyle_request *r, int input)
{
    struct evbuffer *of;
    struct pyle_buf *b;

    if (pyle_request_enter(r) < 0)
        return NULL;
    pthread_mutex_lock(&request_lock);
    b = r->bufs[input];
    of = r->shown[input];
    if (!of)
        of = input ? r->req->input_buffer : r->req->output_buffer;
    if (b) { /* made by a call that was interrupted */
        __atomic_add_fetch(&b->refs, 1, __ATOMIC_RELAXED);
        owned->what = PYLE_BUFS;
        owned->it = b;
    }
    pthread_mutex_unlock(&request_lock);
    if (!b && (b = pyle_buf_borrow(owned, of))) {
        b->request = r;
        b->is_input = input != 0;
        if (!input && r->plain && evbuffer_set_flags(b->buf, EVBUFFER_FLAG_DRAINS_TO_FD) == 0)
            b->drains = 1;
        pyle_request_hold(r);
        r->bufs[input] = b;
    }
    pyle_request_leave(r, 0);
    return b;
}

/* ---- headers ---- */

static struct evkeyvalq *headers_of(struct pyle_request *r, int input)
{
    return input ? r->req->input_headers : r->req->output_headers;
}

static int is_value(const char *value, size_t n)
{
    size_t i;

    for (i = 0; i < n; ++i)
        if (value[i] == '\r' || value[i] == '\n' || value[i] == '\0')
            return 0;
    return 1;
}

static struct evkeyval *find(struct evkeyvalq *headers, const char *name)
{
    struct evkeyval *h;

    for (h = headers->tqh_first; h; h = h->next.tqe_next)
        if (evutil_ascii_strcasecmp(h->key, name) == 0)
            return h;
    return NULL;
}

static int remove_all(struct evkeyvalq *headers, const char *name)
{
    int n = 0;

    while (evhttp_remove_header(headers, name) == 0)
        ++n;
    return n;
}

static int enter_headers(struct pyle_request *r, const char *name, size_t n)
{
    return pyle_is_token(name, n) ? pyle_request_enter(r) : PYLE_RANGE;
}

int pyle_headers_get(struct pyle_request *r, int input, const char *name, size_t n, struct pyle_text *text)
{
    struct evkeyval *h;
    int rc = enter_headers(r, name, n);

    if (rc < 0)
        return rc == PYLE_RANGE ? PYLE_NONE : rc;
    h = find(headers_of(r, input), name);
    if (!h)
        rc = PYLE_NONE;
    else if (!(text->bytes = strdup(h->value)))
        rc = PYLE_NOMEM;
    else
        text->n = strlen(h->value);
    return pyle_request_leave(r, rc);
}

int pyle_headers_all(struct pyle_request *r, int input, struct pyle_text *text)
{
    struct evkeyval *h, *first;
    size_t n = 0;
    char *to;
    int rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    first = headers_of(r, input)->tqh_first;
    for (h = first; h; h = h->next.tqe_next)
        n += strlen(h->key) + strlen(h->value) + 2;
    if (!(to = malloc(n + 1)))
        return pyle_request_leave(r, PYLE_NOMEM);
    text->bytes = to;
    text->n = n;
    for (h = first; h; h = h->next.tqe_next) {
        to = stpcpy(to, h->key) + 1;
        to = stpcpy(to, h->value) + 1;
    }
    return pyle_request_leave(r, 0);
}

int pyle_headers_count(struct pyle_request *r, int input)
{
    struct evkeyval *h;
    int n = 0, rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    for (h = headers_of(r, input)->tqh_first; h; h = h->next.tqe_next)
        ++n;
    return pyle_request_leave(r, n);
}

int pyle_headers_add(struct pyle_request *r, int input, const char *name, size_t n, const char *value, size_t m)
{
    int rc = is_value(value, m) ? enter_headers(r, name, n) : PYLE_RANGE;

    if (rc < 0)
        return rc;
    if (evhttp_add_header(headers_of(r, input), name, value) < 0)
        rc = PYLE_NOMEM;
    return pyle_request_leave(r, rc);
}

int pyle_headers_set(struct pyle_request *r, int input, const char *name, size_t n, const char *value, size_t m)
{
    struct evkeyval *h;
    char *key, *copy;
    int rc = is_value(value, m) ? enter_headers(r, name, n) : PYLE_RANGE;

    if (rc < 0)
        return rc;
    h = find(headers_of(r, input), name);
    if (!h) {
        if (evhttp_add_header(headers_of(r, input), name, value) < 0)
            rc = PYLE_NOMEM;
        return pyle_request_leave(r, rc);
    }
    copy = strdup(value);
    key = strdup(name);
    if (!copy || !key) {
        free(copy);
        free(key);
        return pyle_request_leave(r, PYLE_NOMEM);
    }
    free(h->value);
    h->value = copy;
    free(h->key);
    h->key = key;
    for (struct evkeyval *next, *other = h->next.tqe_next; other; other = next) {
        next = other->next.tqe_next;
        if (evutil_ascii_strcasecmp(other->key, name) != 0)
            continue;
        *other->next.tqe_prev = next;
        if (next)
            next->next.tqe_prev = other->next.tqe_prev;
        else
            headers_of(r, input)->tqh_last = other->next.tqe_prev;
        free(other->key);
        free(other->value);
        free(other);
    }
    return pyle_request_leave(r, 0);
}

int pyle_headers_remove(struct pyle_request *r, int input, const char *name, size_t n)
{
    int rc = enter_headers(r, name, n);

    if (rc < 0)
        return rc == PYLE_RANGE ? 0 : rc;
    return pyle_request_leave(r, remove_all(headers_of(r, input), name));
}

int pyle_headers_clear(struct pyle_request *r, int input)
{
    int rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    evhttp_clear_headers(headers_of(r, input));
    return pyle_request_leave(r, 0);
}

/* pairs as those of pyle_headers_all(), n bytes of them. */
int pyle_headers_extend(struct pyle_request *r, int input, const char *pairs, size_t n)
{
    const char *name, *value, *end = pairs + n;
    int rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    for (name = pairs; rc == 0 && name < end; name = value + strlen(value) + 1) {
        value = name + strlen(name) + 1;
        if (value > end || !pyle_is_token(name, (size_t)(value - name - 1)) || !is_value(value, strlen(value)))
            rc = PYLE_RANGE;
        else if (evhttp_add_header(headers_of(r, input), name, value) < 0)
            rc = PYLE_NOMEM;
    }
    return pyle_request_leave(r, rc);
}

/* What a gateway asks for, in one piece: method, HTTP's version, length of the body, port, address,
 * URI and the headers, NUL behind each. */
int pyle_request_all(struct pyle_request *r, struct pyle_text *text)
{
    struct evhttp_request *req;
    struct evkeyval *h;
    size_t n = 96;
    char *to;
    int rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    req = r->req;
    n += strlen(req->remote_host ? req->remote_host : "") + strlen(req->uri ? req->uri : "");
    for (h = req->input_headers->tqh_first; h; h = h->next.tqe_next)
        n += strlen(h->key) + strlen(h->value) + 2;
    if (!(to = malloc(n)))
        return pyle_request_leave(r, PYLE_NOMEM);
    text->bytes = to;
    to += sprintf(to, "%d%cHTTP/%d.%d%c%zu%c%u", (int)req->type, 0, req->major, req->minor, 0,
                  evbuffer_get_length(req->input_buffer), 0, req->remote_port) + 1;
    to = stpcpy(to, req->remote_host ? req->remote_host : "") + 1;
    to = stpcpy(to, req->uri ? req->uri : "") + 1;
    for (h = req->input_headers->tqh_first; h; h = h->next.tqe_next) {
        to = stpcpy(to, h->key) + 1;
        to = stpcpy(to, h->value) + 1;
    }
    text->n = (size_t)(to - text->bytes);
    return pyle_request_leave(r, 0);
}

/* ---- the server ----
 * Each connection is known to us from the moment that it is accepted: evhttp asks us for its
 * bufferevent. Python is called by the handlers' callback and, for everything else, by an event of
 * ours, never where evhttp is in the middle of something. */

#define MOST_AHEAD 65536 /* of input that comes while a reply is made */

struct pyle_http {
    struct evhttp *http;       /* NULL once closed */
    struct pyle_base *pb;
    long long token;
    int refs;
    unsigned fork_gen;
    struct pyle_http *parent;  /* of a virtual host */
    struct pyle_http *children, *next_child;
    struct pyle_http_conn *conns, *fresh;
    struct pyle_http_conn *past; /* TLS ones that are gone: evhttp may still be in them */
    struct pyle_http_conn **by_fd;
    int n_fds;
    struct pyle_route *routes, *gencb;
    struct pyle_bound *bounds;
    struct event adopt_event;  /* those that are fresh */
    struct event soon_event;   /* what is in the queue */
    struct pyle_request *queue, **queue_end; /* under the base's lock */
    double timeout;            /* < 0: none */
    char *content_type;
    size_t max_headers, max_body;
    int bevcb;                 /* Python makes the bufferevents */
    int in_bevcb, doomed;
    struct pyle_http *next_doomed, *next_queued;
    int refuses;               /* some of its connections are to end */
};

struct pyle_route {
    struct pyle_http *s;
    long long token;
    struct pyle_route *next;
};

struct pyle_bound {
    struct evhttp_bound_socket *bound; /* NULL once closed */
    struct pyle_http *s;       /* counted */
    int refs;
    int off;                   /* disable() */
    struct event retry_event;  /* after a failed accept */
    struct pyle_bound *next;
    struct pyle_bound *next_of_all, **to_this;
};

static struct pyle_bound *all_bounds;

struct pyle_http_conn {
    struct pyle_http *s;       /* counted */
    struct bufferevent *bev;   /* NULL: gone */
    struct evhttp_connection *evcon; /* NULL: fresh, or gone */
    struct pyle_request *r;    /* what evhttp has, counted */
    int refs;
    int fd;
    size_t most;               /* of input, that it has a use for */
    int plain;                 /* a socket without TLS, our own */
    int refused;
    int bounded;               /* its input has had a limit */
    int taken;                 /* take_over() */
    int complete;              /* what is written is not evhttp's own answer */
    int watching;              /* reading goes on while a reply is made */
    struct pyle_scan scan;
    int bad;                   /* the scan has met what is not HTTP; 2: and evhttp will */
    struct evbuffer_cb_entry *input_cb;
    struct event timer;        /* the handler takes too long */
    struct event hold;         /* of plain ones: see on_hold() */
    struct pyle_tls *tls;      /* NULL: none */
    int shaken;                /* the handshake is over */
    int left;                  /* to the parent process */
    long long token;           /* of the BufferEvent that it was Python's as */
    struct pyle_http_conn *next, **to_this;
};

static __thread struct pyle_request *delivering;

static int check_http(struct pyle_http *s)
{
    struct pyle_base *pb = s->pb;

    if (!s->http || pb->closed)
        return PYLE_CLOSED;
    if (pb->fork_gen != pyle_fork_gen)
        return PYLE_FORKED;
    if (pyle_elsewhere(pb))
        return PYLE_THREAD;
    errno = 0;
    return 0;
}

#define CHECK(s)                \
    do {                        \
        int rc_ = check_http(s); \
        if (rc_ < 0)            \
            return rc_;         \
    } while (0)

static void pyle_http_put(struct pyle_http *s)
{
    if (__atomic_sub_fetch(&s->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    if (s->queue_end)
        event_debug_unassign(&s->soon_event);
    free(s->by_fd);
    free(s->content_type);
    pyle_base_unref(s->pb);
    pyle_unmake(PYLE_HTTPS, s);
}

static void hold_http(struct pyle_http *s)
{
    __atomic_add_fetch(&s->refs, 1, __ATOMIC_RELAXED);
}

static void put_conn(struct pyle_http_conn *c)
{
    if (--c->refs > 0)
        return;
    pyle_http_put(c->s);
    pyle_unmake(PYLE_HTTP_CONNS, c);
}

/* ---- memory that evhttp needs ----
 * A request that it cannot make whole it frees by way of NULL: what the next one on a connection needs
 * is there before. For a new connection it has to stay there until evhttp is out of its callback. */

static int enter_store(struct pyle_base *pb)
{
    if (pb->in_http_store || (!pb->http_store && !(pb->http_store = calloc(1, sizeof(*pb->http_store)))))
        return 0;
    pyle_store_enter(pb->http_store, 10, 512);
    return pb->in_http_store = 1;
}

static void leave_store(struct pyle_base *pb, int entered)
{
    if (entered && pb->in_http_store) {
        pb->in_http_store = 0;
        pyle_store_leave(pb->http_store);
    }
}

void pyle_https_settle(struct pyle_base *pb)
{
    leave_store(pb, 1);
}

void pyle_https_end(struct pyle_base *pb)
{
    if (pb->http_store) {
        pyle_store_open(pb->http_store);
        pyle_store_close(pb->http_store);
        free(pb->http_store);
    }
}

/* ---- what Python is told later ---- */

static void queue(struct pyle_request *r)
{
    struct pyle_http *s = r->server;
    struct pyle_base *pb = s->pb;

    pthread_mutex_lock(&pb->lock);
    if (!r->queued && !pb->closed && s->queue_end) {
        if (!s->queue) {
            hold_http(s);
            s->next_queued = pb->queued_https;
            pb->queued_https = s;
        }
        r->queued = 1;
        r->next = NULL;
        pyle_request_hold(r);
        *s->queue_end = r;
        s->queue_end = &r->next;
        event_active(&s->soon_event, EV_TIMEOUT, 1);
    }
    pthread_mutex_unlock(&pb->lock);
}

/* The caller has s. */
static struct pyle_request *take_from_queue(struct pyle_http *s)
{
    struct pyle_base *pb = s->pb;
    struct pyle_http **at;
    struct pyle_request *r;
    int last = 0;

    pthread_mutex_lock(&pb->lock);
    r = s->queue;
    if (r) {
        s->queue = r->next;
        r->queued = 0;
        last = !s->queue;
    }
    if (last) {
        s->queue_end = &s->queue;
        for (at = &pb->queued_https; *at != s; at = &(*at)->next_queued)
            ;
        *at = s->next_queued;
    }
    pthread_mutex_unlock(&pb->lock);
    if (last)
        pyle_http_put(s);
    return r;
}

static void drop_queue(struct pyle_http *s)
{
    struct pyle_request *r;

    hold_http(s);
    while ((r = take_from_queue(s)) != NULL) {
        pyle_http_untell(r);
        if (!r->conn)
            pyle_request_over(r, 0);
        pyle_request_put(r);
    }
    if (s->queue_end) {
        s->queue_end = NULL;
        event_del(&s->soon_event);
        event_debug_unassign(&s->soon_event);
    }
    pyle_http_put(s);
}

static void tell(struct pyle_request *r, int what)
{
    if (!r->told)
        return;
    r->pending |= what;
    queue(r);
}

/* ---- replies, without Python ---- */

static void drop_conn(struct pyle_http_conn *c, int error)
{
    if (!c->evcon)
        return;
    if (c->r)
        c->r->error = error;
    evhttp_connection_free(c->evcon);
}

/* By us, or (userdone) by a C library. */
static int unanswered(struct pyle_request *r)
{
    return r->conn && r->answered < 2 && !r->req->userdone;
}

static int needs_body(int code, enum evhttp_cmd_type type)
{
    return code >= 200 && code != HTTP_NOCONTENT && code != HTTP_NOTMODIFIED &&
           type != EVHTTP_REQ_HEAD && (type != EVHTTP_REQ_CONNECT || code >= 300);
}

/* What is written next goes to the socket as soon as the callback that runs is over, and libevent
 * need not ask for it to be writable. */
static void write_soon(struct pyle_http_conn *c)
{
    if (c->plain && !IS_ARMED(&c->bev->ev_write))
        event_active(&c->bev->ev_write, EV_WRITE, 1);
}

/* After evhttp has sent something. A reply that there was no memory for is none. */
static int sent(struct pyle_http_conn *c)
{
    /* With a timeout, libevent would add what was made active before it is called. */
    if (c->plain && c->bev && !(c->bev->ev_write.ev_evcallback.evcb_flags & EVLIST_INSERTED))
        event_remove_timer(&c->bev->ev_write);
    if (!pyle_went_short())
        return 0;
    drop_conn(c, EVREQ_HTTP_BUFFER_ERROR);
    return PYLE_NOMEM;
}

static int add_number(struct evkeyvalq *headers, const char *name, size_t n)
{
    char text[24];

    snprintf(text, sizeof(text), "%zu", n);
    return evhttp_add_header(headers, name, text) < 0 ? PYLE_NOMEM : 0;
}

/* The Content-Length that the handler has set, or -1; PYLE_RANGE: it is none, or there is a
 * Transfer-Encoding, which is evhttp's. */
static int promised(struct evhttp_request *req, long long *length)
{
    struct evkeyval *h;
    char *end;

    *length = -1;
    for (h = req->output_headers->tqh_first; h; h = h->next.tqe_next) {
        if (evutil_ascii_strcasecmp(h->key, "Transfer-Encoding") == 0)
            return PYLE_RANGE;
        if (evutil_ascii_strcasecmp(h->key, "Content-Length") != 0)
            continue;
        if (*length >= 0 || h->value[0] < '0' || h->value[0] > '9')
            return PYLE_RANGE;
        *length = strtoll(h->value, &end, 10);
        if (*end)
            return PYLE_RANGE;
    }
    return 0;
}

/* At the front: evhttp would promise what it cannot send. */
static int is_frozen(struct evbuffer *body)
{
    char first;

    return evbuffer_copyout(body, &first, 1) < 0;
}

/* Headers and the body are where they belong: all goes out. */
static int send_all(struct pyle_request *r, int code, const char *reason)
{
    struct evhttp_request *req = r->req;
    size_t n = evbuffer_get_length(req->output_buffer);
    long long length;
    int rc = is_frozen(req->output_buffer) ? PYLE_FAIL : promised(req, &length);

    if (rc < 0)
        return rc;
    if (needs_body(code, req->type)) {
        if (length >= 0 && (size_t)length != n)
            return PYLE_RANGE;
    } else { /* evhttp would send it all the same */
        if (req->type == EVHTTP_REQ_HEAD && length < 0 && n > 0 &&
            add_number(req->output_headers, "Content-Length", n) < 0)
            return PYLE_NOMEM;
        evbuffer_drain(req->output_buffer, n);
    }
    if (req->type == EVHTTP_REQ_CONNECT && code >= 300)
        req->type = EVHTTP_REQ_GET; /* or evhttp sends no length, and keeps the connection */
    write_soon(r->conn);
    r->answered = 2;
    pyle_went_short();
    evhttp_send_reply(req, code, reason, NULL);
    return sent(r->conn);
}

static int send_error(struct pyle_request *r, int code, const char *reason)
{
    struct evhttp_request *req = r->req;
    struct evbuffer *page = req->output_buffer;
    char *escaped = evhttp_htmlescape(reason);
    int rc = PYLE_NOMEM;

    evhttp_clear_headers(req->output_headers);
    evbuffer_unfreeze(page, 0);
    evbuffer_unfreeze(page, 1);
    evbuffer_drain(page, evbuffer_get_length(page));
    if (escaped &&
        evbuffer_add_printf(page,
                            "<html><head><title>%d %s</title></head><body><h1>%s</h1></body></html>\n",
                            code, escaped, escaped) >= 0 &&
        evhttp_add_header(req->output_headers, "Content-Type", "text/html") == 0 &&
        evhttp_add_header(req->output_headers, "Connection", "close") == 0)
        rc = send_all(r, code, reason);
    free(escaped);
    return rc;
}

/* Nobody will answer it any more. */
static void give_up(struct pyle_request *r, int code, const char *reason, int error)
{
    struct pyle_http_conn *c = r->conn;

    r->error = error;
    if (r->bufs[0])
        pyle_buf_uncall(r->bufs[0]);
    if (r->answered || (r->bufs[0] && pyle_buf_viewed(r->bufs[0])) || send_error(r, code, reason) < 0)
        drop_conn(c, error);
}

/* So that it gets there although the loop ends. */
static void flush(struct pyle_http_conn *c)
{
    struct evbuffer *output;

    if (!c->bev || !c->plain)
        return;
    output = bufferevent_get_output(c->bev);
    evbuffer_unfreeze(output, 1);
    evbuffer_write(output, c->fd);
    evbuffer_freeze(output, 1);
}

/* ---- while a reply is made ---- */

static void set_timeouts(struct pyle_http_conn *c, int reading)
{
    struct timeval tv, *limit = pyle_timeval(c->s->timeout, &tv) ? &tv : NULL;

    bufferevent_set_timeouts(c->bev, reading ? limit : NULL, limit);
}

static void restart_timer(struct pyle_http_conn *c)
{
    struct timeval tv;

    if (c->watching && pyle_timeval(c->s->timeout, &tv))
        event_add(&c->timer, &tv);
}

/* In the place of a watermark: of a record, libevent would forget the rest. */
static void bound_input(struct pyle_http_conn *c)
{
    if (!c->plain && (c->watching || c->bad) && c->bev &&
        evbuffer_get_length(bufferevent_get_input(c->bev)) > MOST_AHEAD)
        bufferevent_disable(c->bev, EV_READ);
}

static void refuse(struct pyle_http_conn *c)
{
    c->refused = c->s->refuses = 1;
    event_active(&c->s->adopt_event, EV_TIMEOUT, 1);
}

/* Libevent does not look whether it got the memory that the first one takes. */
static void set_most(struct pyle_http_conn *c, size_t most)
{
    struct pyle_store store;

    if (c->bounded || !most) {
        bufferevent_setwatermark(c->bev, EV_READ, 0, most);
    } else if (pyle_store_fill(&store, 1, 128) == 0) {
        bufferevent_setwatermark(c->bev, EV_READ, 0, most);
        pyle_store_close(&store);
        c->bounded = 1;
    } else {
        refuse(c);
    }
}

/* evhttp has stopped reading, and its callback for what is read ends the process now. But for the
 * end of the connection, and how much may come until then, somebody has to look. */
static void watch(struct pyle_http_conn *c)
{
    bufferevent_data_cb write;
    bufferevent_event_cb event;
    void *arg;

    if (!c->watching) {
        c->watching = 1;
        bufferevent_getcb(c->bev, NULL, &write, &event, &arg);
        bufferevent_setcb(c->bev, NULL, write, event, arg);
        if (c->plain)
            set_most(c, MOST_AHEAD);
        set_timeouts(c, 0);
        bufferevent_enable(c->bev, EV_READ);
    }
    restart_timer(c);
}

static void unwatch(struct pyle_http_conn *c)
{
    if (!c->watching)
        return;
    c->watching = 0;
    event_del(&c->timer);
    if (c->bev) {
        if (c->plain)
            set_most(c, c->bad ? MOST_AHEAD : 0);
        set_timeouts(c, 1);
    }
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_http_conn *c = arg;
    struct pyle_request *r = c->r;

    (void)fd;
    (void)what;
    if (!r || !c->bev || !unanswered(r))
        return;
    if (evbuffer_get_length(bufferevent_get_output(c->bev)) > 0) {
        restart_timer(c); /* it is the client who takes long, which is the other timeout's */
        return;
    }
    pyle_request_hold(r);
    give_up(r, HTTP_SERVUNAVAIL, "Service Unavailable", EVREQ_HTTP_TIMEOUT);
    r->over = 1;
    tell(r, PYLE_HTTP_FAILED);
    pyle_request_put(r);
}

/* ---- a connection's life ---- */

static event_callback_fn libevent_reads, libevent_writes;

#define SCRATCH 65408          /* as in fast.c, whose block it is */

/* Libevent asks first how much there is, and waits for more where it has no memory for a line. */
static void on_readable(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_http_conn *c = arg;
    struct bufferevent *bev = c->bev;
    struct pyle_base *pb = c->s->pb;
    struct evbuffer *input;
    ssize_t n = 0;

    if (!bev)
        return;
    ++c->refs;
    pyle_went_short();
    if (!(what & EV_TIMEOUT) && !bev->wm_read.high && (pb->scratch || (pb->scratch = malloc(SCRATCH))))
        n = read(fd, pb->scratch, SCRATCH);
    if (n > 0) {
        input = bufferevent_get_input(bev);
        evbuffer_unfreeze(input, 0);
        if (evbuffer_add(input, pb->scratch, (size_t)n) < 0)
            drop_conn(c, EVREQ_HTTP_BUFFER_ERROR);
        else
            evbuffer_freeze(input, 0);
        if (c->bev)
            bufferevent_trigger(bev, EV_READ, 0);
    } else {
        libevent_reads(fd, what, bev);
    }
    if (c->bev && !c->r && pyle_went_short())
        drop_conn(c, EVREQ_HTTP_BUFFER_ERROR);
    put_conn(c);
}

static void on_writable(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_http_conn *c = arg;
    struct bufferevent *bev = c->bev;
    int entered;

    if (!bev)
        return;
    ++c->refs;
    c->complete = c->r || evbuffer_get_length(bufferevent_get_output(bev)) == 0;
    if (c->r && (what & EV_TIMEOUT))
        c->r->error = EVREQ_HTTP_TIMEOUT;
    entered = enter_store(c->s->pb);
    libevent_writes(fd, what, bev);
    leave_store(c->s->pb, entered);
    /* evhttp has answered by itself, and not all such answers end the connection. */
    if (c->bev && !c->complete && evbuffer_get_length(bufferevent_get_output(bev)) == 0 &&
        (pyle_scan_stopped(&c->scan) || (c->bad && evbuffer_get_length(bufferevent_get_input(bev)) == 0)))
        drop_conn(c, EVREQ_HTTP_EOF);
    /* It was made active without being added, so what is left waits for nothing yet. */
    if (c->bev && (bev->enabled & EV_WRITE) && evbuffer_get_length(bufferevent_get_output(bev)) > 0) {
        if (!IS_ARMED(&bev->ev_write))
            bufferevent_enable(bev, EV_WRITE);
        if (c->r)
            watch(c);
    }
    put_conn(c);
}

/* For each request evhttp stops reading and starts again. The kernel need not know: another event
 * for the same keeps it there, until somebody stops in earnest. */
static void on_hold(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_http_conn *c = arg;

    (void)fd;
    (void)what;
    if (!IS_ARMED(&c->bev->ev_read))
        event_del(&c->hold);
}

/* evhttp is done with a request. */
static void over(struct pyle_http_conn *c, int what, int left)
{
    struct pyle_request *r = c->r;

    if (!r)
        return;
    c->r = NULL;
    r->conn = NULL;
    tell(r, what);
    pyle_request_over(r, left);
    pyle_request_put(r);
}

static void scan(struct pyle_http_conn *c, struct evbuffer *input);

static void on_complete(struct evhttp_request *req, void *arg)
{
    struct pyle_http_conn *c = arg;

    (void)req;
    pyle_went_short();
    unwatch(c);
    if (c->plain && !IS_ARMED(&c->hold))
        event_add(&c->hold, NULL);
    if (pyle_scan_stopped(&c->scan)) { /* it did not come to that */
        c->scan.seen = 0;
        pyle_scan_start(&c->scan);
        scan(c, bufferevent_get_input(c->bev));
    }
    over(c, PYLE_HTTP_COMPLETE, 0);
}

static void on_closed(struct evhttp_connection *evcon, void *arg)
{
    struct pyle_http_conn *c = arg;

    (void)evcon;
    if (c->plain) { /* it is freed by that */
        c->bev->ev_read.ev_evcallback.evcb_arg = c->bev->ev_write.ev_evcallback.evcb_arg = c->bev;
        event_del(&c->hold);
        event_debug_unassign(&c->hold);
    }
    evbuffer_remove_cb_entry(bufferevent_get_input(c->bev), c->input_cb);
    event_del(&c->bev->ev_read); /* evhttp closes the descriptor before libevent comes to that */
    event_del(&c->bev->ev_write);
    c->bev = NULL;
    c->evcon = NULL;
    unwatch(c);
    event_debug_unassign(&c->timer);
    if (c->fd < c->s->n_fds && c->s->by_fd[c->fd] == c)
        c->s->by_fd[c->fd] = NULL;
    *c->to_this = c->next;
    if (c->next)
        c->next->to_this = c->to_this;
    if (c->tls) {
        if (c->shaken && !c->left)
            pyle_get_tls_hooks()->notify(c->tls);
        pyle_get_tls_hooks()->leave(c->tls);
        ++c->refs;
        c->next = c->s->past;
        c->s->past = c;
        event_active(&c->s->adopt_event, EV_TIMEOUT, 1);
    }
    /* evhttp has let go of a request that is not answered, and frees any other. */
    over(c, c->taken ? PYLE_HTTP_COMPLETE : PYLE_HTTP_FAILED, c->r && c->r->req->evcon == NULL);
    put_conn(c);
}

static void hook(struct event *ev, event_callback_fn ours, event_callback_fn *theirs,
                 struct pyle_http_conn *c)
{
    *theirs = event_get_callback(ev);
    ev->ev_evcallback.evcb_cb_union.evcb_callback = ours;
    ev->ev_evcallback.evcb_arg = c;
}

static int note_fd(struct pyle_http *s, struct pyle_http_conn *c)
{
    if (c->fd >= s->n_fds) {
        int n = c->fd + c->fd / 2 + 64;
        struct pyle_http_conn **more = realloc(s->by_fd, (size_t)n * sizeof(*more));

        if (!more)
            return -1;
        memset(more + s->n_fds, 0, (size_t)(n - s->n_fds) * sizeof(*more));
        s->by_fd = more;
        s->n_fds = n;
    }
    s->by_fd[c->fd] = c;
    return 0;
}

/* evhttp has another one set, or if it fails, none or this one: then it has forgotten the bufferevent. */
static void on_nothing(struct bufferevent *bev, short what, void *arg)
{
    (void)bev;
    (void)what;
    (void)arg;
}

static void adopt(struct pyle_http *s)
{
    struct pyle_http_conn *c;

    while ((c = s->fresh) != NULL) {
        struct bufferevent *bev = c->bev;
        bufferevent_event_cb event;
        void *arg;
        int on = 1;

        s->fresh = c->next;
        bufferevent_getcb(bev, NULL, NULL, &event, &arg);
        if (!event || event == on_nothing) {
            if (event)
                bufferevent_free(bev);
            c->bev = NULL;
            evbuffer_remove_cb_entry(bufferevent_get_input(bev), c->input_cb);
            if (c->tls) {
                pyle_get_tls_hooks()->leave(c->tls);
                ++c->refs;
                c->next = s->past;
                s->past = c;
            }
            bufferevent_decref(bev);
            put_conn(c);
            continue;
        }
        bufferevent_decref(bev); /* evhttp has it */
        c->evcon = arg;
        c->fd = bufferevent_getfd(bev);
        c->most = s->max_headers + s->max_body > s->max_body ? s->max_headers + s->max_body : SIZE_MAX;
        c->most = c->most + 4 * MOST_AHEAD > c->most ? c->most + 4 * MOST_AHEAD : SIZE_MAX;
        c->next = s->conns;
        c->to_this = &s->conns;
        if (c->next)
            c->next->to_this = &c->next;
        s->conns = c;
        evtimer_assign(&c->timer, s->pb->base, on_timer, c);
        evhttp_connection_set_closecb(c->evcon, on_closed, c);
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)); /* fails where there is no TCP */
        if (c->plain) {
            hook(&bev->ev_read, on_readable, &libevent_reads, c);
            hook(&bev->ev_write, on_writable, &libevent_writes, c);
            event_assign(&c->hold, s->pb->base, c->fd, EV_READ | EV_PERSIST, on_hold, c);
            pyle_make_internal(&c->hold);
            event_add(&c->hold, NULL);
        }
        if (note_fd(s, c) < 0 || c->refused)
            evhttp_connection_free(c->evcon);
    }
}

static void shut(struct pyle_http *s);

/* Python lets go of their BufferEvents. */
static void bury(struct pyle_http *s)
{
    struct pyle_http_conn *c;

    while ((c = s->past) != NULL) {
        s->past = c->next;
        pyle_get_tls_hooks()->release(c->tls);
        if (!pyle_exiting && !s->pb->closed) {
            pyle_before();
            if (pyle_py_http_gone(s->pb->slot, c->token) == PYLE_RETRY)
                pyle_raise(s->pb);
            pyle_after(s->pb);
        }
        put_conn(c);
    }
}

static void on_adopt(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_http *s = arg;
    struct pyle_http_conn *c, *next;

    (void)fd;
    (void)what;
    pyle_https_settle(s->pb);
    hold_http(s);
    adopt(s);
    if (s->refuses) {
        s->refuses = 0;
        for (c = s->conns; c; c = next) {
            next = c->next;
            if (c->refused)
                drop_conn(c, EVREQ_HTTP_EOF);
        }
    }
    bury(s);
    if (s->doomed)
        shut(s);
    pyle_http_put(s);
}

/* ---- what comes in ---- */

/* evhttp is to meet a line there that it refuses, and nothing behind it. */
static void spoil(struct pyle_http_conn *c, struct evbuffer *input)
{
    struct evbuffer *good = evbuffer_new();
    size_t n = c->scan.line;

    c->bad = 1;
    if (good && evbuffer_remove_buffer(input, good, n) < 0)
        evbuffer_drain(good, evbuffer_get_length(good));
    evbuffer_drain(input, evbuffer_get_length(input));
    if (good) {
        evbuffer_prepend_buffer(input, good);
        evbuffer_free(good);
    }
    evbuffer_unfreeze(input, 0);
    evbuffer_add(input, "!\r\n", 3);
    if (c->plain)
        evbuffer_freeze(input, 0);
    if (c->plain)
        set_most(c, MOST_AHEAD);
    c->bad = 2;
}

static void scan(struct pyle_http_conn *c, struct evbuffer *input)
{
    if (pyle_scan(&c->scan, input) < 0)
        spoil(c, input);
}

static void on_input(struct evbuffer *input, const struct evbuffer_cb_info *info, void *arg)
{
    struct pyle_http_conn *c = arg;

    if (info->n_added && c->tls && !c->shaken) {
        c->shaken = 1;
        pyle_get_tls_hooks()->event(c->tls, c->bev, BEV_EVENT_CONNECTED, 0);
    }
    if (info->n_added) {
        bound_input(c);
        if (info->orig_size + info->n_added > c->most) /* behind a request that evhttp has refused */
            refuse(c);
    }
    if (c->bad) { /* and evhttp should have ended it */
        if (c->bad > 1 && info->n_added && info->orig_size == 0 && !c->r &&
            evbuffer_get_length(bufferevent_get_output(c->bev)) == 0)
            refuse(c);
        return;
    }
    pyle_scan_drained(&c->scan, info->n_deleted);
    if (info->n_added)
        scan(c, input);
}

static __thread struct pyle_http_conn *giving; /* it wants a bufferevent of Python's */

int pyle_http_give(struct pyle_bev *pv)
{
    struct bufferevent *bev;

    if (!giving || giving->bev || !(bev = pyle_bev_give(pv, &giving->tls)))
        return PYLE_FAIL;
    giving->bev = bev;
    giving->plain = !giving->tls;
    giving->token = pv->token;
    return giving->tls != NULL;
}

/* A connection without one is closed: it might be in clear. */
static void ask_python(struct pyle_http *s, struct pyle_http_conn *c)
{
    struct pyle_base *pb = s->pb;
    struct pyle_http_conn *outer = giving;
    int answer;

    giving = c;
    ++s->in_bevcb;
    pyle_before();
    answer = pyle_exiting || pb->closed ? PYLE_DONE : pyle_py_http_bev(pb->slot, s->token);
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
    --s->in_bevcb;
    giving = outer;
    c->refused = !c->bev;
}

/* One that takes no descriptor: evhttp gives the connection up. */
static struct bufferevent *unusable(struct event_base *base)
{
    struct bufferevent *pair[2];

    if (bufferevent_pair_new(base, BEV_OPT_CLOSE_ON_FREE, pair) < 0) /* or evhttp closes it twice */
        return NULL;
    bufferevent_free(pair[1]);
    return pair[0];
}

static struct bufferevent *on_bevcb(struct event_base *base, void *arg)
{
    struct pyle_http *s = arg;
    struct pyle_http_conn *c = pyle_fd_fits(s->pb->fd_limit) ? pyle_make(PYLE_HTTP_CONNS, sizeof(*c)) : NULL;
    struct bufferevent *bev;

    if (!c)
        return unusable(base);
    if (s->bevcb)
        ask_python(s, c);
    if (!c->bev)
        c->plain = 1;
    bev = c->bev ? c->bev : bufferevent_socket_new(base, -1, 0);
    if (!bev) {
        pyle_unmake(PYLE_HTTP_CONNS, c);
        return unusable(base);
    }
    c->input_cb = evbuffer_add_cb(bufferevent_get_input(bev), on_input, c);
    hold_http(s);
    c->s = s;
    c->refs = 1;
    if (!c->input_cb) {
        if (c->tls)
            pyle_get_tls_hooks()->leave(c->tls);
        bufferevent_free(bev);
        c->bev = NULL;
        if (c->tls) {
            c->next = s->past;
            s->past = c;
            event_active(&s->adopt_event, EV_TIMEOUT, 1);
        } else {
            put_conn(c);
        }
        return unusable(base);
    }
    pyle_scan_start(&c->scan);
    c->bev = bev;
    bufferevent_setcb(bev, NULL, NULL, on_nothing, NULL);
    bufferevent_incref(bev); /* until we know what evhttp makes of it */
    c->next = s->fresh;
    s->fresh = c;
    event_active(&s->adopt_event, EV_TIMEOUT, 1);
    if (pyle_here == s->pb)
        enter_store(s->pb);
    return bev;
}

/* ---- handlers ---- */

static void deliver(struct pyle_request *r)
{
    struct pyle_base *pb = r->pb;
    struct pyle_request *outer = delivering;
    struct pyle_http_conn *c = r->conn;
    int answer;

    if (pyle_exiting || pb->closed) {
        event_base_loopbreak(pb->base);
        return;
    }
    ++c->refs;
    pyle_request_hold(r);
    r->delivering = 1;
    r->undelivered = 0;
    delivering = r;
    pyle_before();
    answer = pyle_py_http_request(pb->slot, r->route);
    delivering = outer;
    r->delivering = 0;
    if (answer == PYLE_RETRY && r->conn && !r->answered) {
        r->undelivered = 1;
        queue(r);
    } else if (unanswered(r) && !pb->closed) {
        if (answer != PYLE_DONE || !r->python) {
            give_up(r, HTTP_INTERNAL, "Internal Server Error", EVREQ_HTTP_REQUEST_CANCEL);
            if (answer == PYLE_ERROR)
                flush(c);
        } else {
            watch(c);
        }
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
    pyle_request_put(r);
    put_conn(c);
}

/* Any thread: an answer that nobody can give any more is given in the loop. */
static void on_dropped(struct pyle_request *r)
{
    if (__atomic_sub_fetch(&r->python, 1, __ATOMIC_ACQ_REL) == 0 && !r->delivering && r->answered < 2 && r->conn && !r->pb->closed && r->pb->fork_gen == pyle_fork_gen)
        queue(r);
}

static struct pyle_http_conn *conn_of(struct pyle_http *s, struct evhttp_connection *evcon)
{
    struct evhttp *root = evhttp_connection_get_server(evcon);
    int fd = bufferevent_getfd(evhttp_connection_get_bufferevent(evcon));

    while (s && s->http != root)
        s = s->parent;
    return s && fd >= 0 && fd < s->n_fds ? s->by_fd[fd] : NULL;
}

static void on_request(struct evhttp_request *req, void *arg)
{
    struct pyle_route *route = arg;
    struct pyle_http_conn *c = conn_of(route->s, req->evcon);
    struct pyle_request *r = c && !pyle_went_short() ? pyle_request_make(NULL, route->s->pb, 0) : NULL;

    if (!r) {
        evhttp_connection_free(req->evcon);
        return;
    }
    hold_http(c->s);
    r->server = c->s;
    r->req = req;
    r->conn = c;
    r->plain = c->plain;
    r->route = route->token;
    r->dropped = on_dropped;
    r->error = EVREQ_HTTP_EOF;
    c->r = r;
    req->flags |= EVHTTP_REQ_DEFER_FREE;
    evhttp_request_set_on_complete_cb(req, on_complete, c);
    deliver(r);
}

struct pyle_request *pyle_request_take(struct pyle_owned *owned, long long token)
{
    struct pyle_request *r = delivering;

    owned->what = PYLE_REQUESTS;
    owned->it = r;
    __atomic_add_fetch(&r->python, 1, __ATOMIC_ACQ_REL);
    r->token = token;
    pyle_request_hold(r);
    return r;
}

/* One at a time: an exception ends the loop, and the others wait for the next one. */
static void on_soon(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_http *s = arg;
    struct pyle_base *pb = s->pb;
    struct pyle_request *r;
    int bit = 0, answer;

    (void)fd;
    (void)what;
    hold_http(s);
    r = take_from_queue(s);
    if (!r || pyle_exiting || pb->closed) {
        if (r)
            pyle_request_put(r);
        pyle_http_put(s);
        return;
    }
    if (r->conn && r->undelivered) {
        deliver(r);
    } else if (unanswered(r) && !r->python && !r->told) {
        give_up(r, HTTP_INTERNAL, "Internal Server Error", EVREQ_HTTP_REQUEST_CANCEL);
    } else if (r->pending) {
        bit = r->pending & PYLE_HTTP_CHUNK ? PYLE_HTTP_CHUNK
              : r->pending & PYLE_HTTP_FAILED ? PYLE_HTTP_FAILED : PYLE_HTTP_COMPLETE;
        pyle_before();
        answer = pyle_py_http_told(pb->slot, r->token, bit, r->error, r->chunks_written);
        if (answer != PYLE_RETRY)
            r->pending &= ~bit;
        if (answer == PYLE_RETRY || answer == PYLE_ERROR)
            pyle_raise(pb);
        pyle_after(pb);
        if (bit == PYLE_HTTP_CHUNK && answer != PYLE_DONE && answer != PYLE_RETRY && r->conn && r->answered < 2)
            drop_conn(r->conn, EVREQ_HTTP_REQUEST_CANCEL); /* who was to make the next one has failed */
        if (bit != PYLE_HTTP_CHUNK && answer != PYLE_RETRY) {
            r->told = r->pending = 0;
            pyle_request_over(r, 0);
        }
        if (r->pending)
            queue(r);
    }
    pyle_request_put(r);
    pthread_mutex_lock(&pb->lock);
    if (s->queue && !pb->closed)
        event_active(&s->soon_event, EV_TIMEOUT, 1);
    pthread_mutex_unlock(&pb->lock);
    pyle_http_put(s);
}

/* ---- replies ---- */

static int enter_reply(struct pyle_request *r, int begun)
{
    int rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    if (!r->conn || r->answered == 2)
        rc = PYLE_CLOSED;
    else if (r->answered != begun)
        rc = begun ? PYLE_NONE : PYLE_INUSE;
    else if (r->bufs[0] && pyle_buf_viewed(r->bufs[0]))
        rc = PYLE_VIEWED;
    else if (r->bufs[0] && r->bufs[0]->depth > 0)
        rc = PYLE_INUSE; /* one of its callbacks */
    if (rc < 0)
        return pyle_request_leave(r, rc);
    if (r->bufs[0])
        pyle_buf_uncall(r->bufs[0]); /* Python may not be called from the middle of evhttp */
    return 0;
}

int pyle_http_reply(struct pyle_request *r, int code, const char *reason, size_t n_reason,
                    const void *data, size_t n)
{
    struct evbuffer *body;
    int rc = enter_reply(r, 0);

    if (rc < 0)
        return rc;
    body = r->req->output_buffer;
    if (code < 200 || code > 999 || !is_value(reason, n_reason))
        rc = PYLE_RANGE;
    else if (is_frozen(body) || (n > 0 && evbuffer_commit_space(body, NULL, 0) < 0))
        rc = PYLE_FAIL;
    else if (n > 0 && evbuffer_add(body, data, n) < 0)
        rc = PYLE_NOMEM;
    else
        rc = send_all(r, code, reason);
    return pyle_request_leave(r, rc);
}

int pyle_http_error(struct pyle_request *r, int code, const char *reason, size_t n_reason)
{
    int rc = enter_reply(r, 0);

    if (rc < 0)
        return rc;
    if (code < 200 || code > 999 || !is_value(reason, n_reason))
        rc = PYLE_RANGE;
    else
        rc = send_error(r, code, reason);
    return pyle_request_leave(r, rc);
}

static void on_chunk(struct evhttp_connection *evcon, void *arg)
{
    struct pyle_http_conn *c = arg;
    struct pyle_request *r = c->r;

    (void)evcon;
    if (!r)
        return;
    restart_timer(c);
    r->waiting = 0;
    if (r->chunks > r->chunks_written) {
        r->chunks_written = r->chunks;
        tell(r, PYLE_HTTP_CHUNK);
    }
}

/* The body of data; takes what is in it. */
static int put_chunk(struct pyle_request *r, struct evbuffer *data, int callback)
{
    struct pyle_http_conn *c = r->conn;
    size_t n = evbuffer_get_length(data);

    if (r->left >= 0 && n > (size_t)r->left)
        return PYLE_RANGE;
    r->chunks += callback != 0;
    if (n == 0 || !needs_body(r->req->response_code, r->req->type)) {
        if (callback && !r->waiting) /* there is nothing to wait for */
            on_chunk(c->evcon, c);
        return 0;
    }
    if (r->left >= 0)
        r->left -= (long long)n;
    r->waiting = 1;
    write_soon(c);
    pyle_went_short();
    evhttp_send_reply_chunk_with_cb(r->req, data, on_chunk, c);
    restart_timer(c);
    bound_input(c);
    return sent(c);
}

int pyle_http_start(struct pyle_request *r, int code, const char *reason, size_t n_reason)
{
    struct evhttp_request *req;
    struct evbuffer *first = NULL;
    struct evkeyval *h;
    int rc = enter_reply(r, 0);

    if (rc < 0)
        return rc;
    req = r->req;
    if ((code < 200 && code != 101) || code > 999 || !is_value(reason, n_reason))
        return pyle_request_leave(r, PYLE_RANGE);
    rc = is_frozen(req->output_buffer) ? PYLE_FAIL : promised(req, &r->left);
    if (rc < 0)
        return pyle_request_leave(r, rc);
    if (evbuffer_get_length(req->output_buffer) > 0) { /* evhttp would send that outside of any chunk */
        first = evbuffer_new();
        if (!first || evbuffer_add_buffer(first, req->output_buffer) < 0) {
            if (first)
                evbuffer_free(first);
            return pyle_request_leave(r, PYLE_NOMEM);
        }
    }
    /* Of a body that nobody knows the length of yet, evhttp would tell such a client that it is 0. */
    if (req->major == 1 && req->minor == 0 && r->left < 0 && (h = find(req->input_headers, "Connection")) &&
        strlen(h->value) > 5)
        strcpy(h->value, "close");
    write_soon(r->conn);
    r->answered = 1;
    pyle_went_short();
    evhttp_send_reply_start(req, code, reason);
    rc = sent(r->conn);
    if (first) {
        if (rc == 0)
            rc = put_chunk(r, first, 0);
        evbuffer_free(first);
    }
    return pyle_request_leave(r, rc);
}

int pyle_http_chunk(struct pyle_request *r, const void *data, size_t n, int callback)
{
    struct evbuffer *chunk;
    int rc = enter_reply(r, 1);

    if (rc < 0)
        return rc;
    chunk = evbuffer_new();
    if (!chunk || (n > 0 && evbuffer_add(chunk, data, n) < 0))
        rc = PYLE_NOMEM;
    else
        rc = put_chunk(r, chunk, callback);
    if (chunk)
        evbuffer_free(chunk);
    return pyle_request_leave(r, rc);
}

int pyle_http_chunk_buffer(struct pyle_request *r, struct pyle_buf *b, int callback)
{
    struct evbuffer *chunk;
    struct pyle_call call;
    int rc = enter_reply(r, 1);

    if (rc < 0)
        return rc;
    rc = pyle_buf_enter(&call, b, 1);
    if (rc < 0)
        return pyle_request_leave(r, rc);
    chunk = evbuffer_new();
    if (b->has_file && !r->plain) {
        rc = PYLE_FILE;
    } else if (r->left >= 0 && evbuffer_get_length(b->buf) > (size_t)r->left) {
        rc = PYLE_RANGE;
    } else if (!chunk) {
        rc = PYLE_NOMEM;
    } else {
        b->moving = 1;
        if (evbuffer_add_buffer(chunk, b->buf) < 0)
            rc = PYLE_FAIL;
        b->moving = 0;
        if (rc == 0) /* its callbacks may have done anything */
            rc = r->conn && r->answered == 1 ? put_chunk(r, chunk, callback) : PYLE_CLOSED;
    }
    if (chunk)
        evbuffer_free(chunk);
    rc = (int)pyle_buf_leave(&call, rc);
    return pyle_request_leave(r, rc);
}

int pyle_http_end(struct pyle_request *r)
{
    struct pyle_http_conn *c = r->conn;
    int entered, rc = enter_reply(r, 1);

    if (rc < 0)
        return rc;
    ++c->refs;
    /* Less than was promised: the client finds out by the end of the connection. */
    if (r->left > 0 && needs_body(r->req->response_code, r->req->type) &&
        evhttp_add_header(r->req->output_headers, "Connection", "close") < 0) {
        rc = PYLE_NOMEM;
    } else {
        r->answered = 2;
        write_soon(c);
        pyle_went_short();
        entered = enter_store(r->pb);
        evhttp_send_reply_end(r->req);
        leave_store(r->pb, entered);
        rc = sent(c);
    }
    put_conn(c);
    return pyle_request_leave(r, rc);
}

int pyle_http_cancel(struct pyle_request *r)
{
    int rc = pyle_request_enter(r);

    if (rc < 0)
        return rc;
    if (r->conn)
        drop_conn(r->conn, EVREQ_HTTP_REQUEST_CANCEL);
    return pyle_request_leave(r, 0);
}

/* The connection becomes pv's, which has no descriptor yet: evhttp is left with another one to close. */
int pyle_http_take_over(struct pyle_request *r, struct pyle_bev *pv)
{
    struct pyle_http_conn *c = r->conn;
    struct bufferevent *bev, *to;
    struct evbuffer *from;
    int fd, null, rc = c && !c->plain ? PYLE_UNABLE : enter_reply(r, 1);

    if (rc < 0)
        return rc;
    to = pyle_bev_ptr(pv);
    if (!to)
        return pyle_request_leave(r, PYLE_CLOSED);
    bev = c->bev;
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    fd = null < 0 ? -1 : fcntl(c->fd, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        rc = pyle_failed();
        if (null >= 0)
            close(null);
        return pyle_request_leave(r, rc);
    }
    pyle_went_short();
    from = bufferevent_get_output(bev);
    evbuffer_unfreeze(from, 1);
    rc = evbuffer_add_buffer(bufferevent_get_output(to), from);
    evbuffer_freeze(from, 1);
    evbuffer_unfreeze(bufferevent_get_input(to), 0);
    if (rc == 0)
        rc = evbuffer_add_buffer(bufferevent_get_input(to), bufferevent_get_input(bev));
    evbuffer_freeze(bufferevent_get_input(to), 0);
    rc = rc < 0 || pyle_went_short() ? PYLE_NOMEM : pyle_bev_setfd(pv, fd, 1);
    if (rc == 0) {
        bufferevent_disable(bev, EV_READ | EV_WRITE);
        event_del(&c->hold);
        dup2(null, c->fd);
        r->answered = 2;
        c->taken = 1;
    } else {
        close(fd);
    }
    close(null);
    drop_conn(c, EVREQ_HTTP_BUFFER_ERROR);
    return pyle_request_leave(r, rc);
}

/* There are callbacks for it. 1: too late, evhttp has it no more. */
int pyle_http_tell(struct pyle_request *r)
{
    int rc = check(r);

    if (rc < 0)
        return rc;
    if (!r->conn)
        return 1;
    r->told = 1;
    return 0;
}

/* Of the BufferEvent with its TLS; 0: it has none. */
long long pyle_http_bev(struct pyle_request *r)
{
    int rc = check(r);

    return rc < 0 ? rc : r->conn ? r->conn->token : 0;
}

void pyle_http_untell(struct pyle_request *r)
{
    r->told = r->pending = 0;
}

/* How many requests have come whose replies are not written. */
int pyle_http_unanswered(struct pyle_http *s)
{
    struct pyle_http_conn *c;
    int n = 0;

    CHECK(s);
    for (c = s->conns; c; c = c->next)
        n += c->r != NULL;
    return n;
}

/* ---- the server's life ---- */

struct pyle_http *pyle_http_new(struct pyle_owned *owned, struct pyle_base *pb, long long token)
{
    struct pyle_http *s = pyle_own(owned, PYLE_HTTPS, sizeof(*s));

    if (!s)
        return NULL;
    s->refs = 1;
    s->pb = pb;
    s->token = token;
    s->timeout = -1;
    pyle_hold_base(pb);
    return s;
}

void pyle_http_unref(struct pyle_http *s)
{
    pyle_http_put(s);
}

int pyle_http_open(struct pyle_http *s)
{
    struct pyle_base *pb = s->pb;
    int rc = pyle_enter_base(pb);

    if (rc < 0)
        return rc;
    if (pyle_elsewhere(pb)) {
        rc = PYLE_THREAD;
    } else if (!(s->http = evhttp_new(pb->base))) {
        rc = PYLE_NOMEM;
    } else {
        s->fork_gen = pyle_fork_gen;
        s->queue_end = &s->queue;
        evhttp_set_bevcb(s->http, on_bevcb, s);
        event_assign(&s->adopt_event, pb->base, -1, 0, on_adopt, s);
        pyle_make_internal(&s->adopt_event);
        event_assign(&s->soon_event, pb->base, -1, 0, on_soon, s);
        pyle_note_priority(pb, event_get_priority(&s->soon_event));
    }
    pyle_leave_base(pb);
    return rc;
}

/* In a child the connections are the parent's, and evhttp would shut them down as it frees them. */
static void disown(struct pyle_http *s)
{
    struct pyle_http_conn *c;
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);

    for (c = s->conns; null >= 0 && c; c = c->next) {
        bufferevent_disable(c->bev, EV_READ | EV_WRITE);
        if (c->plain)
            event_del(&c->hold);
        dup2(null, c->fd);
        c->left = 1;
    }
    if (null >= 0)
        close(null);
    s->fork_gen = pyle_fork_gen;
}

static void leave_parent(struct pyle_http *s)
{
    struct pyle_http **at;

    if (!s->parent)
        return;
    for (at = &s->parent->children; *at != s; at = &(*at)->next_child)
        ;
    *at = s->next_child;
    s->parent = s->next_child = NULL;
}

static void forget_routes(struct pyle_http *s)
{
    struct pyle_route *route;

    while ((route = s->routes) != NULL) {
        s->routes = route->next;
        pyle_unmake(PYLE_ROUTES, route);
    }
    s->gencb = NULL;
}

static void forget_bound(struct pyle_bound *b)
{
    struct pyle_bound **at;

    for (at = &b->s->bounds; *at != b; at = &(*at)->next)
        ;
    *at = b->next;
    b->bound = NULL;
    event_del(&b->retry_event);
    event_debug_unassign(&b->retry_event);
    pthread_mutex_lock(&request_lock);
    *b->to_this = b->next_of_all;
    if (b->next_of_all)
        b->next_of_all->to_this = b->to_this;
    pthread_mutex_unlock(&request_lock);
}

static void close_bound(struct pyle_bound *b)
{
    struct evhttp_bound_socket *bound = b->bound;
    int fd = evhttp_bound_socket_get_fd(bound);

    forget_bound(b);
    evhttp_del_accept_socket(b->s->http, bound);
    close(fd);
    pyle_bound_unref(b);
}

static void shut(struct pyle_http *s)
{
    struct evhttp *http = s->http;
    struct pyle_http *child;
    struct pyle_http_conn *c;

    s->doomed = 0;
    if (!http)
        return;
    adopt(s);
    if (s->fork_gen != pyle_fork_gen)
        disown(s);
    for (c = s->conns; c; c = c->next)
        if (c->r)
            c->r->error = EVREQ_HTTP_REQUEST_CANCEL;
    while (s->bounds)
        close_bound(s->bounds);
    if (s->parent) {
        evhttp_remove_virtual_host(s->parent->http, http);
        leave_parent(s);
    }
    while ((child = s->children) != NULL) { /* go on by themselves, with their connections if they have any */
        evhttp_remove_virtual_host(http, child->http);
        leave_parent(child);
    }
    evhttp_free(http);
    s->http = NULL;
    forget_routes(s);
    bury(s);
    event_del(&s->adopt_event);
    event_debug_unassign(&s->adopt_event);
}

int pyle_http_close(struct pyle_http *s, int by_base)
{
    struct pyle_base *pb = s->pb;
    struct pyle_bound *b;

    if (pb->lost)
        return 0;
    if (!by_base) {
        int rc = check_http(s);
        if (rc < 0)
            return rc == PYLE_CLOSED ? 0 : rc;
    }
    if (s->in_bevcb) { /* evhttp is in the middle of taking a connection */
        if (!s->doomed)
            for (b = s->bounds; b; b = b->next)
                evconnlistener_disable(evhttp_bound_socket_get_listener(b->bound));
        s->doomed = 1;
        event_active(&s->adopt_event, EV_TIMEOUT, 1);
        if (by_base) { /* the loop ends before that */
            hold_http(s);
            s->next_doomed = pb->doomed_https;
            pb->doomed_https = s;
        }
    } else {
        shut(s);
    }
    if (by_base)
        drop_queue(s);
    return 0;
}

/* The base goes. */
void pyle_https_sweep(struct pyle_base *pb)
{
    struct pyle_http *s;

    while ((s = pb->doomed_https) != NULL) {
        pb->doomed_https = s->next_doomed;
        shut(s);
        pyle_http_put(s);
    }
    while ((s = pb->queued_https) != NULL) /* closed before */
        drop_queue(s);
}

struct evhttp *pyle_http_ptr(struct pyle_http *s)
{
    return s->pb->closed || s->doomed ? NULL : s->http;
}

/* reinit() in a child: it goes on listening, and the connections stay the parent's. */
int pyle_http_after_fork(struct pyle_http *s)
{
    struct pyle_http_conn *c;

    CHECK(s);
    adopt(s);
    disown(s);
    while ((c = s->conns) != NULL)
        drop_conn(c, EVREQ_HTTP_EOF);
    return 0;
}

/* ---- what it has ---- */

int pyle_http_set_cb(struct pyle_http *s, const char *path, long long token)
{
    struct pyle_route *route;
    int rc;

    CHECK(s);
    route = pyle_make(PYLE_ROUTES, sizeof(*route));
    if (!route)
        return PYLE_NOMEM;
    route->s = s;
    route->token = token;
    rc = evhttp_set_cb(s->http, path, on_request, route);
    if (rc < 0) {
        pyle_unmake(PYLE_ROUTES, route);
        return rc == -1 ? PYLE_INUSE : PYLE_NOMEM;
    }
    route->next = s->routes;
    s->routes = route;
    return 0;
}

static void forget_route(struct pyle_http *s, long long token)
{
    struct pyle_route *route, **at;

    for (at = &s->routes; *at && (*at)->token != token; at = &(*at)->next)
        ;
    if ((route = *at) != NULL) {
        *at = route->next;
        pyle_unmake(PYLE_ROUTES, route);
    }
}

int pyle_http_del_cb(struct pyle_http *s, const char *path, long long token)
{
    CHECK(s);
    if (evhttp_del_cb(s->http, path) < 0)
        return PYLE_NONE;
    forget_route(s, token);
    return 0;
}

int pyle_http_set_gencb(struct pyle_http *s, long long token) /* 0: none */
{
    struct pyle_route *route = NULL, *old = s->gencb;

    CHECK(s);
    if (token) {
        route = pyle_make(PYLE_ROUTES, sizeof(*route));
        if (!route)
            return PYLE_NOMEM;
        route->s = s;
        route->token = token;
        route->next = s->routes;
        s->routes = route;
    }
    evhttp_set_gencb(s->http, route ? on_request : NULL, route);
    s->gencb = route;
    if (old)
        forget_route(s, old->token);
    return 0;
}

int pyle_http_add_vhost(struct pyle_http *s, const char *pattern, struct pyle_http *vhost)
{
    struct pyle_http *up;

    CHECK(s);
    CHECK(vhost);
    if (vhost->pb != s->pb || vhost->parent || vhost->bounds)
        return PYLE_INUSE;
    for (up = s; up; up = up->parent)
        if (up == vhost)
            return PYLE_INUSE;
    if (evhttp_add_virtual_host(s->http, pattern, vhost->http) < 0)
        return PYLE_NOMEM;
    vhost->parent = s;
    vhost->next_child = s->children;
    s->children = vhost;
    return 0;
}

int pyle_http_remove_vhost(struct pyle_http *s, struct pyle_http *vhost)
{
    CHECK(s);
    if (vhost->parent != s)
        return PYLE_NONE;
    evhttp_remove_virtual_host(s->http, vhost->http);
    leave_parent(vhost);
    return 0;
}

int pyle_http_alias(struct pyle_http *s, const char *alias, int add)
{
    CHECK(s);
    if (add)
        return evhttp_add_server_alias(s->http, alias) < 0 ? PYLE_NOMEM : 0;
    return evhttp_remove_server_alias(s->http, alias) < 0 ? PYLE_NONE : 0;
}

int pyle_http_set(struct pyle_http *s, int what, long long value)
{
    CHECK(s);
    switch (what) {
    case PYLE_HTTP_METHODS: evhttp_set_allowed_methods(s->http, (ev_uint16_t)value); break;
    case PYLE_HTTP_MAX_HEADERS:
        s->max_headers = (size_t)value;
        evhttp_set_max_headers_size(s->http, (ev_ssize_t)value);
        break;
    case PYLE_HTTP_MAX_BODY:
        s->max_body = (size_t)value;
        evhttp_set_max_body_size(s->http, (ev_ssize_t)value);
        break;
    case PYLE_HTTP_FLAGS: evhttp_set_flags(s->http, (int)value); break;
    case PYLE_HTTP_BEVCB: s->bevcb = value != 0; break;
    default: break;
    }
    return 0;
}

int pyle_http_set_timeout(struct pyle_http *s, double seconds)
{
    struct timeval tv;

    CHECK(s);
    s->timeout = seconds;
    evhttp_set_timeout_tv(s->http, pyle_timeval(seconds, &tv) ? &tv : NULL);
    return 0;
}

int pyle_http_set_content_type(struct pyle_http *s, const char *type)
{
    char *copy = NULL;

    CHECK(s);
    if (type && !(copy = strdup(type)))
        return PYLE_NOMEM;
    evhttp_set_default_content_type(s->http, copy);
    free(s->content_type);
    s->content_type = copy;
    return 0;
}

/* ---- where it listens ---- */

static const struct timeval pause_time = {0, 100000};

static void on_retry(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_bound *b = arg;

    (void)fd;
    (void)what;
    if (b->bound && !b->off && evconnlistener_enable(evhttp_bound_socket_get_listener(b->bound)) < 0)
        event_add(&b->retry_event, &pause_time);
}

/* It would fail again at once. */
static void on_accept_error(struct evconnlistener *lev, void *arg)
{
    const char *why = evutil_socket_error_to_string(errno);
    struct pyle_bound *b;
    char text[128];

    (void)arg; /* evhttp's */
    pthread_mutex_lock(&request_lock);
    for (b = all_bounds; b && evhttp_bound_socket_get_listener(b->bound) != lev; b = b->next_of_all)
        ;
    pthread_mutex_unlock(&request_lock);
    if (b && event_add(&b->retry_event, &pause_time) == 0)
        evconnlistener_disable(lev);
    snprintf(text, sizeof(text), "accept: %s; the HTTP server tries again in 0.1 s", why);
    pyle_log(EVENT_LOG_WARN, text);
}

struct pyle_bound *pyle_bound_new(struct pyle_owned *owned, struct pyle_http *s)
{
    struct pyle_bound *b = pyle_own(owned, PYLE_BOUNDS, sizeof(*b));

    if (!b)
        return NULL;
    b->refs = 1;
    b->s = s;
    hold_http(s);
    return b;
}

void pyle_bound_unref(struct pyle_bound *b)
{
    if (__atomic_sub_fetch(&b->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    pyle_http_put(b->s);
    pyle_unmake(PYLE_BOUNDS, b);
}

/* address NULL: fd listens already. From then on fd is evhttp's. */
int pyle_bound_open(struct pyle_bound *b, const void *address, int length, int fd, int flags, int backlog)
{
    struct pyle_http *s = b->s;
    struct evconnlistener *lev;
    socklen_t size = sizeof(int);
    int listens = 0, made;

    CHECK(s);
    if (s->parent)
        return PYLE_INUSE;
    if (!address) {
        if (fd < 0 || fd >= s->pb->fd_limit)
            return PYLE_RANGE;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &size) < 0)
            return pyle_failed();
        if (!listens) {
            errno = EINVAL;
            return PYLE_SYS;
        }
        if (evutil_make_socket_nonblocking(fd) < 0)
            return pyle_failed();
    } else if (!pyle_fd_fits(s->pb->fd_limit)) {
        return PYLE_SYS;
    }
    pyle_went_short();
    flags = (flags & ~LEV_OPT_CLOSE_ON_FREE) | LEV_OPT_DISABLED | LEV_OPT_CLOSE_ON_EXEC;
    lev = address ? evconnlistener_new_bind(s->pb->base, NULL, NULL, (unsigned)flags, backlog, address, length)
                  : evconnlistener_new(s->pb->base, NULL, NULL, (unsigned)flags, 0, fd);
    if (!lev)
        return pyle_failed();
    made = evconnlistener_get_fd(lev);
    if (!pyle_went_short())
        b->bound = evhttp_bind_listener(s->http, lev);
    if (b->bound && evconnlistener_enable(lev) < 0) {
        int error = errno;
        evhttp_del_accept_socket(s->http, b->bound);
        b->bound = NULL;
        errno = error;
    } else if (!b->bound) {
        evconnlistener_free(lev);
        errno = ENOMEM;
    }
    if (!b->bound) {
        int rc = pyle_failed();
        if (address)
            close(made);
        return rc;
    }
    evconnlistener_set_error_cb(lev, on_accept_error);
    evtimer_assign(&b->retry_event, s->pb->base, on_retry, b);
    pyle_note_priority(s->pb, event_get_priority(&b->retry_event));
    __atomic_add_fetch(&b->refs, 1, __ATOMIC_RELAXED);
    b->next = s->bounds;
    s->bounds = b;
    pthread_mutex_lock(&request_lock);
    b->next_of_all = all_bounds;
    b->to_this = &all_bounds;
    if (b->next_of_all)
        b->next_of_all->to_this = &b->next_of_all;
    all_bounds = b;
    pthread_mutex_unlock(&request_lock);
    return 0;
}

int pyle_bound_close(struct pyle_bound *b)
{
    if (!b->bound)
        return 0;
    CHECK(b->s);
    close_bound(b);
    return 0;
}

int pyle_bound_enable(struct pyle_bound *b, int on)
{
    struct evconnlistener *lev;

    if (!b->bound)
        return PYLE_CLOSED;
    CHECK(b->s);
    lev = evhttp_bound_socket_get_listener(b->bound);
    b->off = !on;
    event_del(&b->retry_event);
    return (on ? evconnlistener_enable(lev) : evconnlistener_disable(lev)) < 0 ? pyle_failed() : 0;
}

int pyle_bound_fd(struct pyle_bound *b)
{
    if (!b->bound)
        return PYLE_CLOSED;
    CHECK(b->s);
    return evhttp_bound_socket_get_fd(b->bound);
}

struct evhttp_bound_socket *pyle_bound_ptr(struct pyle_bound *b)
{
    return b->s->pb->closed || b->s->doomed ? NULL : b->bound;
}
