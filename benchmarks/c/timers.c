/* Timers on plain libevent: the yardstick of peers/timers.py, which says what is done.
 *
 *     timers COUNT SECONDS */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include <event2/event.h>

static long fired;

static void on_timeout(evutil_socket_t fd, short what, void *arg)
{
    (void)fd;
    (void)what;
    (void)arg;
    ++fired;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    struct event_base *base = event_base_new();
    long count, i;
    double within, start, added, left;
    struct timeval *timeouts;
    struct event **events;

    if (argc != 3)
        return 2;
    count = atol(argv[1]);
    within = atof(argv[2]);
    timeouts = calloc((size_t)count, sizeof(*timeouts));
    events = calloc((size_t)count, sizeof(*events));
    if (!base || !timeouts || !events)
        return 1;
    srand(1);
    for (i = 0; i < count; ++i)
        timeouts[i].tv_usec = (suseconds_t)(within * 999999 * rand() / RAND_MAX);

    start = now();
    for (i = 0; i < count; ++i) {
        events[i] = event_new(base, -1, 0, on_timeout, NULL);
        if (!events[i] || event_add(events[i], &timeouts[i]) < 0)
            return 1;
    }
    added = now() - start;
    left = within + 0.02;
    nanosleep(&(struct timespec){(time_t)left, (long)((left - (double)(time_t)left) * 1e9)}, NULL);
    start = now();
    event_base_dispatch(base);
    printf("{\"add_ns\": %.1f, \"fire_ns\": %.1f, \"fired\": %ld}\n", added * 1e9 / (double)count,
           (now() - start) * 1e9 / (double)count, fired);
    return 0;
}
