/* event2/http_struct.h */

#define EVHTTP_REQ_OWN_CONNECTION ...
#define EVHTTP_PROXY_REQUEST ...
#define EVHTTP_USER_OWNED ...
#define EVHTTP_REQ_DEFER_FREE ...
#define EVHTTP_REQ_NEEDS_FREE ...

struct evhttp_request {
    struct {
        struct evhttp_request *tqe_next;
        struct evhttp_request **tqe_prev;
    } next;
    struct evhttp_connection *evcon;
    int flags;
    struct evkeyvalq *input_headers;
    struct evkeyvalq *output_headers;
    char *remote_host;
    ev_uint16_t remote_port;
    char *host_cache;
    enum evhttp_request_kind kind;
    enum evhttp_cmd_type type;
    size_t headers_size;
    size_t body_size;
    char *uri;
    struct evhttp_uri *uri_elems;
    char major;
    char minor;
    int response_code;
    char *response_code_line;
    struct evbuffer *input_buffer;
    ev_int64_t ntoread;
    struct evbuffer *output_buffer;
    void (*cb)(struct evhttp_request *, void *);
    void *cb_arg;
    void (*chunk_cb)(struct evhttp_request *, void *);
    int (*header_cb)(struct evhttp_request *, void *);
    void (*error_cb)(enum evhttp_request_error, void *);
    void (*on_complete_cb)(struct evhttp_request *, void *);
    void *on_complete_cb_arg;
    ...;
};
