/* HTTP: the client's side. To evhttp a connection is one TCP connection with one request at a time:
 * the queue, look-ups, retries and what comes after a failure are ours, and so a struct
 * evhttp_connection is never used again once it has lost its socket.
 *
 * evhttp does not expect to be called in the middle of its own callbacks. What is done there (a
 * close, a cancel) is final at once for Python; the connection is freed by an event, behind evhttp. A
 * request is ours from the start (evhttp_request_own), and what Python sees of its body is not what
 * evhttp is working with. */
#include "http.h"

#include <fcntl.h>
#include <netinet/tcp.h>
#include <unistd.h>

#define CONNECT_SECONDS 45     /* evhttp's, where no timeout is set */
#define MOST_INFORMED 16       /* replies of 1xx before the one that counts */
#define MOST_LINE 4096         /* of the line with a chunk's size, about which evhttp asks nothing */
#define MOST_BODY (64LL << 20)
#define MOST_EARLY (64 << 10)    /* besides, while a request is written */
#define WATCH_SECONDS 1

enum { IDLE, ASKED, RUNNING, WAITING };

struct pyle_client {
    struct pyle_base *pb;
    long long token;
    int refs;
    int closed;
    int state;                 /* of the first in the queue: IDLE: nothing is done about it yet */
    struct pyle_exchange *first, **end; /* the queue */
    struct pyle_exchange *all; /* and those that are yet to be told how they ended */
    struct pyle_exchange *running; /* evhttp works on it */
    struct pyle_exchange *at_evhttp; /* the same, or what it has yet to be freed of; counted */
    struct evhttp_connection *evcon; /* or NULL */
    struct bufferevent *bev;   /* its */
    struct pyle_tls *tls;      /* its */
    unsigned link_gen;         /* of the process that opened it */
    int connected;
    int dead;                  /* of no more use: to be freed */
    int free_when_done;        /* free_on_completion() */
    int switched;              /* to be taken over, perhaps, in the callback that comes next */
    int inside;                /* evhttp is up the stack: so many callbacks of Python's */
    int told;                  /* bits: 1: the connection has closed, 2: Python wants to know */
    int bound;
    int nudge;                 /* evhttp waits until nothing is written, of which TLS does not tell */
    bufferevent_event_cb connect_cb; /* evhttp's, while it connects */
    void *connect_arg;
    int error;                 /* the errno of a connect that failed; -1: Python knows */
    int timed_out;
    int tried;                 /* so many retries */
    int more;                  /* addresses to try */
    int again;                 /* the next one of these is wanted */
    struct event step, timer;
    struct pyle_client *next_dead, **to_dead; /* on pb->dead_clients */
    double timeout, initial_retry;
    int retries, flags;
    long long max_headers, max_body; /* -1: no limit; max_body -2: MOST_BODY, but for streams */
    char local_address[64];
    int local_port;
};

struct pyle_exchange {
    struct pyle_client *c;     /* counted */
    struct pyle_request *r;    /* counted, and pyle_request.exchange until it is over */
    int refs;                  /* 1 until it is over, 1 while evhttp has it */
    struct pyle_exchange *next; /* in the queue */
    struct pyle_exchange *after, **to_this; /* on c->all */
    struct event deliver;
    int type;
    char *uri;
    int wants;                 /* PYLE_HTTP_WANTS_* */
    int queued, over, done;
    int switched;              /* the connection may be another protocol's from here on */
    int informed;              /* so many 1xx */
    int n_headers;             /* of its reply */
    int said;                  /* by evhttp: an EVREQ_HTTP_* and 1 */
    int refused;               /* by us: the same */
    int error;                 /* how it ended: the same, 0: well */
    int system_error;
};

static void on_step(evutil_socket_t fd, short what, void *arg);
static void on_timer(evutil_socket_t fd, short what, void *arg);
static void on_deliver(evutil_socket_t fd, short what, void *arg);

/* ---- counts ---- */

static void put_client(struct pyle_client *c)
{
    if (__atomic_sub_fetch(&c->refs, 1, __ATOMIC_ACQ_REL) != 0)
        return;
    event_debug_unassign(&c->step);
    event_debug_unassign(&c->timer);
    pyle_base_unref(c->pb);
    pyle_unmake(PYLE_CLIENTS, c);
}

static void hold_client(struct pyle_client *c)
{
    __atomic_add_fetch(&c->refs, 1, __ATOMIC_RELAXED);
}

static void put_exchange(struct pyle_exchange *x)
{
    if (--x->refs != 0)
        return;
    event_debug_unassign(&x->deliver);
    pyle_request_put(x->r);
    put_client(x->c);
    free(x->uri);
    pyle_unmake(PYLE_EXCHANGES, x);
}

static void soon(struct pyle_client *c)
{
    event_active(&c->step, EV_TIMEOUT, 1);
}

static void unqueue(struct pyle_exchange *x)
{
    struct pyle_client *c = x->c;
    struct pyle_exchange **at = &c->first;

    if (!x->queued)
        return;
    while (*at != x)
        at = &(*at)->next;
    *at = x->next;
    if (!x->next)
        c->end = at;
    x->queued = 0;
}

/* Nobody is told anything about it from here on. */
static void end_exchange(struct pyle_exchange *x)
{
    struct pyle_client *c = x->c;

    if (x->over)
        return;
    unqueue(x);
    event_del(&x->deliver);
    *x->to_this = x->after;
    if (x->after)
        x->after->to_this = x->to_this;
    if (c->running == x)
        c->running = NULL;
    x->over = 1;
    x->r->exchange = NULL;
    put_exchange(x);
}

static void give_back(struct pyle_exchange *x)
{
    if (x->c->at_evhttp != x)
        return;
    x->c->at_evhttp = NULL;
    x->r->req->evcon = NULL;
    put_exchange(x);
}

/* ---- how a request ends ---- */

/* error: an EVREQ_HTTP_* and 1, or 0. Python is told by an event. */
static void finish(struct pyle_exchange *x, int error, int system_error)
{
    struct pyle_client *c = x->c;

    if (x->over || x->done)
        return;
    unqueue(x);
    x->done = 1;
    x->error = error;
    x->system_error = system_error;
    if (error)
        x->r->req->response_code = 0;
    event_active(&x->deliver, EV_TIMEOUT, 1);
    if (c->running == x) {
        c->running = NULL;
        c->state = IDLE;
        event_del(&c->timer);
    }
    if (c->dead || (c->first && c->state == IDLE))
        soon(c);
}

/* What is to be done about the first one does not depend on which one it is. */
static void connect_failed(struct pyle_client *c, int error)
{
    double wait = c->initial_retry;
    struct timeval tv;
    int i, code = c->timed_out ? EVREQ_HTTP_TIMEOUT : EVREQ_HTTP_EOF;

    event_del(&c->timer);
    if (c->evcon) {
        c->dead = 1;
        soon(c);
    }
    c->running = NULL;
    c->state = IDLE;
    if (c->more > 0 && c->first) {
        c->again = 1;
        soon(c);
    } else if (c->first && (c->retries < 0 || c->tried < c->retries)) {
        for (i = 0; i < c->tried && wait < 3600; ++i)
            wait *= 2;
        pyle_timeval(wait < 3600 ? wait : 3600, &tv);
        if (c->tried < 64)
            ++c->tried;
        c->state = WAITING;
        if (event_add(&c->timer, &tv) < 0) {
            c->state = IDLE;
            soon(c);
        }
    } else { /* as evhttp has it: the others would fare no better */
        c->tried = 0;
        while (c->first)
            finish(c->first, code + 1, error);
    }
}

/* ---- the connection ---- */

/* A child's copy of its parent's: evhttp would shut the parent's down. */
static void leave_socket(struct pyle_client *c)
{
    int known = c->connected || c->bound; /* to evhttp, which will close it then */
    int dummy, fd = bufferevent_getfd(c->bev);

    if (fd < 0)
        return;
    bufferevent_setfd(c->bev, -1);
    if (known && (dummy = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0) {
        dup2(dummy, fd);
        close(dummy);
    } else {
        close(fd);
    }
}

static void on_input(struct evbuffer *buf, const struct evbuffer_cb_info *info, void *arg)
{
    struct pyle_client *c = arg;
    struct pyle_exchange *x = c->running;
    int too_long = 0;

    if (!x || x->refused || info->n_added == 0 || info->orig_size < MOST_LINE)
        return;
    if (evbuffer_get_length(bufferevent_get_output(c->bev)) > 0) {
        /* What comes before all of a request is written, evhttp leaves there. */
        too_long = info->orig_size > (size_t)(c->max_body >= 0 ? c->max_body : MOST_BODY) + MOST_EARLY;
    } else if (x->r->req->chunked && x->r->req->ntoread < 0) {
        ssize_t end = evbuffer_search_eol(buf, NULL, NULL, EVBUFFER_EOL_LF).pos;
        too_long = end < 0 || (size_t)end >= info->orig_size;
    }
    if (too_long) {
        x->refused = EVREQ_HTTP_DATA_TOO_LONG + 1;
        c->dead = 1;
        soon(c);
    }
}

static void free_link(struct pyle_client *c)
{
    const struct pyle_tls_hooks *hooks = pyle_get_tls_hooks();
    struct evhttp_connection *evcon = c->evcon;
    struct pyle_tls *tls = c->tls;

    c->dead = c->switched = c->nudge = 0;
    if (!evcon)
        return;
    if (c->connected && !c->closed && c->link_gen == pyle_fork_gen) {
        c->told |= 1;
        soon(c);
    }
    evhttp_connection_set_closecb(evcon, NULL, NULL);
    evbuffer_remove_cb(bufferevent_get_input(c->bev), on_input, c);
    if (c->link_gen != pyle_fork_gen)
        leave_socket(c);
    else if (tls && c->connected && bufferevent_getfd(c->bev) >= 0)
        hooks->notify(tls);
    if (tls)
        hooks->leave(tls);
    c->evcon = NULL;
    c->bev = NULL;
    c->tls = NULL;
    c->connected = 0;
    evhttp_connection_free(evcon);
    if (tls)
        hooks->release(tls);
    if (c->at_evhttp)
        give_back(c->at_evhttp);
}

static void on_closed(struct evhttp_connection *evcon, void *arg)
{
    struct pyle_client *c = arg;

    (void)evcon;
    c->dead = 1;
    c->told |= 1;
    soon(c);
}

/* In the place of evhttp's, until it is connected: what went wrong is not lost. */
static void on_connect(struct bufferevent *bev, short what, void *arg)
{
    struct pyle_client *c = arg;
    struct pyle_exchange *x = c->running;
    int on = 1, error = errno;

    if (c->tls)
        pyle_get_tls_hooks()->event(c->tls, bev, what, error);
    if (what & BEV_EVENT_CONNECTED) {
        c->connected = 1;
        c->tried = c->more = 0;
        setsockopt(bufferevent_getfd(bev), IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
    } else {
        c->timed_out = (what & BEV_EVENT_TIMEOUT) != 0;
        c->error = c->timed_out ? ETIMEDOUT : error;
    }
    bufferevent_setcb(bev, NULL, NULL, c->connect_cb, c->connect_arg);
    hold_client(c);
    if (x)
        ++x->refs;
    pyle_went_short();
    errno = error;
    c->connect_cb(bev, what, c->connect_arg);
    if (x && pyle_went_short() && c->running == x) { /* what is to be sent may lack something */
        x->refused = EVREQ_HTTP_BUFFER_ERROR + 1;
        x->system_error = ENOMEM;
        c->dead = 1;
        soon(c);
    }
    if (x)
        put_exchange(x);
    put_client(c);
}

static double limit_of(const struct pyle_client *c)
{
    return c->timeout < 0 ? CONNECT_SECONDS : c->timeout;
}

static void set_timeout(struct pyle_client *c)
{
    struct timeval tv;

    evhttp_connection_set_timeout_tv(c->evcon, pyle_timeval(c->timeout, &tv) ? &tv : NULL);
}

/* ---- what evhttp calls ---- */

static int keep_headers(struct evhttp_request *req, int n);

static int says(struct evhttp_request *req, const char *token)
{
    size_t n = strlen(token);
    struct evkeyval *h;
    const char *at;

    for (h = req->input_headers->tqh_first; h; h = h->next.tqe_next) {
        if (evutil_ascii_strcasecmp(h->key, "Connection") != 0)
            continue;
        for (at = h->value; *at; at += strspn(at, ", \t")) {
            size_t length = strcspn(at, ", \t");
            if (length == n && evutil_ascii_strncasecmp(at, token, n) == 0)
                return 1;
            at += length;
        }
    }
    return 0;
}

/* evhttp knows "close" alone, and in HTTP/1.0 waits to see. */
static int will_close(struct evhttp_request *req)
{
    return says(req, "close") || (req->major == 1 && req->minor == 0 && !says(req, "keep-alive"));
}

static void on_error(enum evhttp_request_error error, void *arg)
{
    ((struct pyle_exchange *)arg)->said = (int)error + 1;
}

static void on_reply(struct evhttp_request *req, void *arg)
{
    struct pyle_exchange *x = arg;
    struct pyle_client *c = x->c;
    int error = errno;

    ++x->refs;
    give_back(x);
    if (x->over || c->running != x) {
        ; /* given up meanwhile */
    } else if (x->refused) {
        c->dead = 1;
        finish(x, x->refused, x->system_error);
    } else if (req && req->response_code && !x->said) {
        /* What is left there was not asked for, and no answer to the next request. */
        if (c->bev && !c->dead &&
            (req->response_code == 101 || (x->type == EVHTTP_REQ_CONNECT && req->response_code / 100 == 2))) {
            bufferevent_disable(c->bev, EV_READ);
            c->switched = x->switched = 1;
        } else if (c->bev && (evbuffer_get_length(bufferevent_get_input(c->bev)) > 0 || will_close(req))) {
            c->dead = 1;
        }
        keep_headers(req, x->n_headers); /* trailers are not, whatever evhttp makes of them */
        finish(x, 0, 0);
    } else if (!c->connected) {
        connect_failed(c, c->error ? c->error : req ? ECONNREFUSED : error);
    } else {
        c->dead = 1;
        finish(x, x->said ? x->said : EVREQ_HTTP_EOF + 1, 0);
    }
    put_exchange(x);
}

static int call_up(struct pyle_exchange *x, int (*up)(int, long long))
{
    struct pyle_client *c = x->c;
    struct pyle_base *pb = c->pb;
    int answer = PYLE_DONE, tries = 3;

    ++x->refs;
    ++c->inside;
    while (!pyle_exiting && !pb->closed && !x->over && tries-- > 0) {
        pyle_before();
        answer = up(pb->slot, x->r->token);
        if (answer == PYLE_RETRY || answer == PYLE_ERROR)
            pyle_raise(pb);
        pyle_after(pb);
        if (answer != PYLE_RETRY)
            break;
    }
    --c->inside;
    put_exchange(x);
    return answer;
}

static int same(const char *a, const char *b)
{
    return evutil_ascii_strcasecmp(a, b) == 0;
}

/* What evhttp takes, and another client or a proxy may take for something else. */
static int body_is_clear(struct evhttp_request *req, int *chunked)
{
    struct evkeyval *h, *connection = NULL;
    const char *length = NULL;

    for (h = req->input_headers->tqh_first; h; h = h->next.tqe_next) {
        size_t digits = strspn(h->value, "0123456789");
        if (same(h->key, "Content-Length")) {
            if (digits == 0 || digits > 18 || h->value[digits] || (length && strcmp(length, h->value) != 0))
                return 0;
            length = h->value;
        } else if (same(h->key, "Transfer-Encoding")) {
            if (*chunked || !same(h->value, "chunked"))
                return 0;
            *chunked = 1;
        } else if (same(h->key, "Connection") && !connection) {
            connection = h;
        }
    }
    if (*chunked && length)
        return 0;
    if (!*chunked && !length && connection && !same(connection->value, "close")) {
        /* It ends with the connection, but evhttp would take it for an empty one. */
        char *closes = strdup("close");
        if (!closes)
            return 0;
        free(connection->value);
        connection->value = closes;
    }
    return 1;
}

static int names_are_clear(struct evhttp_request *req)
{
    struct evkeyval *h;

    for (h = req->input_headers->tqh_first; h; h = h->next.tqe_next)
        if (!*h->key || strpbrk(h->key, " \t"))
            return 0;
    return 1;
}

/* The first n of them, -1: all; how many there are. */
static int keep_headers(struct evhttp_request *req, int n)
{
    struct evkeyval *h, *next;
    int i = 0;

    for (h = req->input_headers->tqh_first; h; h = next, ++i) {
        next = h->next.tqe_next;
        if (n < 0 || i < n)
            continue;
        *h->next.tqe_prev = next;
        if (next)
            next->next.tqe_prev = h->next.tqe_prev;
        else
            req->input_headers->tqh_last = h->next.tqe_prev;
        free(h->key);
        free(h->value);
        free(h);
    }
    return i;
}

static int refuse(struct pyle_exchange *x, int error)
{
    if (!x->refused)
        x->refused = error + 1;
    return -1;
}

static int on_headers(struct evhttp_request *req, void *arg)
{
    struct pyle_exchange *x = arg;
    struct pyle_client *c = x->c;
    int answer, chunked = 0, code = req->response_code;

    if (x->over || x->refused)
        return -1;
    if (code < 100 || code > 999 || !names_are_clear(req))
        return refuse(x, EVREQ_HTTP_INVALID_HEADER);
    if (code < 200 && code != 101) { /* there will be another one; evhttp knows that of 100 */
        if (++x->informed > MOST_INFORMED)
            return refuse(x, EVREQ_HTTP_DATA_TOO_LONG);
        evhttp_clear_headers(req->input_headers);
        req->response_code = 100;
        c->nudge = c->tls && evbuffer_get_length(req->output_buffer) == 0;
        if (c->nudge)
            soon(c);
        return 0;
    }
    if (code >= 200 && code != 204 && code != 304 && x->type != EVHTTP_REQ_HEAD &&
        x->type != EVHTTP_REQ_CONNECT && !body_is_clear(req, &chunked))
        return refuse(x, EVREQ_HTTP_INVALID_HEADER);
    evhttp_connection_set_max_body_size(
        c->evcon, (ev_ssize_t)(c->max_body != -2 ? c->max_body
                               : !(x->wants & PYLE_HTTP_WANTS_CHUNKS) || chunked ? MOST_BODY : -1));
    answer = x->wants & PYLE_HTTP_WANTS_HEADERS ? call_up(x, pyle_py_http_headers) : PYLE_DONE;
    if (answer == PYLE_HTTP_REFUSED)
        return refuse(x, EVREQ_HTTP_EOF);
    x->n_headers = keep_headers(req, -1);
    return x->over || x->refused ? -1 : 0;
}

/* What was Python's becomes a buffer of its own, and evhttp's is shown in its place. */
static void let_go_of_input(struct pyle_request *r, struct evbuffer *instead)
{
    struct pyle_buf *b;

    pyle_request_lock(1);
    b = r->bufs[1];
    r->bufs[1] = NULL;
    if (b)
        b->borrowed = 0;
    pyle_request_lock(0);
    if (!b && r->shown[1])
        evbuffer_free(r->shown[1]);
    r->shown[1] = instead;
}

static void on_chunk(struct evhttp_request *req, void *arg)
{
    struct pyle_exchange *x = arg;
    struct pyle_request *r = x->r;
    struct evbuffer *fresh;

    if (x->c->max_body == -2)
        req->body_size = 0; /* which has been read, and is not kept */
    if (x->over || x->refused)
        return;
    if (!(fresh = evbuffer_new())) {
        refuse(x, EVREQ_HTTP_BUFFER_ERROR);
        x->system_error = ENOMEM;
        x->c->dead = 1;
        soon(x->c);
        return;
    }
    let_go_of_input(r, fresh);
    evbuffer_add_buffer(fresh, req->input_buffer);
    call_up(x, pyle_py_http_chunk);
}

/* ---- steps ---- */

static void let_evhttp_go_on(struct pyle_client *c, struct pyle_exchange *x)
{
    struct evhttp_request *req = x->r->req;
    int error, rc, was_connected = c->connected;
    struct pyle_store store;

    c->state = RUNNING;
    c->running = x;
    c->error = c->timed_out = 0;
    x->said = 0;
    if (pyle_store_fill(&store, 12, 1024) < 0) {
        c->error = ENOMEM;
        c->dead = 1;
        finish(x, EVREQ_HTTP_BUFFER_ERROR + 1, ENOMEM);
        return;
    }
    req->cb = on_reply;
    req->cb_arg = x;
    evhttp_request_set_error_cb(req, on_error);
    evhttp_request_set_header_cb(req, on_headers);
    evhttp_request_set_chunked_cb(req, x->wants & PYLE_HTTP_WANTS_CHUNKS ? on_chunk : NULL);
    evhttp_connection_set_max_headers_size(c->evcon, (ev_ssize_t)c->max_headers);
    c->at_evhttp = x;
    x->refs += 2;
    pyle_went_short();
    errno = 0;
    rc = evhttp_make_request(c->evcon, req, (enum evhttp_cmd_type)x->type, x->uri);
    error = errno;
    pyle_store_close(&store);
    if (rc < 0)
        give_back(x);
    if (c->running != x) {
        ; /* it has failed already */
    } else if (rc < 0) {
        connect_failed(c, error ? error : EIO);
    } else if (was_connected && pyle_went_short()) {
        x->refused = EVREQ_HTTP_BUFFER_ERROR + 1;
        x->system_error = ENOMEM;
        c->dead = 1;
        soon(c);
    } else {
        struct timeval watch = {WATCH_SECONDS, 0};
        if (!was_connected) {
            bufferevent_data_cb read, write;
            bufferevent_getcb(c->bev, &read, &write, &c->connect_cb, &c->connect_arg);
            bufferevent_setcb(c->bev, read, write, on_connect, c);
        }
        if (c->flags & EVHTTP_CON_READ_ON_WRITE_ERROR)
            event_add(&c->timer, &watch);
    }
    put_exchange(x);
}

/* Whether the peer has closed it, or says what nobody has asked for. */
static int is_stale(struct pyle_client *c)
{
    char byte;
    ssize_t n = recv(bufferevent_getfd(c->bev), &byte, 1, MSG_PEEK | MSG_DONTWAIT);

    return n == 0 || (n > 0 && !c->tls) || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

static void ask(struct pyle_client *c)
{
    struct pyle_base *pb = c->pb;
    struct timeval tv;
    int answer;

    c->state = ASKED;
    c->error = c->timed_out = 0;
    pyle_timeval(limit_of(c), &tv);
    event_add(&c->timer, &tv);
    pyle_before();
    answer = pyle_py_http_connect(pb->slot, c->token, c->again);
    if ((answer == PYLE_RETRY || answer == PYLE_ERROR) && !c->closed && c->state == ASKED) {
        c->state = IDLE;
        event_del(&c->timer);
        soon(c);
    } else {
        c->again = 0;
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
}

static void tell_closed(struct pyle_client *c)
{
    struct pyle_base *pb = c->pb;
    int answer;

    if (c->told != 3 || c->closed) {
        c->told &= 2;
        return;
    }
    c->told = 2;
    pyle_before();
    answer = pyle_py_http_closed(pb->slot, c->token);
    if (answer == PYLE_RETRY && !c->closed) {
        c->told |= 1;
        soon(c);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    pyle_after(pb);
}

/* free_on_completion(): Python closes it. */
static void tell_over(struct pyle_client *c)
{
    struct pyle_base *pb = c->pb;
    int answer;

    pyle_before();
    answer = pyle_py_http_over(pb->slot, c->token);
    if (answer == PYLE_RETRY || answer == PYLE_ERROR) {
        if (!c->closed)
            soon(c);
        pyle_raise(pb);
    }
    pyle_after(pb);
}

static void off_the_dead(struct pyle_client *c)
{
    if (!c->to_dead)
        return;
    *c->to_dead = c->next_dead;
    if (c->next_dead)
        c->next_dead->to_dead = c->to_dead;
    c->to_dead = NULL;
    put_client(c);
}

static void on_step(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_client *c = arg;

    (void)fd;
    (void)what;
    hold_client(c);
    if (c->dead || c->closed) {
        struct pyle_exchange *x = c->running;
        free_link(c);
        if (x && x == c->running)
            finish(x, x->refused ? x->refused : EVREQ_HTTP_EOF + 1, x->system_error);
    }
    if (c->nudge && c->evcon)
        bufferevent_trigger(c->bev, EV_WRITE, 0);
    c->nudge = 0;
    off_the_dead(c);
    if (!pyle_exiting && !c->pb->closed)
        tell_closed(c);
    if (!c->first)
        c->again = c->tried = 0;
    if (!pyle_exiting && !c->closed && c->state == IDLE && c->first && !c->switched) {
        if (c->evcon && is_stale(c)) {
            free_link(c);
        } else if (c->evcon) {
            let_evhttp_go_on(c, c->first);
        } else {
            ask(c);
        }
    }
    if (!pyle_exiting && !c->closed && !c->pb->closed && c->free_when_done == 2 && !c->all)
        tell_over(c);
    put_client(c);
}

static void on_timer(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_client *c = arg;

    (void)fd;
    (void)what;
    if (c->closed)
        return;
    if (c->state == ASKED) {
        c->timed_out = 1;
        c->more = 0;
        connect_failed(c, ETIMEDOUT);
    } else if (c->state == WAITING) {
        c->state = IDLE;
        soon(c);
    } else if (c->state == RUNNING && c->running) {
        struct timeval watch = {WATCH_SECONDS, 0};
        /* EVHTTP_CON_READ_ON_WRITE_ERROR: evhttp has met the end, and waits for more all the same. */
        if (c->connected && !(bufferevent_get_enabled(c->bev) & EV_READ)) {
            c->dead = 1;
            soon(c);
        } else {
            event_add(&c->timer, &watch);
        }
    }
}

static void not_taken(struct pyle_exchange *x)
{
    struct pyle_client *c = x->c;

    if (!c->switched || !c->evcon)
        return;
    c->switched = 0;
    if (x->r->req->response_code == 101 || evbuffer_get_length(bufferevent_get_input(c->bev)) > 0)
        c->dead = 1;
    else
        bufferevent_enable(c->bev, EV_READ);
    soon(c);
}

static void on_deliver(evutil_socket_t fd, short what, void *arg)
{
    struct pyle_exchange *x = arg;
    struct pyle_base *pb = x->c->pb;
    int answer;

    (void)fd;
    (void)what;
    if (pyle_exiting || pb->closed || x->over)
        return;
    pyle_hold_base(pb);
    if (x->r->shown[1])
        let_go_of_input(x->r, NULL);
    ++x->refs;
    pyle_before();
    answer = pyle_py_http_done(pb->slot, x->r->token, x->error - 1, x->system_error);
    if (answer == PYLE_RETRY && !x->over && !pb->closed)
        event_active(&x->deliver, EV_TIMEOUT, 1);
    else
        end_exchange(x);
    if (x->over && x->switched)
        not_taken(x);
    if (x->over && x->c->free_when_done && !x->c->all && !x->c->closed) {
        x->c->free_when_done = 2;
        soon(x->c);
    }
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        pyle_raise(pb);
    put_exchange(x);
    pyle_release_pins();
    pyle_after(pb);
    pyle_base_unref(pb);
}

/* ---- what Python calls ---- */

static int check(struct pyle_client *c)
{
    struct pyle_base *pb = c->pb;

    if (c->closed || pb->closed)
        return PYLE_CLOSED;
    if (pb->lost || pb->fork_gen != pyle_fork_gen)
        return PYLE_FORKED;
    if (pyle_elsewhere(pb))
        return PYLE_THREAD;
    errno = 0;
    return 0;
}

#define CHECK(c)             \
    do {                     \
        int rc_ = check(c);  \
        if (rc_ < 0)         \
            return rc_;      \
    } while (0)

struct pyle_client *pyle_client_new(struct pyle_owned *owned, struct pyle_base *pb, long long token)
{
    struct pyle_client *c = pyle_own(owned, PYLE_CLIENTS, sizeof(*c));

    if (!c)
        return NULL;
    c->refs = 1;
    c->pb = pb;
    c->token = token;
    c->end = &c->first;
    c->timeout = -1;
    c->initial_retry = 2;
    c->max_headers = 64 << 10;
    c->max_body = -2;
    pyle_hold_base(pb);
    return c;
}

void pyle_client_unref(struct pyle_client *c)
{
    put_client(c);
}

int pyle_client_start(struct pyle_client *c)
{
    int rc = pyle_enter_base(c->pb);

    if (rc < 0)
        return rc;
    if (pyle_elsewhere(c->pb)) {
        rc = PYLE_THREAD;
    } else {
        evtimer_assign(&c->step, c->pb->base, on_step, c);
        evtimer_assign(&c->timer, c->pb->base, on_timer, c);
        pyle_note_priority(c->pb, event_get_priority(&c->step));
    }
    pyle_leave_base(c->pb);
    return rc;
}

/* Those that wait hear nothing more. */
int pyle_client_close(struct pyle_client *c, int by_base)
{
    struct pyle_base *pb = c->pb;
    int sync;

    if (pb->lost || c->closed)
        return 0;
    if (!by_base) {
        int rc = check(c);
        if (rc < 0)
            return rc == PYLE_CLOSED ? 0 : rc;
    }
    sync = pyle_sync_enter();
    c->closed = 1;
    event_del(&c->timer);
    event_del(&c->step);
    if (!c->inside)
        free_link(c);
    while (c->first)
        end_exchange(c->first);
    while (c->all)
        end_exchange(c->all);
    if (c->evcon && !c->to_dead) {
        hold_client(c);
        c->to_dead = &pb->dead_clients;
        c->next_dead = pb->dead_clients;
        if (c->next_dead)
            c->next_dead->to_dead = &c->next_dead;
        pb->dead_clients = c;
        soon(c);
    }
    return (int)pyle_sync_leave(sync, 0);
}

/* The base is about to be freed: evhttp is not up the stack any more. */
void pyle_clients_sweep(struct pyle_base *pb)
{
    struct pyle_client *c;

    while ((c = pb->dead_clients) != NULL) {
        if (pb->base) {
            event_del(&c->step);
            free_link(c);
        }
        off_the_dead(c);
    }
}

int pyle_client_closed(struct pyle_client *c)
{
    return c->closed || c->pb->closed;
}

int pyle_client_check(struct pyle_client *c)
{
    return check(c);
}

int pyle_client_set(struct pyle_client *c, int what, double seconds, long long number)
{
    CHECK(c);
    switch (what) {
    case PYLE_CLIENT_TIMEOUT:
        c->timeout = seconds;
        if (c->evcon)
            set_timeout(c);
        break;
    case PYLE_CLIENT_RETRIES: c->retries = (int)number; break;
    case PYLE_CLIENT_INITIAL_RETRY: c->initial_retry = seconds; break;
    case PYLE_CLIENT_MAX_HEADERS: c->max_headers = number; break;
    case PYLE_CLIENT_MAX_BODY: c->max_body = number; break;
    case PYLE_CLIENT_FLAGS: c->flags = (int)number; break;
    case PYLE_CLIENT_LOCAL_PORT: c->local_port = (int)number; break;
    case PYLE_CLIENT_FREE_WHEN_DONE: c->free_when_done = 1; break;
    case PYLE_CLIENT_WANTS_CLOSED: c->told = (c->told & 1) | (number ? 2 : 0); break;
    default: break;
    }
    return 0;
}

int pyle_client_set_local_address(struct pyle_client *c, const char *address)
{
    CHECK(c);
    snprintf(c->local_address, sizeof(c->local_address), "%s", address);
    return 0;
}

struct evhttp_connection *pyle_client_ptr(struct pyle_client *c)
{
    return c->closed || c->dead || c->pb->closed ? NULL : c->evcon;
}

int pyle_client_connected(struct pyle_client *c)
{
    return !c->closed && c->connected && !c->dead;
}

static int open_link(struct pyle_client *c, const char *address, int port, struct pyle_tls *tls)
{
    const struct pyle_tls_hooks *hooks = pyle_get_tls_hooks();
    struct bufferevent *bev = NULL;
    const char *local = c->local_address;
    struct pyle_store store;
    int rc = 0;

    if (!pyle_fd_fits(c->pb->fd_limit))
        return PYLE_SYS;
    if (pyle_store_fill(&store, 12, 1024) < 0)
        return PYLE_NOMEM;
    if (tls && !(bev = hooks->open(tls, c->pb->base, -1, NULL, 0)))
        rc = PYLE_NOMEM;
    if (rc == 0 && !(c->evcon = evhttp_connection_base_bufferevent_new(c->pb->base, NULL, bev, address,
                                                                       (ev_uint16_t)port)))
        rc = PYLE_NOMEM;
    if (rc == 0) {
        c->tls = tls;
        if (tls)
            hooks->no_ahead(tls); /* evhttp's callbacks are libevent's alone */
        c->bev = evhttp_connection_get_bufferevent(c->evcon);
        c->connected = c->dead = 0;
        c->link_gen = pyle_fork_gen;
        evbuffer_add_cb(bufferevent_get_input(c->bev), on_input, c);
        evhttp_connection_set_closecb(c->evcon, on_closed, c);
        /* With TLS there is nothing to be read then, and evhttp's callback for what is written comes,
         * deferred, while it reads: that ends the process. */
        evhttp_connection_set_flags(c->evcon, tls ? 0 : c->flags & EVHTTP_CON_READ_ON_WRITE_ERROR);
        set_timeout(c);
        if (!*local && c->local_port)
            local = strchr(address, ':') ? "::" : "0.0.0.0";
        if (*local)
            evhttp_connection_set_local_address(c->evcon, local);
        evhttp_connection_set_local_port(c->evcon, (ev_uint16_t)c->local_port);
        c->bound = *local != 0;
    } else if (bev) {
        hooks->leave(tls);
        bufferevent_free(bev);
        hooks->release(tls);
    }
    pyle_store_close(&store);
    return rc;
}

int pyle_client_open(struct pyle_client *c, const char *address, int port, struct pyle_tls *tls, int more)
{
    int rc, sync;

    CHECK(c);
    if (c->state != ASKED)
        return 0;
    event_del(&c->timer);
    c->more = more;
    c->state = IDLE;
    if (!c->first)
        return 0;
    sync = pyle_sync_enter();
    free_link(c);
    rc = open_link(c, address, port, tls);
    if (rc == 0) {
        let_evhttp_go_on(c, c->first);
    } else {
        c->more = 0;
        connect_failed(c, rc == PYLE_NOMEM ? ENOMEM : errno);
    }
    return (int)pyle_sync_leave(sync, 0);
}

int pyle_client_failed(struct pyle_client *c)
{
    CHECK(c);
    if (c->state != ASKED)
        return 0;
    c->more = 0;
    connect_failed(c, -1);
    return 0;
}

/* Python did not get to an answer. */
void pyle_client_again(struct pyle_client *c)
{
    if (c->closed || c->pb->lost || c->state != ASKED)
        return;
    event_del(&c->timer);
    c->state = IDLE;
    soon(c);
}

void pyle_client_after_fork(struct pyle_client *c)
{
    struct pyle_exchange *x = c->running;

    if (c->closed || c->pb->lost)
        return;
    if (c->evcon && c->link_gen != pyle_fork_gen) {
        free_link(c);
        if (x && x == c->running)
            finish(x, EVREQ_HTTP_EOF + 1, 0);
    }
    pyle_client_again(c);
}

int pyle_client_make_request(struct pyle_client *c, struct pyle_request *r, int type, const char *uri, int wants)
{
    struct evbuffer *in = NULL, *out = NULL;
    struct pyle_exchange *x;
    struct pyle_call call;
    char *shown = NULL;
    int rc, failed = 0;

    CHECK(c);
    if ((rc = pyle_request_enter(r)) < 0)
        return rc;
    if (r->made || r->pb)
        return pyle_request_leave(r, PYLE_INUSE);
    x = pyle_make(PYLE_EXCHANGES, sizeof(*x));
    if (!x || !(x->uri = strdup(uri)) || !(shown = strdup(uri)) || !(in = evbuffer_new()) || !(out = evbuffer_new())) {
        rc = PYLE_NOMEM;
    } else if (r->bufs[0] && (rc = pyle_buf_enter(&call, r->bufs[0], 1)) == 0) {
        rc = evbuffer_add_buffer(out, r->bufs[0]->buf) < 0 ? PYLE_FAIL : 0;
        rc = (int)pyle_buf_leave(&call, rc);
    } else if (!r->bufs[0]) {
        evbuffer_add_buffer(out, r->req->output_buffer);
    }
    if (rc == 0 || rc == PYLE_RAISED) { /* a callback of the buffer's may have done anything */
        int now = r->made ? PYLE_INUSE : check(c);
        if (now < 0) {
            rc = rc < 0 ? rc : now;
            failed = 1;
        }
    } else {
        failed = 1;
    }
    if (failed) {
        if (in)
            evbuffer_free(in);
        if (out)
            evbuffer_free(out);
        if (x)
            free(x->uri);
        free(shown);
        pyle_unmake(PYLE_EXCHANGES, x);
        return pyle_request_leave(r, rc);
    }
    r->shown[0] = r->req->output_buffer;
    r->shown[1] = r->req->input_buffer;
    r->req->output_buffer = out;
    r->req->input_buffer = in;
    evhttp_request_own(r->req);
    r->owned = r->made = 1;
    r->pb = c->pb;
    pyle_hold_base(r->pb);
    r->exchange = x;
    r->req->type = (enum evhttp_cmd_type)type;
    r->req->uri = shown; /* until evhttp has another copy */
    pyle_request_hold(r);
    hold_client(c);
    x->refs = 1;
    x->r = r;
    x->c = c;
    x->type = type;
    x->wants = wants;
    evtimer_assign(&x->deliver, c->pb->base, on_deliver, x);
    x->after = c->all;
    x->to_this = &c->all;
    if (x->after)
        x->after->to_this = &x->after;
    c->all = x;
    *c->end = x;
    c->end = &x->next;
    x->queued = 1;
    if (c->state == IDLE)
        soon(c);
    return pyle_request_leave(r, rc);
}

ssize_t pyle_request_length(struct pyle_request *r)
{
    ssize_t n = pyle_request_enter(r);

    if (n < 0)
        return n;
    n = (ssize_t)evbuffer_get_length(r->shown[0] ? r->shown[0] : r->req->output_buffer);
    pyle_request_leave(r, 0);
    return n;
}

int pyle_request_made(struct pyle_request *r)
{
    return r->made;
}

int pyle_request_cancel(struct pyle_request *r)
{
    struct pyle_exchange *x;
    struct pyle_client *c;
    int rc = pyle_request_check(r), sync;

    if (rc < 0)
        return rc;
    x = r->exchange;
    if (!x || x->over || x->done || x->refused)
        return 0;
    c = x->c;
    CHECK(c);
    sync = pyle_sync_enter();
    if (c->running != x) {
        finish(x, EVREQ_HTTP_REQUEST_CANCEL + 1, 0);
    } else if (c->inside) {
        x->refused = EVREQ_HTTP_REQUEST_CANCEL + 1;
        c->dead = 1;
        soon(c);
    } else {
        free_link(c);
        finish(x, EVREQ_HTTP_REQUEST_CANCEL + 1, 0);
    }
    return (int)pyle_sync_leave(sync, 1);
}

/* pv gets a descriptor of its own: evhttp would shut down what it has. */
int pyle_client_take_over(struct pyle_request *r, struct pyle_bev *pv)
{
    struct bufferevent *to = pyle_bev_ptr(pv);
    struct pyle_exchange *x;
    struct pyle_client *c;
    int fd, old, null, rc = pyle_request_check(r);

    if (rc < 0)
        return rc;
    x = r->exchange;
    if (!x || !x->switched || !x->c->switched || !x->c->evcon)
        return PYLE_NONE;
    c = x->c;
    CHECK(c);
    if (!to || c->tls)
        return to ? PYLE_UNABLE : PYLE_CLOSED;
    old = bufferevent_getfd(c->bev);
    null = open("/dev/null", O_RDWR | O_CLOEXEC);
    fd = null < 0 ? -1 : fcntl(old, F_DUPFD_CLOEXEC, 0);
    if (fd < 0) {
        rc = pyle_failed();
    } else if ((rc = pyle_bev_setfd(pv, fd, 1)) < 0) {
        close(fd);
    } else {
        evbuffer_unfreeze(bufferevent_get_input(to), 0);
        evbuffer_add_buffer(bufferevent_get_input(to), bufferevent_get_input(c->bev));
        evbuffer_freeze(bufferevent_get_input(to), 0);
        if (evbuffer_get_length(bufferevent_get_input(to)) > 0)
            bufferevent_trigger(to, EV_READ, BEV_TRIG_DEFER_CALLBACKS | BEV_TRIG_IGNORE_WATERMARKS);
        bufferevent_disable(c->bev, EV_READ | EV_WRITE);
        dup2(null, old);
        c->connected = 0;
        free_link(c);
        soon(c);
    }
    if (null >= 0)
        close(null);
    return rc;
}
