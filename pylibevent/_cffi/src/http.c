/* HTTP: requests and their headers, the server. evhttp frees a request, and the connection it came
 * on, where it likes; our structs outlive them and are told. */
#include "http.h"

#include <unistd.h>

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

static int check(struct pyle_request *r)
{
    struct pyle_base *pb = r->pb;

    if (!r->req || (r->over && !r->owned))
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
    int i, busy = r->depth > 0;

    if (!r->req)
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
    return r->over && !r->owned ? NULL : r->req;
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

static const char token_chars[256] = {
    ['!'] = 1, ['#'] = 1, ['$'] = 1, ['%'] = 1, ['&'] = 1, ['\''] = 1, ['*'] = 1, ['+'] = 1, ['-'] = 1,
    ['.'] = 1, ['^'] = 1, ['_'] = 1, ['`'] = 1, ['|'] = 1, ['~'] = 1,
    ['0' ... '9'] = 1, ['A' ... 'Z'] = 1, ['a' ... 'z'] = 1,
};

static int is_name(const char *name, size_t n)
{
    size_t i;

    for (i = 0; i < n && token_chars[(unsigned char)name[i]]; ++i)
        ;
    return n > 0 && i == n;
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
    return is_name(name, n) ? pyle_request_enter(r) : PYLE_RANGE;
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
