/* HTTP: what http.c and the client's side share. */
#ifndef PYLE_HTTP_H
#define PYLE_HTTP_H

#include "pyle.h"

#include <event2/http_struct.h>
#include <event2/keyvalq_struct.h>

/* A struct evhttp_request with a count. evhttp frees it when it is done with it: where Python may be
 * looking at it, EVHTTP_REQ_DEFER_FREE is set, and then it is pyle_request_over() that frees it. */
struct pyle_request {
    struct evhttp_request *req; /* NULL once freed */
    struct pyle_base *pb;       /* counted; NULL: a client's that nobody has made yet */
    long long token;
    int refs;
    int over;                   /* evhttp is done with it */
    int owned;                  /* own(): to be read all the same */
    uintptr_t user;             /* the thread inside one of our calls, or 0 */
    int depth;
    struct pyle_buf *bufs[2];   /* of the output and the input, if Python has them; they count us */
    void (*dropped)(struct pyle_request *); /* Python lets go of it */
    /* the rest is a server's, see http.c */
    struct pyle_http *server;   /* whose connection it came on, counted */
    struct pyle_http_conn *conn; /* NULL: evhttp has it no more */
    long long route;            /* of its handler */
    int python;                 /* how many objects of Python's there are for it */
    int plain;                  /* no TLS: files go by sendfile */
    int delivering;             /* the handler runs */
    int undelivered;            /* it is to be called again */
    int answered;               /* 1: begun, 2: all of it */
    long long left;             /* to come, of the Content-Length promised; -1: none was */
    int told;                   /* there is something to be told, in the loop */
    int pending;                /* and that is what: PYLE_HTTP_CHUNK and so on */
    int error;                  /* for PYLE_HTTP_FAILED: an EVREQ_HTTP_* */
    int chunks, chunks_written; /* those whose callback waits */
    int waiting;                /* a chunk is to be written */
    int queued;
    struct pyle_request *next;  /* on server->queue */
    struct pyle_exchange *exchange; /* a client's: until it is over */
    int made;                   /* the same: and from then on */
    struct evbuffer *shown[2];  /* the same: what bufs are of, while evhttp works with others; or NULL */
};

struct pyle_request *pyle_request_make(struct pyle_owned *owned, struct pyle_base *pb, long long token);
void pyle_request_hold(struct pyle_request *r);
void pyle_request_put(struct pyle_request *r); /* lets go of a reference of C's own */
void pyle_request_lock(int on); /* for bufs */
int pyle_request_enter(struct pyle_request *r);
int pyle_request_leave(struct pyle_request *r, int rc);
/* evhttp is done with it, and frees it next, or (left) leaves that to us. */
void pyle_request_over(struct pyle_request *r, int left);

/* http_scan.c */
struct pyle_scan {
    size_t seen;                /* so many bytes of the input were looked at */
    size_t line;                /* where the line starts that they end in */
    int state;
    int n;                      /* characters of that state's */
    char word[32];
    int header;                 /* which one it is in */
    char minor;                 /* of HTTP/1. */
    int no_body, chunked, has_host, upgrade;
    long long length;           /* the Content-Length, or -1 */
    long long left;             /* of the body, or of a chunk */
};
void pyle_scan_start(struct pyle_scan *scan); /* a request: with it what there is begins */
int pyle_scan(struct pyle_scan *scan, struct evbuffer *input); /* -1: not HTTP from scan->line on */
int pyle_scan_stopped(const struct pyle_scan *scan); /* what follows may be anything: CONNECT, Upgrade */
void pyle_scan_drained(struct pyle_scan *scan, size_t n);
int pyle_is_token(const char *name, size_t n);

#endif
