/* URIs, their encoding, queries (event2/http.h). libevent ends a string where it finds a NUL, drops a
 * part of a URI that it has no memory to copy, and does not look whether its buffers took what it
 * adds. PYLE_RANGE: it does not take what it was given, or a NUL would cut the answer off. */
#include "pyle.h"

#include <ctype.h>
#include <event2/keyvalq_struct.h>
#include <limits.h>

struct pyle_uri {
    struct evhttp_uri *uri;
    unsigned flags;            /* libevent does not tell */
};

/* Parts are freed as they are set, and any thread may be reading them. */
static pthread_mutex_t uri_lock = PTHREAD_MUTEX_INITIALIZER;

void pyle_uri_lock(int on)
{
    if (on)
        pthread_mutex_lock(&uri_lock);
    else
        pthread_mutex_unlock(&uri_lock);
}

void pyle_text_end(struct pyle_text *text)
{
    free(text->bytes);
    text->bytes = NULL;
    text->n = 0;
}

/* Takes what libevent has made, unless it made it without all the memory that it needed: then there
 * may be no NUL at its end. */
#define TO_ITS_NUL ((size_t)-1)
static int take(struct pyle_text *text, char *bytes, size_t n)
{
    if (pyle_went_short() || !bytes) {
        free(bytes);
        return PYLE_NOMEM;
    }
    text->bytes = bytes;
    text->n = n == TO_ITS_NUL ? strlen(bytes) : n;
    return 0;
}

/* ---- one URI ---- */

struct pyle_uri *pyle_uri_new(struct pyle_owned *owned)
{
    return pyle_own(owned, PYLE_URIS, sizeof(struct pyle_uri));
}

void pyle_uri_unref(struct pyle_uri *u)
{
    if (u->uri)
        evhttp_uri_free(u->uri);
    pyle_unmake(PYLE_URIS, u);
}

int pyle_uri_open(struct pyle_uri *u, const char *source, unsigned flags)
{
    pyle_went_short();
    u->uri = source ? evhttp_uri_parse_with_flags(source, flags) : evhttp_uri_new();
    if (!u->uri)
        return pyle_went_short() ? PYLE_NOMEM : PYLE_RANGE;
    evhttp_uri_set_flags(u->uri, flags);
    u->flags = flags;
    return 0;
}

/* Its __init__ may have been cut off by an exception. */
static int enter(struct pyle_uri *u)
{
    if (!u->uri)
        return PYLE_CLOSED;
    pyle_uri_lock(1);
    return 0;
}

struct evhttp_uri *pyle_uri_ptr(struct pyle_uri *u)
{
    return u->uri;
}

unsigned pyle_uri_flags(struct pyle_uri *u)
{
    return u->flags;
}

int pyle_uri_set_flags(struct pyle_uri *u, unsigned flags)
{
    int rc = enter(u);

    if (rc < 0)
        return rc;
    evhttp_uri_set_flags(u->uri, flags);
    u->flags = flags;
    pyle_uri_lock(0);
    return 0;
}

static const struct {
    const char *(*get)(const struct evhttp_uri *);
    int (*set)(struct evhttp_uri *, const char *);
} parts[] = {
    [PYLE_URI_SCHEME] = {evhttp_uri_get_scheme, evhttp_uri_set_scheme},
    [PYLE_URI_USERINFO] = {evhttp_uri_get_userinfo, evhttp_uri_set_userinfo},
    [PYLE_URI_HOST] = {evhttp_uri_get_host, evhttp_uri_set_host},
    [PYLE_URI_PATH] = {evhttp_uri_get_path, evhttp_uri_set_path},
    [PYLE_URI_QUERY] = {evhttp_uri_get_query, evhttp_uri_set_query},
    [PYLE_URI_FRAGMENT] = {evhttp_uri_get_fragment, evhttp_uri_set_fragment},
};
#define PARTS ((int)(sizeof(parts) / sizeof(*parts)))

int pyle_uri_get(struct pyle_uri *u, int part, struct pyle_text *text)
{
    const char *found;
    int rc = enter(u);

    if (rc < 0)
        return rc;
    found = parts[part].get(u->uri);
    if (!found)
        rc = PYLE_NONE;
    else if (!(text->bytes = strdup(found)))
        rc = PYLE_NOMEM;
    else
        text->n = strlen(found);
    pyle_uri_lock(0);
    return rc;
}

int pyle_uri_set(struct pyle_uri *u, int part, const char *value)
{
    struct pyle_store s;
    int rc;

    /* It frees the old one before it knows that it can have the new one. */
    rc = pyle_store_fill(&s, 1, value ? strlen(value) + 1 : 1);
    if (rc < 0)
        return rc;
    rc = enter(u);
    if (rc == 0) {
        rc = parts[part].set(u->uri, value) < 0 ? PYLE_RANGE : 0;
        pyle_uri_lock(0);
    }
    pyle_store_close(&s);
    return rc;
}

int pyle_uri_port(struct pyle_uri *u)
{
    int port, rc = enter(u);

    if (rc < 0)
        return rc;
    port = evhttp_uri_get_port(u->uri);
    pyle_uri_lock(0);
    return port < 0 ? PYLE_NONE : port;
}

int pyle_uri_set_port(struct pyle_uri *u, int port)
{
    int rc = enter(u);

    if (rc < 0)
        return rc;
    rc = evhttp_uri_set_port(u->uri, port) < 0 ? PYLE_RANGE : 0;
    pyle_uri_lock(0);
    return rc;
}

/* What another reader would take apart in another way: a path with a host or a scheme at its front,
 * and what only a host can have. */
static int misleads(const struct evhttp_uri *uri)
{
    const char *path = evhttp_uri_get_path(uri);

    if (evhttp_uri_get_host(uri))
        return 0;
    if (evhttp_uri_get_userinfo(uri) || evhttp_uri_get_port(uri) >= 0)
        return 1;
    if (!path)
        return 0;
    return strncmp(path, "//", 2) == 0 ||
           (!evhttp_uri_get_scheme(uri) && path[strcspn(path, ":/")] == ':');
}

int pyle_uri_join(struct pyle_uri *u, struct pyle_text *text)
{
    size_t most = sizeof("://@:65535?#");
    const char *found;
    int i, rc = enter(u);
    char *out;

    if (rc < 0)
        return rc;
    rc = PYLE_NOMEM;
    for (i = 0; i < PARTS; ++i)
        if ((found = parts[i].get(u->uri)))
            most += strlen(found);
    out = malloc(most);
    if (out) {
        pyle_went_short();
        if (!misleads(u->uri) && evhttp_uri_join(u->uri, out, most))
            rc = take(text, out, TO_ITS_NUL);
        else {
            rc = pyle_went_short() ? PYLE_NOMEM : PYLE_RANGE;
            free(out);
        }
    }
    pyle_uri_lock(0);
    return rc;
}

/* ---- text ---- */

int pyle_uriencode(struct pyle_text *text, const char *data, size_t n, int space_to_plus)
{
    char *out;

    if (n > (size_t)INT_MAX)
        return PYLE_RANGE;
    pyle_went_short();
    out = evhttp_uriencode(data, (ev_ssize_t)n, space_to_plus);
    return take(text, out, TO_ITS_NUL);
}

int pyle_uridecode(struct pyle_text *text, const char *data, int plus)
{
    size_t n = 0;
    char *out;

    if (strlen(data) > INT_MAX)
        return PYLE_RANGE;
    pyle_went_short();
    out = evhttp_uridecode(data, plus, &n);
    return take(text, out, n);
}

int pyle_decode_uri(struct pyle_text *text, const char *uri)
{
    size_t i, n = 0, length = strlen(uri);
    char *out;

    if (length > INT_MAX)
        return PYLE_RANGE;
    /* It does not tell how many bytes it has made, and one of them may be a NUL. */
    for (i = 0; i < length; ++i, ++n)
        if (uri[i] == '%' && isxdigit((unsigned char)uri[i + 1]) && isxdigit((unsigned char)uri[i + 2]))
            i += 2;
    pyle_went_short();
    out = evhttp_decode_uri(uri);
    return take(text, out, n);
}

int pyle_htmlescape(struct pyle_text *text, const char *html)
{
    char *out;

    pyle_went_short();
    out = evhttp_htmlescape(html);
    return take(text, out, TO_ITS_NUL);
}

static int flatten(struct pyle_text *text, const struct evkeyvalq *pairs)
{
    const struct evkeyval *pair;
    size_t most = 1;
    char *p;

    for (pair = pairs->tqh_first; pair; pair = pair->next.tqe_next)
        most += strlen(pair->key) + strlen(pair->value) + 2;
    p = text->bytes = malloc(most);
    if (!p)
        return PYLE_NOMEM;
    for (pair = pairs->tqh_first; pair; pair = pair->next.tqe_next) {
        p = stpcpy(p, pair->key) + 1;
        p = stpcpy(p, pair->value) + 1;
    }
    text->n = (size_t)(p - text->bytes);
    return 0;
}

int pyle_parse_query(struct pyle_text *text, const char *query)
{
    struct evkeyvalq pairs;
    int rc;

    /* A value would end there. */
    if (strlen(query) > INT_MAX || strstr(query, "%00"))
        return PYLE_RANGE;
    pyle_went_short();
    if (evhttp_parse_query_str(query, &pairs) < 0)
        return pyle_went_short() ? PYLE_NOMEM : PYLE_RANGE;
    rc = flatten(text, &pairs);
    evhttp_clear_headers(&pairs);
    return rc;
}
