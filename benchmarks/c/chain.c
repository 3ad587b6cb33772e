/* The chain benchmark on plain libevent: the yardstick of chain.py, which compiles and runs it.
 *
 *     chain PAIRS ACTIVE WRITES RUNS METHOD ONCE TIMEOUTS
 *
 * One line for each run: microseconds, and how many events were handled. METHOD "": libevent's
 * choice. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include <event2/event.h>

static struct event_base *base;
static int (*pairs)[2];
static long npairs, handled, left, expected;

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static void pass_on(evutil_socket_t fd, short what, void *arg)
{
    char byte;

    if (what & EV_TIMEOUT)
        die("timeout");
    if (recv(fd, &byte, 1, 0) != 1)
        die("recv");
    ++handled;
    if (left > 0) {
        --left;
        if (send(*(int *)arg, "e", 1, 0) != 1)
            die("send");
    } else if (handled == expected) {
        event_base_loopbreak(base);
    }
}

static struct event_base *new_base(const char *method)
{
    struct event_config *config = event_config_new();
    const char **all = event_get_supported_methods();
    struct event_base *made;

    for (; *method && *all; ++all)
        if (strcmp(*all, method) != 0)
            event_config_avoid_method(config, *all);
    made = event_base_new_with_config(config);
    event_config_free(config);
    if (!made)
        die("event_base_new_with_config");
    return made;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

int main(int argc, char **argv)
{
    long active, writes, runs, i;
    int once, timeouts;
    double start;

    if (argc != 8)
        return 2;
    npairs = atol(argv[1]);
    active = atol(argv[2]);
    writes = atol(argv[3]);
    runs = atol(argv[4]);
    base = new_base(argv[5]);
    once = atoi(argv[6]);
    timeouts = atoi(argv[7]);
    pairs = calloc((size_t)npairs, sizeof(*pairs));
    if (!pairs)
        die("calloc");
    for (i = 0; i < npairs; ++i)
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, pairs[i]) < 0)
            die("socketpair");
    for (i = 0; i < npairs; ++i) {
        struct timeval limit = {60 + i % 60, 0};
        struct event *ev = event_new(base, pairs[i][0], EV_READ | EV_PERSIST, pass_on,
                                     &pairs[(i + 1) % npairs][1]);
        if (!ev || event_add(ev, timeouts ? &limit : NULL) < 0)
            die("event_add");
    }
    while (runs-- > 0) {
        handled = 0;
        left = writes;
        expected = active + writes;
        event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        for (i = 0; i < active; ++i)
            if (send(pairs[i * (npairs / active)][1], "e", 1, 0) != 1)
                die("send");
        start = now();
        if (once)
            while (handled != expected)
                event_base_loop(base, EVLOOP_ONCE | EVLOOP_NONBLOCK);
        else
            event_base_dispatch(base);
        printf("%.1f %ld\n", now() - start, handled);
    }
    return 0;
}
