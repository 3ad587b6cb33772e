/* Records with a tag (event2/tag.h). libevent writes them, into a buffer of its own first, so that
 * a record comes into the user's buffer whole or not at all. They are read here: libevent's readers
 * remove a record by parts, with the user's callbacks in between and what is left of it when it
 * turns out to be a bad one, and in 2.1.12 they read past the memory that they have pulled up.
 * PYLE_RANGE: malformed, or not what was asked for; PYLE_NONE: the buffer ends before it does.
 * Then nothing was removed. */
#include "pyle.h"

#include <limits.h>

#define START 32    /* more than a header and a timeval take */
#define COPIED 4096 /* a record up to this size is copied: a chain of its own would be longer */

struct record {
    uint64_t tag, payload;
    size_t header;               /* the length of tag and length */
    size_t n;                    /* how many of its first bytes are in start */
    unsigned char start[START];
};

/* ---- what the bytes mean: a length, or one of the above ---- */

/* Seven bits a byte, the lowest first; the high bit says that there are more. */
static int decode_tag(const unsigned char *p, size_t n, uint64_t *tag)
{
    size_t i;

    *tag = 0;
    for (i = 0; i < n; ++i) {
        if (i == 4 && p[i] > 15)
            return PYLE_RANGE;
        *tag |= (uint64_t)(p[i] & 127) << (7 * i);
        if (p[i] < 128)
            return (int)i + 1;
    }
    return PYLE_NONE;
}

/* Half bytes: how many there are less one, then the number's, the lowest first. */
static int decode_int(const unsigned char *p, size_t n, int most, uint64_t *number)
{
    int i, halves, length;

    if (n == 0)
        return PYLE_NONE;
    halves = (p[0] >> 4) + 1;
    length = halves / 2 + 1;
    if (halves > most)
        return PYLE_RANGE;
    if ((size_t)length > n)
        return PYLE_NONE;
    *number = 0;
    for (i = halves; i > 0; --i)
        *number = *number << 4 | (i & 1 ? p[i / 2] & 15 : p[i / 2] >> 4);
    return length;
}

/* An integer that has to lie in the payload. */
static int decode_part(const struct record *r, size_t offset, int most, uint64_t *number)
{
    size_t n = r->n - r->header < r->payload ? r->n - r->header : (size_t)r->payload;
    int rc = decode_int(r->start + r->header + offset, n - offset, most, number);

    return rc == PYLE_NONE ? PYLE_RANGE : rc;
}

static int look(struct evbuffer *buf, struct record *r)
{
    ev_ssize_t n = evbuffer_copyout(buf, r->start, START);

    r->n = n < 0 ? 0 : (size_t)n;
    r->header = 0;
    r->payload = 0;
    return n < 0 ? PYLE_FAIL : 0;
}

static int read_header(struct evbuffer *buf, struct record *r)
{
    int length, rc = look(buf, r);

    if (rc == 0)
        rc = decode_tag(r->start, r->n, &r->tag);
    if (rc < 0)
        return rc;
    length = decode_int(r->start + rc, r->n - (size_t)rc, 8, &r->payload);
    if (length < 0)
        return length;
    r->header = (size_t)(rc + length);
    return 0;
}

/* The record at the front: it has this tag (-1: any), this length (-1: any), and is all there. */
static int find(struct evbuffer *buf, long long need_tag, ssize_t need_length, struct record *r)
{
    int rc = read_header(buf, r);

    if (rc < 0)
        return rc;
    if ((need_tag >= 0 && r->tag != (uint64_t)need_tag) ||
        (need_length >= 0 && r->payload != (uint64_t)need_length) || r->payload > INT_MAX)
        return PYLE_RANGE;
    return evbuffer_get_length(buf) - r->header < r->payload ? PYLE_NONE : 0;
}

/* ---- writing ---- */

static struct evbuffer *new_record(size_t room)
{
    struct evbuffer *out = evbuffer_new();

    if (out && evbuffer_expand(out, room) < 0) { /* or evtag_* would leave out what has no room */
        evbuffer_free(out);
        out = NULL;
    }
    return out;
}

static int add_record(struct evbuffer *buf, struct evbuffer *out)
{
    size_t n = evbuffer_get_length(out);

    return n > COPIED ? evbuffer_add_buffer(buf, out)
                      : evbuffer_add(buf, evbuffer_pullup(out, -1), n);
}

int pyle_tag_encode(struct pyle_buf *b, int what, unsigned tag, uint64_t number, unsigned micros)
{
    struct pyle_call c;
    struct evbuffer *out;
    struct timeval tv = {(time_t)number, (suseconds_t)micros};
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    out = new_record(START);
    if (!out)
        return (int)pyle_buf_leave(&c, PYLE_NOMEM);
    if (what == PYLE_TAG_TAG)
        evtag_marshal(out, tag, "", 0);
    else if (what == PYLE_TAG_INT)
        evtag_encode_int(out, (ev_uint32_t)number);
    else if (what == PYLE_TAG_INT64)
        evtag_encode_int64(out, number);
    else if (what == PYLE_TAG_MARSHAL_INT)
        evtag_marshal_int(out, tag, (ev_uint32_t)number);
    else if (what == PYLE_TAG_MARSHAL_INT64)
        evtag_marshal_int64(out, tag, number);
    else
        evtag_marshal_timeval(out, tag, &tv);
    if (what == PYLE_TAG_TAG) /* no header has evtag_encode_tag: drop the length, one byte */
        rc = evbuffer_add(b->buf, evbuffer_pullup(out, -1), evbuffer_get_length(out) - 1);
    else
        rc = add_record(b->buf, out);
    if (rc < 0)
        rc = pyle_failed();
    evbuffer_free(out);
    return (int)pyle_buf_leave(&c, rc);
}

int pyle_tag_marshal(struct pyle_buf *b, unsigned tag, const void *data, unsigned n)
{
    struct pyle_call c;
    struct evbuffer *out;
    int rc = pyle_buf_enter(&c, b, 1);

    if (rc < 0)
        return rc;
    out = new_record((size_t)n + PYLE_TAG_HEADER);
    if (!out)
        return (int)pyle_buf_leave(&c, PYLE_NOMEM);
    evtag_marshal(out, tag, data, n);
    if (add_record(b->buf, out) < 0)
        rc = pyle_failed();
    evbuffer_free(out);
    return (int)pyle_buf_leave(&c, rc);
}

static ssize_t marshal_buffer(struct evbuffer *buf, struct evbuffer *payload, size_t tag)
{
    size_t n = evbuffer_get_length(payload);
    struct evbuffer *out;
    ssize_t rc = PYLE_FAIL;

    if (buf == payload || n > INT_MAX)
        return PYLE_RANGE;
    if (evbuffer_commit_space(buf, NULL, 0) < 0)
        return PYLE_FAIL; /* frozen */
    out = new_record(PYLE_TAG_HEADER);
    if (!out)
        return PYLE_NOMEM;
    evtag_marshal_buffer(out, (ev_uint32_t)tag, payload);
    if (evbuffer_get_length(out) > n) /* all of it; a frozen one gives nothing */
        rc = add_record(buf, out);
    evbuffer_free(out);
    return rc;
}

int pyle_tag_marshal_buffer(struct pyle_buf *b, unsigned tag, struct pyle_buf *payload)
{
    return (int)pyle_buf_move(b, payload, marshal_buffer, tag);
}

/* ---- looking ---- */

ssize_t pyle_tag_peek(struct pyle_buf *b, int what)
{
    struct pyle_call c;
    struct record r;
    ssize_t rc = pyle_buf_enter_to_read(&c, b, 0);

    if (rc < 0)
        return rc;
    if (what == PYLE_TAG_TAG) {
        rc = look(b->buf, &r);
        if (rc == 0 && (rc = decode_tag(r.start, r.n, &r.tag)) >= 0)
            rc = (ssize_t)r.tag;
    } else {
        rc = read_header(b->buf, &r);
        if (rc == 0)
            rc = (ssize_t)r.payload + (what == PYLE_TAG_LENGTH ? (ssize_t)r.header : 0);
    }
    return pyle_buf_leave(&c, rc);
}

/* ---- taking ---- */

static ssize_t take(struct pyle_call *c, size_t n, ssize_t rc)
{
    if (rc >= 0 && evbuffer_drain(c->b->buf, n) < 0)
        rc = pyle_failed();
    return pyle_buf_leave(c, rc);
}

int pyle_tag_decode(struct pyle_buf *b, int what, uint64_t *number)
{
    struct pyle_call c;
    struct record r;
    int rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = look(b->buf, &r);
    if (rc == 0 && what == PYLE_TAG_TAG)
        rc = decode_tag(r.start, r.n, number);
    else if (rc == 0)
        rc = decode_int(r.start, r.n, what == PYLE_TAG_INT ? 8 : 16, number);
    return (int)take(&c, (size_t)rc, rc);
}

ssize_t pyle_tag_unmarshal_header(struct pyle_buf *b, unsigned *tag)
{
    struct pyle_call c;
    struct record r;
    ssize_t rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = find(b->buf, -1, -1, &r);
    if (rc == 0) {
        *tag = (unsigned)r.tag;
        rc = (ssize_t)r.payload;
    }
    return take(&c, r.header, rc);
}

int pyle_tag_consume(struct pyle_buf *b)
{
    struct pyle_call c;
    struct record r;
    int rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = find(b->buf, -1, -1, &r);
    return (int)take(&c, r.header + (size_t)r.payload, rc);
}

int pyle_tag_unmarshal_int(struct pyle_buf *b, unsigned tag, int bits, uint64_t *number)
{
    struct pyle_call c;
    struct record r;
    int rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = find(b->buf, tag, -1, &r);
    if (rc == 0)
        rc = decode_part(&r, 0, bits / 4, number);
    return (int)take(&c, r.header + (size_t)r.payload, rc);
}

int pyle_tag_unmarshal_timeval(struct pyle_buf *b, unsigned tag, uint64_t *seconds, uint64_t *micros)
{
    struct pyle_call c;
    struct record r;
    int rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = find(b->buf, tag, -1, &r);
    if (rc == 0)
        rc = decode_part(&r, 0, 8, seconds);
    if (rc > 0)
        rc = decode_part(&r, (size_t)rc, 8, micros);
    return (int)take(&c, r.header + (size_t)r.payload, rc);
}

ssize_t pyle_tag_unmarshal_bytes(struct pyle_buf *b, unsigned tag, ssize_t length, char *out,
                                 size_t size)
{
    struct pyle_call c;
    struct record r;
    ssize_t rc = pyle_buf_enter_to_read(&c, b, 1);

    if (rc < 0)
        return rc;
    rc = find(b->buf, tag, length, &r);
    if (rc == 0 && r.header + r.payload > size)
        rc = PYLE_SMALL;
    if (rc == 0) {
        if (evbuffer_remove(b->buf, out, r.header + (size_t)r.payload) < 0) {
            rc = pyle_failed();
        } else {
            rc = (ssize_t)r.payload;
            memmove(out, out + r.header, (size_t)r.payload);
        }
    }
    return pyle_buf_leave(&c, rc);
}

static ssize_t unmarshal(struct evbuffer *buf, struct evbuffer *src, size_t unused)
{
    struct record r;
    struct evbuffer *one;
    ssize_t rc = buf == src ? PYLE_RANGE : find(src, -1, -1, &r);

    (void)unused;
    if (rc < 0)
        return rc;
    if (evbuffer_commit_space(buf, NULL, 0) < 0)
        return PYLE_FAIL; /* frozen */
    one = evbuffer_new();
    if (!one)
        return PYLE_NOMEM;
    if (pyle_move_part(one, src, r.header + (size_t)r.payload) < 0 ||
        evbuffer_drain(one, r.header) < 0 || evbuffer_add_buffer(buf, one) < 0)
        rc = pyle_failed();
    else
        rc = (ssize_t)r.tag;
    evbuffer_free(one);
    return rc;
}

ssize_t pyle_tag_unmarshal(struct pyle_buf *src, struct pyle_buf *dst)
{
    return pyle_buf_move(dst, src, unmarshal, 0);
}
