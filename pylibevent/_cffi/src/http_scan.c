/* What comes from a client, looked at before evhttp reads it: where one request ends and the next one
 * begins is to be what anybody else takes it for. evhttp lets pass a bare LF, white space around
 * names, signs in numbers, lines without an end, two lengths, and a body where it reads none. */
#include "http.h"

#include <ctype.h>

enum {
    METHOD, TARGET, VERSION, LINE_LF,
    NAME, VALUE, VALUE_LF, END_LF,
    BODY,
    CHUNK, CHUNK_LF, DATA, DATA_CR, DATA_LF,
    TRAILER, TRAILER_LF,
    OPAQUE
};

enum { OTHER, LENGTH, CODING, HOST, UPGRADE };

static const char token_chars[256] = {
    ['!'] = 1, ['#'] = 1, ['$'] = 1, ['%'] = 1, ['&'] = 1, ['\''] = 1, ['*'] = 1, ['+'] = 1, ['-'] = 1,
    ['.'] = 1, ['^'] = 1, ['_'] = 1, ['`'] = 1, ['|'] = 1, ['~'] = 1,
    ['0' ... '9'] = 1, ['A' ... 'Z'] = 1, ['a' ... 'z'] = 1,
};

int pyle_is_token(const char *name, size_t n)
{
    size_t i;

    for (i = 0; i < n && token_chars[(unsigned char)name[i]]; ++i)
        ;
    return n > 0 && i == n;
}

static void keep(struct pyle_scan *scan, char c)
{
    if (scan->n < (int)sizeof(scan->word) - 1)
        scan->word[scan->n] = c;
    if (scan->n < (int)sizeof(scan->word))
        ++scan->n;
}

/* What was kept, "" if it was too long. */
static const char *word(struct pyle_scan *scan)
{
    scan->word[scan->n < (int)sizeof(scan->word) ? scan->n : 0] = '\0';
    scan->n = 0;
    return scan->word;
}

static int which(const char *name)
{
    return strcmp(name, "content-length") == 0      ? LENGTH
           : strcmp(name, "transfer-encoding") == 0 ? CODING
           : strcmp(name, "host") == 0              ? HOST
           : strcmp(name, "upgrade") == 0           ? UPGRADE
                                                    : OTHER;
}

static int digits(const char *text)
{
    size_t n = strspn(text, "0123456789");

    return n > 0 && n <= 18 && text[n] == '\0';
}

static int end_of_header(struct pyle_scan *scan)
{
    const char *value;

    while (scan->n > 0 && scan->n < (int)sizeof(scan->word) &&
           (scan->word[scan->n - 1] == ' ' || scan->word[scan->n - 1] == '\t'))
        --scan->n;
    value = word(scan);
    switch (scan->header) {
    case LENGTH:
        if (scan->length >= 0 || !digits(value))
            return -1;
        scan->length = strtoll(value, NULL, 10);
        break;
    case CODING:
        if (scan->chunked || evutil_ascii_strcasecmp(value, "chunked") != 0)
            return -1;
        scan->chunked = 1;
        break;
    case HOST:
        if (scan->has_host)
            return -1;
        scan->has_host = 1;
        break;
    case UPGRADE: scan->upgrade = 1; break;
    default: break;
    }
    scan->state = NAME;
    return 0;
}

static void end_of_request(struct pyle_scan *scan)
{
    int upgrade = scan->upgrade;

    pyle_scan_start(scan);
    if (upgrade)
        scan->state = OPAQUE;
}

static int end_of_headers(struct pyle_scan *scan)
{
    if (scan->chunked && (scan->length >= 0 || scan->minor == '0'))
        return -1;
    if (scan->no_body && (scan->chunked || scan->length > 0))
        return -1; /* evhttp would take it for the next request */
    scan->left = scan->length;
    if (scan->chunked)
        scan->state = CHUNK;
    else if (scan->length > 0)
        scan->state = BODY;
    else
        end_of_request(scan);
    return 0;
}

static void end_of_method(struct pyle_scan *scan)
{
    const char *method = word(scan);

    scan->upgrade = strcmp(method, "CONNECT") == 0; /* so is what follows */
    scan->no_body = scan->upgrade ||
                    (strcmp(method, "GET") != 0 && strcmp(method, "POST") != 0 && strcmp(method, "PUT") != 0 &&
                     strcmp(method, "PATCH") != 0 && strcmp(method, "DELETE") != 0 &&
                     strcmp(method, "OPTIONS") != 0);
}

static int hex(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Of a line; -1: it is none that may be here. */
static int step(struct pyle_scan *scan, char c)
{
    static const char http[] = "HTTP/1.";

    switch (scan->state) {
    case METHOD:
        if (c == ' ' && scan->n > 0) {
            end_of_method(scan);
            scan->state = TARGET;
        } else if (token_chars[(unsigned char)c]) {
            keep(scan, c);
        } else {
            return -1;
        }
        return 0;
    case TARGET:
        if (c == ' ' && scan->n > 0) {
            scan->state = VERSION;
            scan->n = 0;
        } else if ((unsigned char)c > ' ' && c != 127) {
            scan->n = 1;
        } else {
            return -1;
        }
        return 0;
    case VERSION:
        if (scan->n < 7 ? c != http[scan->n] : scan->n == 7 ? c != '0' && c != '1' : c != '\r')
            return -1;
        if (scan->n == 7)
            scan->minor = c;
        if (scan->n++ == 8) {
            scan->n = 0;
            scan->state = LINE_LF;
        }
        return 0;
    case LINE_LF:
        scan->state = NAME;
        return c == '\n' ? 0 : -1;
    case NAME:
        if (token_chars[(unsigned char)c]) {
            keep(scan, (char)tolower((unsigned char)c));
        } else if (c == ':' && scan->n > 0) {
            scan->header = which(word(scan));
            scan->state = VALUE;
        } else if (c == '\r' && scan->n == 0) {
            scan->state = END_LF;
        } else {
            return -1;
        }
        return 0;
    case VALUE:
        if (c == '\r')
            scan->state = VALUE_LF;
        else if (((unsigned char)c < ' ' && c != '\t') || c == 127)
            return -1;
        else if (scan->header != OTHER && (scan->n > 0 || (c != ' ' && c != '\t')))
            keep(scan, c);
        return 0;
    case VALUE_LF: return c == '\n' ? end_of_header(scan) : -1;
    case END_LF: return c == '\n' ? end_of_headers(scan) : -1;
    case CHUNK:
        if (c == '\r' && scan->n > 0) {
            scan->state = CHUNK_LF;
        } else if (hex(c) >= 0 && scan->n < 15) {
            scan->left = scan->n++ ? scan->left * 16 + hex(c) : hex(c);
        } else {
            return -1;
        }
        return 0;
    case CHUNK_LF:
        scan->n = 0;
        scan->state = scan->left ? DATA : TRAILER;
        return c == '\n' ? 0 : -1;
    case DATA_CR: scan->state = DATA_LF; return c == '\r' ? 0 : -1;
    case DATA_LF: scan->state = CHUNK; return c == '\n' ? 0 : -1;
    case TRAILER: scan->state = TRAILER_LF; return c == '\r' ? 0 : -1; /* none: evhttp makes headers of them */
    case TRAILER_LF: end_of_request(scan); return c == '\n' ? 0 : -1;
    default: return 0;
    }
}

void pyle_scan_start(struct pyle_scan *scan)
{
    size_t seen = scan->seen;

    memset(scan, 0, sizeof(*scan));
    scan->seen = scan->line = seen;
    scan->length = -1;
}

/* -1: the line that starts at scan->line is none. */
static int scan_bytes(struct pyle_scan *scan, const char *bytes, size_t n)
{
    size_t i = 0;

    while (i < n) {
        if (scan->state == OPAQUE) {
            scan->seen += n - i;
            return 0;
        }
        if (scan->state == BODY || scan->state == DATA) {
            size_t skip = n - i < (size_t)scan->left ? n - i : (size_t)scan->left;

            scan->left -= (long long)skip;
            scan->seen += skip;
            scan->line = scan->seen;
            i += skip;
            if (scan->left > 0)
                continue;
            if (scan->state == DATA)
                scan->state = DATA_CR;
            else
                end_of_request(scan);
            continue;
        }
        if (step(scan, bytes[i]) < 0)
            return -1;
        ++scan->seen;
        if (bytes[i++] == '\n')
            scan->line = scan->seen;
    }
    return 0;
}

int pyle_scan(struct pyle_scan *scan, struct evbuffer *input)
{
    struct evbuffer_iovec vecs[8];
    struct evbuffer_ptr at;
    int i, n;

    while (evbuffer_get_length(input) > scan->seen) {
        if (evbuffer_ptr_set(input, &at, scan->seen, EVBUFFER_PTR_SET) < 0)
            return 0;
        n = evbuffer_peek(input, -1, &at, vecs, 8);
        for (i = 0; i < n && i < 8; ++i)
            if (scan_bytes(scan, vecs[i].iov_base, vecs[i].iov_len) < 0)
                return -1;
    }
    return 0;
}

int pyle_scan_stopped(const struct pyle_scan *scan)
{
    return scan->state == OPAQUE;
}

void pyle_scan_drained(struct pyle_scan *scan, size_t n)
{
    scan->seen -= n < scan->seen ? n : scan->seen;
    scan->line -= n < scan->line ? n : scan->line;
}
