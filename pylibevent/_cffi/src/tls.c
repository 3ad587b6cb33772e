/* TLS: contexts, and what bufferevent.c needs of OpenSSL (struct pyle_tls_hooks). The only source
 * file of the second module, which alone is linked with OpenSSL.
 *
 * libevent keeps a pointer to the SSL and never owns it. Its functions may be in the middle of
 * SSL_read when a callback closes the bufferevent: the SSL loses its socket then, and is freed by a
 * finalizer, which the loop runs when no callback does. */
#include "pyle.h"

#include <event2/bufferevent_ssl.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <unistd.h>

#include "../cdef/shim_ssl.h"
#include "../cdef/callbacks_ssl.h"

#define RECORD 16384

struct pyle_tls {
    SSL *ssl;
    struct pyle_base *pb;      /* counted by the bufferevent; used in its callbacks only */
    struct event *finalizer;   /* libevent's to free: event_base_free looks at it after the call */
    int refs;                  /* Python's, and the bufferevent's */
    int slot;
    long long token;
    signed char server, asking, shaken, connected, failed, dead, dirty, told, ended;
    signed char early;         /* why is of an end that 1: libevent has yet to meet, 2: it has met */
    struct pyle_tls_why why;
};

struct ctx_data {              /* lives as long as the SSL_CTX */
    unsigned char *alpn;
    unsigned alpn_length;
    int keylog_fd;
};

static const struct pyle_tls_services *services;
static int ctx_index = -1;

/* ---- errors ---- */

static int explain(struct pyle_tls_why *why)
{
    memset(why, 0, sizeof(*why));
    why->code = ERR_peek_error();
    why->error = why->code ? 0 : errno;
    ERR_clear_error();
    return -1;
}

void pyle_tls_texts(const struct pyle_tls_why *why, char *library, char *reason, char *verify)
{
    const char *text = why->code ? ERR_lib_error_string(why->code) : NULL;

    snprintf(library, 256, "%s", text ? text : "");
    text = why->code ? ERR_reason_error_string(why->code) : NULL;
    snprintf(reason, 256, "%s", text ? text : "");
    snprintf(verify, 256, "%s", why->verify ? X509_verify_cert_error_string(why->verify) : "");
}

/* ---- contexts ---- */

static void free_data(void *parent, void *ptr, CRYPTO_EX_DATA *ad, int index, long argl, void *argp)
{
    struct ctx_data *data = ptr;

    (void)parent, (void)ad, (void)index, (void)argl, (void)argp;
    if (!data)
        return;
    if (data->keylog_fd >= 0)
        close(data->keylog_fd);
    free(data->alpn);
    free(data);
}

static struct ctx_data *data_of(const SSL_CTX *ctx)
{
    return SSL_CTX_get_ex_data(ctx, ctx_index);
}

/* Without one OpenSSL would ask on the terminal. */
static int no_password(char *out, int size, int writing, void *arg)
{
    (void)out, (void)size, (void)writing, (void)arg;
    return -1;
}

SSL_CTX *pyle_ctx_new(int server, struct pyle_tls_why *why)
{
    static const unsigned char id[] = "pylibevent";
    struct ctx_data *data = calloc(1, sizeof(*data));
    SSL_CTX *ctx;

    ERR_clear_error();
    ctx = data ? SSL_CTX_new(server ? TLS_server_method() : TLS_client_method()) : NULL;
    if (!ctx || !SSL_CTX_set_ex_data(ctx, ctx_index, data)) {
        explain(why);
        SSL_CTX_free(ctx);
        free(data);
        return NULL;
    }
    data->keylog_fd = -1;
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_CIPHER_SERVER_PREFERENCE);
    /* libevent hands whole chunks of the output over, whatever the rate limit: a record, then. */
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE);
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_session_id_context(ctx, id, sizeof(id) - 1);
    SSL_CTX_set_default_passwd_cb(ctx, no_password);
    X509_VERIFY_PARAM_set_hostflags(SSL_CTX_get0_param(ctx), X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS |
                                                                 X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    return ctx;
}

void pyle_ctx_free(SSL_CTX *ctx)
{
    SSL_CTX_free(ctx);
}

struct password {
    const char *text;
    int length;
};

static int give_password(char *out, int size, int writing, void *arg)
{
    struct password *password = arg;

    (void)writing;
    if (!password->text || password->length > size)
        return -1;
    memcpy(out, password->text, (size_t)password->length);
    return password->length;
}

int pyle_ctx_load_cert_chain(SSL_CTX *ctx, const char *certificate, const char *key,
                             const char *password, int length, struct pyle_tls_why *why)
{
    struct password given = {password, length};
    int ok;

    ERR_clear_error();
    SSL_CTX_set_default_passwd_cb(ctx, give_password);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, &given);
    ok = SSL_CTX_use_certificate_chain_file(ctx, certificate) == 1 &&
         SSL_CTX_use_PrivateKey_file(ctx, key, SSL_FILETYPE_PEM) == 1 &&
         SSL_CTX_check_private_key(ctx) == 1;
    SSL_CTX_set_default_passwd_cb(ctx, no_password);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, NULL);
    return ok ? 0 : explain(why);
}

int pyle_ctx_load_verify_locations(SSL_CTX *ctx, const char *file, const char *path,
                                   struct pyle_tls_why *why)
{
    ERR_clear_error();
    return SSL_CTX_load_verify_locations(ctx, file, path) == 1 ? 0 : explain(why);
}

/* How many certificates there were. */
int pyle_ctx_load_verify_data(SSL_CTX *ctx, const char *data, int length, int der,
                              struct pyle_tls_why *why)
{
    X509_STORE *store = SSL_CTX_get_cert_store(ctx);
    BIO *bio = BIO_new_mem_buf(data, length);
    X509 *one;
    int n = 0, ok = 1;

    ERR_clear_error();
    while (bio && ok && BIO_pending(bio) > 0) {
        one = der ? d2i_X509_bio(bio, NULL) : PEM_read_bio_X509(bio, NULL, no_password, NULL);
        if (!one)
            break;
        ok = X509_STORE_add_cert(store, one) == 1;
        X509_free(one);
        ++n;
    }
    /* The end of a PEM file is a line that does not start; anything else is wrong. */
    if (n > 0 && ok && !der && ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE)
        ERR_clear_error();
    ok = ok && n > 0 && ERR_peek_error() == 0;
    BIO_free(bio);
    return ok ? n : explain(why);
}

int pyle_ctx_set_default_verify_paths(SSL_CTX *ctx, struct pyle_tls_why *why)
{
    ERR_clear_error();
    return SSL_CTX_set_default_verify_paths(ctx) == 1 ? 0 : explain(why);
}

void pyle_ctx_set_verify(SSL_CTX *ctx, int required, int optional)
{
    SSL_CTX_set_verify(ctx, required ? SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT
                            : optional ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, NULL);
}

int pyle_ctx_set_version(SSL_CTX *ctx, int maximum, int version, struct pyle_tls_why *why)
{
    ERR_clear_error();
    return (maximum ? SSL_CTX_set_max_proto_version(ctx, version)
                    : SSL_CTX_set_min_proto_version(ctx, version)) == 1 ? 0 : explain(why);
}

int pyle_ctx_get_version(SSL_CTX *ctx, int maximum)
{
    return (int)(maximum ? SSL_CTX_get_max_proto_version(ctx) : SSL_CTX_get_min_proto_version(ctx));
}

int pyle_ctx_set_ciphers(SSL_CTX *ctx, const char *names, int tls13, struct pyle_tls_why *why)
{
    ERR_clear_error();
    return (tls13 ? SSL_CTX_set_ciphersuites(ctx, names) : SSL_CTX_set_cipher_list(ctx, names)) == 1
               ? 0 : explain(why);
}

static int choose_protocol(SSL *ssl, const unsigned char **out, unsigned char *length,
                           const unsigned char *in, unsigned in_length, void *arg)
{
    struct ctx_data *data = data_of(arg);

    (void)ssl;
    return SSL_select_next_proto((unsigned char **)out, length, data->alpn, data->alpn_length, in,
                                 in_length) == OPENSSL_NPN_NEGOTIATED
               ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_NOACK;
}

int pyle_ctx_set_alpn(SSL_CTX *ctx, const char *protocols, int length)
{
    struct ctx_data *data = data_of(ctx);
    unsigned char *copy = length ? malloc((size_t)length) : NULL;

    if (length && !copy)
        return -1;
    if (length)
        memcpy(copy, protocols, (size_t)length);
    free(data->alpn);
    data->alpn = copy;
    data->alpn_length = (unsigned)length;
    SSL_CTX_set_alpn_select_cb(ctx, length ? choose_protocol : NULL, ctx);
    return SSL_CTX_set_alpn_protos(ctx, copy, (unsigned)length) == 0 ? 0 : -1;
}

int pyle_ctx_set_num_tickets(SSL_CTX *ctx, size_t n)
{
    return SSL_CTX_set_num_tickets(ctx, n) == 1 ? 0 : -1;
}

size_t pyle_ctx_get_num_tickets(SSL_CTX *ctx)
{
    return SSL_CTX_get_num_tickets(ctx);
}

/* One write a line: processes that share the file do not mix them up. */
static void log_key(const SSL *ssl, const char *line)
{
    struct ctx_data *data = data_of(SSL_get_SSL_CTX(ssl));
    size_t length = strlen(line);
    char *copy = data && data->keylog_fd >= 0 ? malloc(length + 1) : NULL;

    if (!copy)
        return;
    memcpy(copy, line, length);
    copy[length] = '\n';
    if (write(data->keylog_fd, copy, length + 1) < 0)
        errno = 0; /* as in the ssl module, nobody is told */
    free(copy);
}

int pyle_ctx_set_keylog(SSL_CTX *ctx, int fd)
{
    struct ctx_data *data = data_of(ctx);

    if (data->keylog_fd >= 0)
        close(data->keylog_fd);
    data->keylog_fd = fd;
    SSL_CTX_set_keylog_callback(ctx, fd >= 0 ? log_key : NULL);
    return 0;
}

static int on_server_name(SSL *ssl, int *alert, void *arg)
{
    struct pyle_tls *tls = SSL_get_app_data(ssl);
    struct pyle_base *pb = tls->pb;
    int answer;

    (void)arg;
    if (!pb || tls->told)
        return SSL_TLSEXT_ERR_OK;
    services->before();
    tls->asking = 1;
    answer = pyle_py_sni(tls->slot, tls->token, SSL_get_servername(ssl, TLSEXT_NAMETYPE_host_name));
    tls->asking = 0;
    if (answer == PYLE_RETRY || answer == PYLE_ERROR)
        services->raise(pb);
    services->after(pb);
    if (answer == PYLE_DONE)
        return SSL_TLSEXT_ERR_OK;
    *alert = answer >= PYLE_SNI_ALERT ? answer - PYLE_SNI_ALERT : SSL_AD_INTERNAL_ERROR;
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

void pyle_ctx_set_sni(SSL_CTX *ctx, int on)
{
    if (on)
        SSL_CTX_set_tlsext_servername_callback(ctx, on_server_name);
    else
        SSL_CTX_set_tlsext_servername_callback(ctx, NULL);
}

/* ---- connections ---- */

static void on_progress(const SSL *ssl, int where, int ret)
{
    struct pyle_tls *tls = SSL_get_app_data(ssl);

    (void)ret;
    if (where & SSL_CB_HANDSHAKE_DONE)
        tls->shaken = 1;
}

struct pyle_tls *pyle_tls_new(SSL_CTX *ctx, int server, struct pyle_base *pb, long long token)
{
    struct pyle_tls *tls = calloc(1, sizeof(*tls));

    if (!tls)
        return NULL;
    ERR_clear_error();
    tls->ssl = SSL_new(ctx);
    if (!tls->ssl) {
        free(tls);
        return NULL;
    }
    tls->refs = 1;
    tls->pb = pb;
    tls->slot = services->slot(pb);
    tls->token = token;
    tls->server = (signed char)server;
    SSL_set_app_data(tls->ssl, tls);
    SSL_set_info_callback(tls->ssl, on_progress);
    return tls;
}

void pyle_tls_unref(struct pyle_tls *tls)
{
    if (__atomic_sub_fetch(&tls->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        SSL_free(tls->ssl);
        free(tls);
    }
}

SSL *pyle_tls_ssl(struct pyle_tls *tls)
{
    return tls->ssl;
}

int pyle_tls_set_host(struct pyle_tls *tls, const char *name, int is_ip, int verify,
                      struct pyle_tls_why *why)
{
    int ok = 1;

    ERR_clear_error();
    if (verify)
        ok = is_ip ? X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(tls->ssl), name)
                   : SSL_set1_host(tls->ssl, name);
    if (ok && !is_ip)
        ok = (int)SSL_set_tlsext_host_name(tls->ssl, name);
    return ok == 1 ? 0 : explain(why);
}

int pyle_tls_set_session(struct pyle_tls *tls, SSL_SESSION *session, struct pyle_tls_why *why)
{
    ERR_clear_error();
    return SSL_set_session(tls->ssl, session) == 1 ? 0 : explain(why);
}

void pyle_tls_set_context(struct pyle_tls *tls, SSL_CTX *ctx)
{
    SSL_set_SSL_CTX(tls->ssl, ctx);
    SSL_set_verify(tls->ssl, SSL_CTX_get_verify_mode(ctx), NULL);
}

int pyle_tls_failure(struct pyle_tls *tls, struct pyle_tls_why *out)
{
    *out = tls->why;
    return tls->failed;
}

int pyle_tls_connected(struct pyle_tls *tls)
{
    return tls->connected;
}

const char *pyle_tls_version(struct pyle_tls *tls)
{
    return SSL_get_version(tls->ssl);
}

const char *pyle_tls_cipher(struct pyle_tls *tls, const char **version, int *bits)
{
    const SSL_CIPHER *cipher = SSL_get_current_cipher(tls->ssl);

    if (!cipher)
        return NULL;
    *version = SSL_CIPHER_get_version(cipher);
    *bits = SSL_CIPHER_get_bits(cipher, NULL);
    return SSL_CIPHER_get_name(cipher);
}

int pyle_tls_alpn(struct pyle_tls *tls, const unsigned char **name)
{
    unsigned length = 0;

    SSL_get0_alpn_selected(tls->ssl, name, &length);
    return (int)length;
}

int pyle_tls_peer(struct pyle_tls *tls, unsigned char *out, int size)
{
    X509 *peer = SSL_get_peer_certificate(tls->ssl);
    int length = peer ? i2d_X509(peer, NULL) : 0;

    if (peer && out && length <= size)
        i2d_X509(peer, &out);
    X509_free(peer);
    return length > 0 ? length : 0;
}

const char *pyle_tls_server_name(struct pyle_tls *tls)
{
    return SSL_get_servername(tls->ssl, TLSEXT_NAMETYPE_host_name);
}

int pyle_tls_session_reused(struct pyle_tls *tls)
{
    return SSL_session_reused(tls->ssl);
}

SSL_SESSION *pyle_tls_session(struct pyle_tls *tls)
{
    return SSL_get1_session(tls->ssl);
}

int pyle_tls_dirty(struct pyle_tls *tls, int allow)
{
    if (allow >= 0)
        tls->dirty = allow != 0;
    return tls->dirty;
}

/* ---- hooks ---- */

static void on_nothing(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what, (void)arg;
}

static struct bufferevent *open_on(struct pyle_tls *tls, struct event_base *base, int fd,
                                   struct bufferevent *under, int options)
{
    enum bufferevent_ssl_state state = tls->server ? BUFFEREVENT_SSL_ACCEPTING
                                                   : BUFFEREVENT_SSL_CONNECTING;
    struct bufferevent *bev;

    SSL_set_read_ahead(tls->ssl, under == NULL); /* a record in one read, not in two */
    tls->finalizer = event_new(base, -1, 0, on_nothing, tls);
    if (!tls->finalizer)
        return NULL;
    ERR_clear_error();
    bev = under ? bufferevent_openssl_filter_new(base, under, tls->ssl, state, options)
                : bufferevent_openssl_socket_new(base, fd, tls->ssl, state, options);
    if (bev)
        __atomic_add_fetch(&tls->refs, 1, __ATOMIC_RELAXED);
    else
        event_free(tls->finalizer);
    return bev;
}

static void leave(struct pyle_tls *tls)
{
    BIO *bio = SSL_get_rbio(tls->ssl);

    tls->told = 1;
    tls->pb = NULL;
    if (!bio)
        return;
    if (BIO_method_type(bio) == BIO_TYPE_SOCKET)
        BIO_set_fd(bio, -1, BIO_NOCLOSE);
    else
        BIO_set_data(bio, NULL);
}

static void on_finalized(struct event *ev, void *arg)
{
    (void)ev;
    pyle_tls_unref(arg);
}

static void release(struct pyle_tls *tls)
{
    event_free_finalize(0, tls->finalizer, on_finalized);
}

static int notify(struct pyle_tls *tls)
{
    int rc;

    if (tls->told || !tls->connected || tls->failed)
        return 1;
    ERR_clear_error();
    rc = SSL_shutdown(tls->ssl);
    if (rc < 0 && SSL_get_error(tls->ssl, rc) == SSL_ERROR_WANT_WRITE)
        return 0;
    ERR_clear_error();
    tls->told = 1;
    return 1;
}

static int pending(struct pyle_tls *tls)
{
    return tls->early ? tls->early == 1 : SSL_has_pending(tls->ssl);
}

static void find_truncation(struct pyle_tls_why *why)
{
#ifdef SSL_R_UNEXPECTED_EOF_WHILE_READING
    if (why->code && ERR_GET_LIB(why->code) == ERR_LIB_SSL &&
        ERR_GET_REASON(why->code) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
        why->truncated = 1;
#endif
    if (!why->code && why->error == 0)
        why->truncated = 1;
}

/* All that has been read ahead, and the rest of the last record: two records at most behind what
 * may be read besides. */
static int take(struct pyle_tls *tls, struct evbuffer *input, int most)
{
    struct evbuffer_iovec vec;
    int n, kind, total = 0;

    if (tls->early)
        return 0;
    while (SSL_has_pending(tls->ssl) &&
           evbuffer_reserve_space(input, RECORD, &vec, 1) == 1) {
        SSL_set_read_ahead(tls->ssl, total < most);
        ERR_clear_error();
        errno = 0;
        n = SSL_read(tls->ssl, vec.iov_base, RECORD);
        if (n > 0) {
            vec.iov_len = (size_t)n;
            evbuffer_commit_space(input, &vec, 1);
            total += n;
            continue;
        }
        kind = SSL_get_error(tls->ssl, n);
        if (kind != SSL_ERROR_WANT_READ && kind != SSL_ERROR_WANT_WRITE) {
            explain(&tls->why);
            tls->why.kind = kind;
            if (kind != SSL_ERROR_ZERO_RETURN)
                find_truncation(&tls->why);
            tls->early = 1;
        }
        break;
    }
    SSL_set_read_ahead(tls->ssl, 1);
    return tls->early ? -1 - total : total;
}

static void note(struct pyle_tls *tls, struct bufferevent *bev, int error)
{
    struct pyle_tls_why *why = &tls->why;
    unsigned long codes[4], one;
    int n = 0;
    long verify;

    while (n < 4 && (one = bufferevent_get_openssl_error(bev)) != 0)
        codes[n++] = one; /* the newest first, and last what SSL_get_error said */
    tls->failed = 1;
    if (tls->early)
        return;
    memset(why, 0, sizeof(*why));
    why->kind = n ? (int)codes[n - 1] : 0;
    why->code = n > 1 ? codes[n - 2] : 0;
    why->error = why->code ? 0 : error;
    find_truncation(why);
    verify = SSL_get_verify_result(tls->ssl);
    if (why->code && ERR_GET_LIB(why->code) == ERR_LIB_SSL &&
        ERR_GET_REASON(why->code) == SSL_R_CERTIFICATE_VERIFY_FAILED && verify != X509_V_OK)
        why->verify = (int)verify;
}

static int event(struct pyle_tls *tls, struct bufferevent *bev, int what, int error)
{
    const int about = BEV_EVENT_READING | BEV_EVENT_WRITING;

    if (tls->early && (what & (BEV_EVENT_ERROR | BEV_EVENT_EOF)))
        tls->early = 2;
    if (what & BEV_EVENT_CONNECTED && tls->shaken) /* anybody may trigger that event */
        tls->connected = 1;
    if (what & BEV_EVENT_ERROR) {
        tls->dead = 1;
        if (tls->ended)
            return what & ~(BEV_EVENT_ERROR | about); /* the socket's end, after the stream's */
        note(tls, bev, error);
        if (tls->why.truncated && tls->dirty && tls->connected) {
            what = (what & ~BEV_EVENT_ERROR) | BEV_EVENT_EOF;
            tls->failed = 0;
        }
    }
    if (what & BEV_EVENT_EOF) {
        if (tls->ended)
            return what & ~(BEV_EVENT_EOF | about);
        tls->ended = 1;
    }
    return what;
}

static int dead(struct pyle_tls *tls)
{
    return tls->dead;
}

static int asking(struct pyle_tls *tls)
{
    return tls->asking;
}

static void no_ahead(struct pyle_tls *tls)
{
    SSL_set_read_ahead(tls->ssl, 0);
}

const struct pyle_tls_hooks *pyle_tls_hooks(void)
{
    static const struct pyle_tls_hooks hooks = {open_on, leave, release, notify,
                                                pending, take,  event,   pyle_tls_connected,
                                                dead, asking, no_ahead};

    return &hooks;
}

void pyle_tls_serve(const struct pyle_tls_services *of_the_first)
{
    services = of_the_first;
    if (ctx_index < 0)
        ctx_index = SSL_CTX_get_ex_new_index(0, NULL, NULL, NULL, free_data);
}
