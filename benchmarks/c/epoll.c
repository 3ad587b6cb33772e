/* The echo server on bare epoll: the limit. Answers each line with `Client msg <line>`.
 *
 * It reads as much as there is, answers all whole lines by one write, and asks the kernel about
 * nothing else unless something is left over. Prints its port on stdout. */
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define PREFIX "Client msg "
#define PREFIX_LENGTH (sizeof(PREFIX) - 1)
#define CHUNK (1 << 18)

struct bytes {
    char *data;
    size_t length, space;
};

struct conn {
    int fd;
    struct bytes rest;   /* of a line that has no end yet */
    struct bytes unsent; /* while there is any, nothing is read */
};

static int epoll;
static char chunk[CHUNK];
static struct bytes answer;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void append(struct bytes *to, const char *data, size_t length)
{
    if (to->length + length > to->space) {
        to->space = 2 * (to->length + length);
        to->data = realloc(to->data, to->space);
        if (!to->data)
            die("realloc");
    }
    memcpy(to->data + to->length, data, length);
    to->length += length;
}

static void drop(struct conn *c)
{
    close(c->fd);
    free(c->rest.data);
    free(c->unsent.data);
    free(c);
}

static void watch(struct conn *c, int how, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};

    if (epoll_ctl(epoll, how, c->fd, &event) < 0)
        die("epoll_ctl");
}

/* How much of it went out; -1: the connection is gone. */
static ssize_t put(struct conn *c, const char *data, size_t length)
{
    ssize_t n = send(c->fd, data, length, MSG_NOSIGNAL);

    return n < 0 && errno == EAGAIN ? 0 : n;
}

static void on_writable(struct conn *c)
{
    ssize_t n = put(c, c->unsent.data, c->unsent.length);

    if (n < 0) {
        drop(c);
        return;
    }
    c->unsent.length -= (size_t)n;
    memmove(c->unsent.data, c->unsent.data + n, c->unsent.length);
    if (!c->unsent.length)
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void on_readable(struct conn *c)
{
    ssize_t n = recv(c->fd, chunk, CHUNK, 0);
    const char *line = chunk, *end;

    if (n <= 0) {
        if (n == 0 || errno != EAGAIN)
            drop(c);
        return;
    }
    answer.length = 0;
    while ((end = memchr(line, '\n', (size_t)(chunk + n - line)))) {
        append(&answer, PREFIX, PREFIX_LENGTH);
        append(&answer, c->rest.data, c->rest.length);
        append(&answer, line, (size_t)(end + 1 - line));
        c->rest.length = 0;
        line = end + 1;
    }
    if (line < chunk + n)
        append(&c->rest, line, (size_t)(chunk + n - line));
    if (!answer.length)
        return;
    n = put(c, answer.data, answer.length);
    if (n < 0) {
        drop(c);
    } else if ((size_t)n < answer.length) {
        append(&c->unsent, answer.data + n, answer.length - (size_t)n);
        watch(c, EPOLL_CTL_MOD, EPOLLOUT);
    }
}

static void accept_all(int listener)
{
    int fd, one = 1;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        struct conn *c = calloc(1, sizeof(*c));

        if (!c)
            die("calloc");
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
        watch(c, EPOLL_CTL_ADD, EPOLLIN);
    }
}

int main(void)
{
    struct epoll_event events[256], event = {.events = EPOLLIN, .data.ptr = NULL};
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);
    struct rlimit limit;
    int listener, n, i;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 ||
        listen(listener, 128) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die("listen");
    epoll = epoll_create1(0);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die("epoll");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (;;) {
        n = epoll_wait(epoll, events, 256, -1);
        for (i = 0; i < n; ++i) {
            struct conn *c = events[i].data.ptr;

            if (!c)
                accept_all(listener);
            else if (events[i].events & EPOLLOUT)
                on_writable(c);
            else
                on_readable(c);
        }
    }
}
