/* What tls.c offers the Python layer, in the optional second module. Unless it says otherwise, a
 * function returns 0 or more for success and -1 with *why filled in. */

struct pyle_tls_why {          /* a failure of OpenSSL's */
    unsigned long code;        /* of the first error in its queue, 0: none */
    int kind;                  /* SSL_ERROR_* */
    int truncated;             /* the peer has gone without a close_notify */
    int verify;                /* X509_V_ERR_*, if that is what failed */
    int error;                 /* errno, where there is no code */
};
/* The texts of it: 256 bytes each. */
void pyle_tls_texts(const struct pyle_tls_why *, char *library, char *reason, char *verify);

/* ---- contexts ---- */
SSL_CTX *pyle_ctx_new(int server, struct pyle_tls_why *why); /* NULL: failed */
void pyle_ctx_free(SSL_CTX *);
int pyle_ctx_load_cert_chain(SSL_CTX *, const char *certificate, const char *key,
                             const char *password, int length, struct pyle_tls_why *why);
int pyle_ctx_load_verify_locations(SSL_CTX *, const char *file, const char *path,
                                   struct pyle_tls_why *why);
int pyle_ctx_load_verify_data(SSL_CTX *, const char *data, int length, int der,
                              struct pyle_tls_why *why);
int pyle_ctx_set_default_verify_paths(SSL_CTX *, struct pyle_tls_why *why);
void pyle_ctx_set_verify(SSL_CTX *, int required, int optional);
int pyle_ctx_set_version(SSL_CTX *, int maximum, int version, struct pyle_tls_why *why);
int pyle_ctx_get_version(SSL_CTX *, int maximum);
int pyle_ctx_set_ciphers(SSL_CTX *, const char *names, int tls13, struct pyle_tls_why *why);
int pyle_ctx_set_alpn(SSL_CTX *, const char *protocols, int length);
int pyle_ctx_set_num_tickets(SSL_CTX *, size_t n);
size_t pyle_ctx_get_num_tickets(SSL_CTX *);
int pyle_ctx_set_keylog(SSL_CTX *, int fd);                    /* takes fd over, -1: none */
void pyle_ctx_set_sni(SSL_CTX *, int on);

/* ---- connections ---- */
struct pyle_tls *pyle_tls_new(SSL_CTX *, int server, struct pyle_base *, long long token); /* NULL: no memory */
void pyle_tls_unref(struct pyle_tls *);
SSL *pyle_tls_ssl(struct pyle_tls *);
int pyle_tls_set_host(struct pyle_tls *, const char *name, int is_ip, int verify,
                      struct pyle_tls_why *why);
int pyle_tls_set_session(struct pyle_tls *, SSL_SESSION *, struct pyle_tls_why *why);
void pyle_tls_set_context(struct pyle_tls *, SSL_CTX *);       /* in the SNI callback */
int pyle_tls_failure(struct pyle_tls *, struct pyle_tls_why *out); /* 0: there was none */
int pyle_tls_connected(struct pyle_tls *);
const char *pyle_tls_version(struct pyle_tls *);
const char *pyle_tls_cipher(struct pyle_tls *, const char **version, int *bits); /* NULL: none */
int pyle_tls_alpn(struct pyle_tls *, const unsigned char **name);
int pyle_tls_peer(struct pyle_tls *, unsigned char *out, int size); /* DER's length, 0: none */
const char *pyle_tls_server_name(struct pyle_tls *);           /* that the client has named, or NULL */
int pyle_tls_session_reused(struct pyle_tls *);
SSL_SESSION *pyle_tls_session(struct pyle_tls *);              /* a reference, or NULL */
int pyle_tls_dirty(struct pyle_tls *, int allow);              /* -1: just tell */
void SSL_SESSION_free(SSL_SESSION *);
int SSL_SESSION_is_resumable(const SSL_SESSION *);

const struct pyle_tls_hooks *pyle_tls_hooks(void);
void pyle_tls_serve(const struct pyle_tls_services *);

#define PYLE_SNI_ALERT 16 /* and an alert's number: what pyle_py_sni answers */
