/* The load: keeps connections to a server on 127.0.0.1 busy, checks and counts what it answers.
 *
 *     load echo    -p PORT [-P PID] [-c 50] [-d 1] [-s 64] [-i 0] [-w 0.3] [-t 1] [-n max] [-g]
 *                 [-I]
 *     load connect -p PORT ...
 *     load relay   -c 4 -s 1048576 ...
 *
 * echo     each of -c connections sends -d lines of -s bytes in one write, and the next ones when
 *          all of them are answered; -i more connections have one such exchange and then wait
 * connect  -c at a time: connect, send the lines, read the answers, close
 * relay    -s bytes through a relay to a backend, which is here as well, and as many back. Prints
 *          the backend's port, then reads a line "PORT PID": the relay's
 *
 * -P PID: whose CPU time is measured. -w, -t: seconds of warm-up, then of the window that counts.
 * -n: the window ends after so many messages, whatever -t says. -g: once all are connected, prints
 * "ready", waits for a line, and keeps all connections until stdin ends. -I: counts the user
 * instructions of PID's first thread as well.
 *
 * Compiled with -DTLS all of it goes over TLS, and a connection begins with a whole handshake.
 *
 * One JSON object on stdout. An answer with one wrong byte ends the program with status 1. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/perf_event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef TLS
#include <fcntl.h>
#include <openssl/ssl.h>
static SSL_CTX *tls;
#endif

#define PREFIX "Client msg "
#define CONNECTING 64 /* not answered yet: fewer than any server's backlog */
#define SOURCES 200 /* addresses, with ports of their own: TIME_WAIT does not use them up */
#define SAMPLES (1 << 20)
#define LOOK_AT 4 /* chunks through a relay that are compared; later ones are counted */

#ifndef IP_BIND_ADDRESS_NO_PORT
#define IP_BIND_ADDRESS_NO_PORT 24
#endif

enum mode { ECHO, CONNECT, RELAY };
enum phase { OPENING, WARMUP, WINDOW, DRAINING };

struct conn {
    int fd, idle, backend, waits_to_write;
    char *request, *expected;
    size_t sent, got;
    uint64_t start;
    long exchanges;
#ifdef TLS
    SSL *ssl;
#endif
};

static enum mode mode;
static enum phase phase;
static int port, pid, depth = 1, wait_for_go, count_instructions;
static long nconns = 50, nidle, max_messages;
static size_t size = 64, request_size, answer_size;
static double warmup = 0.3, seconds = 1;

static int epoll, listener = -1, perf = -1;
static struct conn *conns;
static long opened, first_answered, under_way;
static long messages, total;
static uint32_t *samples; /* nanoseconds, the last SAMPLES of them */
static long nsamples;
static char buffer[1 << 18];

static void die(const char *what)
{
    fprintf(stderr, "load: %s\n", what);
    exit(1);
}

static void die_errno(const char *what)
{
    fprintf(stderr, "load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void on_alarm(int signum)
{
    static const char text[] = "load: no end in sight: does the server answer?\n";

    (void)signum;
    if (write(2, text, sizeof(text) - 1) < 0)
        _exit(2);
    _exit(1);
}

static uint64_t clock_ns(clockid_t clock)
{
    struct timespec t;

    if (clock_gettime(clock, &t) < 0)
        die_errno("clock_gettime");
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t now(void) { return clock_ns(CLOCK_MONOTONIC); }

/* All threads of the server, user and system. */
static uint64_t server_cpu(void)
{
    clockid_t clock;

    if (!pid)
        return 0;
    if (clock_getcpuclockid(pid, &clock) != 0)
        die("the server is gone");
    return clock_ns(clock);
}

static void open_counter(void)
{
    struct perf_event_attr attr = {
        .size = sizeof(attr),
        .type = PERF_TYPE_HARDWARE,
        .config = PERF_COUNT_HW_INSTRUCTIONS,
        .disabled = 1,
        .exclude_kernel = 1,
        .exclude_hv = 1,
    };

    if (count_instructions && pid)
        perf = (int)syscall(SYS_perf_event_open, &attr, pid, -1, -1, 0);
}

/* ---- what is sent, and what is due ---- */

static char *allocate(size_t n)
{
    char *made = malloc(n);

    if (!made)
        die("no memory");
    return made;
}

/* Lines that differ, between connections and within one: nothing can be mixed up unseen. */
static void make_lines(struct conn *c, long number)
{
    char *line, *out;
    int i, n;

    c->request = line = allocate(request_size);
    c->expected = out = allocate(answer_size);
    for (i = 0; i < depth; ++i) {
        char id[48];

        n = snprintf(id, sizeof(id), "%ld.%d.", number, i);
        memset(line, 'a' + (int)((number + i) % 26), size);
        memcpy(line, id, (size_t)n < size ? (size_t)n : size);
        line[size] = '\n';
        memcpy(out, PREFIX, strlen(PREFIX));
        memcpy(out + strlen(PREFIX), line, size + 1);
        line += size + 1;
        out += strlen(PREFIX) + size + 1;
    }
}

/* One chunk there and one back, the same for all connections. */
static void make_chunks(struct conn *c)
{
    static char *there, *back;
    size_t i;

    if (!there) {
        there = allocate(size);
        back = allocate(size);
        for (i = 0; i < size; ++i) {
            there[i] = (char)(i * 2654435761u >> 13);
            back[i] = (char)(i * 2246822519u >> 11);
        }
    }
    c->request = c->backend ? back : there;
    c->expected = c->backend ? there : back;
}

/* ---- connections ---- */

static void watch(struct conn *c, int how, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = c};

    if (epoll_ctl(epoll, how, c->fd, &event) < 0)
        die_errno("epoll_ctl");
}

#ifdef TLS
/* As send() and recv(): errno is EAGAIN, and ENODATA if it has to read before it can write. */
static ssize_t told(struct conn *c, int n)
{
    if (n <= 0)
        switch (SSL_get_error(c->ssl, n)) {
        case SSL_ERROR_WANT_READ: errno = ENODATA; return -1;
        case SSL_ERROR_WANT_WRITE: errno = EAGAIN; return -1;
        case SSL_ERROR_ZERO_RETURN: return 0;
        default: die("TLS has failed");
        }
    return n;
}

static ssize_t put(struct conn *c, const char *data, size_t n)
{
    return told(c, SSL_write(c->ssl, data, (int)n));
}

static ssize_t get(struct conn *c, size_t most)
{
    ssize_t n = told(c, SSL_read(c->ssl, buffer, (int)most));

    if (n < 0)
        errno = EAGAIN;
    return n;
}

static void start_tls(struct conn *c)
{
    fcntl(c->fd, F_SETFL, O_NONBLOCK);
    c->ssl = SSL_new(tls);
    if (!c->ssl || !SSL_set_fd(c->ssl, c->fd))
        die("no memory");
    SSL_set_connect_state(c->ssl);
}

static void stop_tls(struct conn *c)
{
    SSL_free(c->ssl);
    c->ssl = NULL;
}
#else
static ssize_t put(struct conn *c, const char *data, size_t n)
{
    return send(c->fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static ssize_t get(struct conn *c, size_t most)
{
    return recv(c->fd, buffer, most, MSG_DONTWAIT);
}

#define start_tls(c) ((void)(c))
#define stop_tls(c) ((void)(c))
#endif

static void flush_out(struct conn *c)
{
    while (c->sent < request_size) {
        ssize_t n = put(c, c->request + c->sent, request_size - c->sent);

        if (n < 0 && errno == ENODATA)
            return;
        if (n < 0) {
            if (errno != EAGAIN)
                die_errno("send");
            if (!c->waits_to_write)
                watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            c->waits_to_write = 1;
            return;
        }
        c->sent += (size_t)n;
    }
    if (c->waits_to_write)
        watch(c, EPOLL_CTL_MOD, EPOLLIN);
    c->waits_to_write = 0;
}

static void start_exchange(struct conn *c)
{
    c->sent = c->got = 0;
    flush_out(c);
}

static void set_up(struct conn *c)
{
    int one = 1;

    if (mode != CONNECT) /* which writes once */
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

static void open_one(struct conn *c)
{
    static unsigned turn;
    struct sockaddr_in address = {.sin_family = AF_INET};
    int one = 1;

    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (c->fd < 0)
        die_errno("socket");
    if (mode == CONNECT) {
        address.sin_addr.s_addr = htonl(0x7f000101 + turn++ % SOURCES);
        setsockopt(c->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof(one));
        if (bind(c->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
            die_errno("bind");
    }
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons((uint16_t)port);
    c->start = now();
    if (connect(c->fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        die_errno("connect");
    set_up(c);
    start_tls(c);
    ++under_way;
    start_exchange(c);
}

static void accept_backend(void)
{
    struct conn *c = calloc(1, sizeof(*c));

    if (!c)
        die("no memory");
    c->fd = accept(listener, NULL, NULL);
    if (c->fd < 0)
        die_errno("accept");
    c->backend = 1;
    make_chunks(c);
    c->sent = request_size;
    set_up(c);
}

static void nothing_more(struct conn *c)
{
    char byte;

    if (recv(c->fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) > 0)
        die("more was answered than was asked");
}

static void answered(struct conn *c)
{
    uint64_t t;

    ++c->exchanges;
    if (c->backend) {
        start_exchange(c);
        return;
    }
    t = now();
    if (phase == WINDOW) {
        uint64_t took = t - c->start;

        messages += depth;
        samples[nsamples++ % SAMPLES] = took < UINT32_MAX ? (uint32_t)took : UINT32_MAX;
    }
    if (c->exchanges == 1)
        ++first_answered;
    --under_way;
    if (mode == CONNECT) {
        stop_tls(c);
        close(c->fd);
        c->fd = -1;
    }
    if (phase == OPENING)
        return;
    total += depth;
    if (phase == DRAINING)
        return;
    if (mode == CONNECT) {
        open_one(c);
    } else {
        ++under_way;
        c->start = t;
        start_exchange(c);
    }
}

static int on_readable(struct conn *c)
{
    int discard = mode == RELAY && c->exchanges >= LOOK_AT;
    size_t left = answer_size - c->got;
    ssize_t n;

    if (discard) /* TCP drops what it would have copied: the load is not what is measured */
        n = recv(c->fd, NULL, left, MSG_TRUNC | MSG_DONTWAIT);
    else
        n = get(c, sizeof(buffer));
    if (n < 0) {
        if (errno == EAGAIN)
            return 0;
        die_errno("recv");
    }
    if (n == 0)
        die("the server closed a connection");
    if ((size_t)n > left)
        die("more was answered than was asked");
    if (!discard && memcmp(buffer, c->expected + c->got, (size_t)n) != 0)
        die("a wrong answer");
    c->got += (size_t)n;
    if (c->got < answer_size)
        return 1;
    answered(c);
    return 0;
}

/* ---- the run ---- */

static void open_more(void)
{
    for (; opened < nconns + nidle && opened - first_answered < CONNECTING; ++opened)
        open_one(&conns[opened]);
}

/* Waits up to a millisecond or so, so that the phases end when they should. */
static void turn(void)
{
    struct epoll_event events[512];
    int i, n = epoll_wait(epoll, events, 512, 1);

    if (n < 0 && errno != EINTR)
        die_errno("epoll_wait");
    for (i = 0; i < n; ++i) {
        struct conn *c = events[i].data.ptr;

        if (!c) {
            accept_backend();
            continue;
        }
#ifdef TLS
        if (c->sent < request_size) /* the handshake waits for what there is to read */
            flush_out(c);
        while (c->sent == request_size && on_readable(c))
            ; /* what is left of a record would not wake us */
        continue;
#endif
        if (events[i].events & EPOLLOUT)
            flush_out(c);
        if (events[i].events & (EPOLLIN | EPOLLERR | EPOLLHUP))
            on_readable(c);
    }
}

static void listen_for_relay(void)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t length = sizeof(address);

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, length) < 0 ||
        listen(listener, 128) < 0 ||
        getsockname(listener, (struct sockaddr *)&address, &length) < 0)
        die_errno("listen");
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event) < 0)
        die_errno("epoll_ctl");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    if (scanf("%d %d%*[^\n]", &port, &pid) < 1)
        die("the relay's port was to be on stdin");
    getchar();
}

static int by_value(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

    return (x > y) - (x < y);
}

static double percentile(double share)
{
    long n = nsamples < SAMPLES ? nsamples : SAMPLES;

    return n ? samples[(long)(share * (double)(n - 1))] / 1e3 : 0;
}

static void run(void)
{
    uint64_t begin, end, cpu, own, instructions = 0;
    long i;

    while (first_answered < nconns + nidle) {
        open_more();
        turn();
    }
    if (wait_for_go) {
        puts("ready");
        fflush(stdout);
        if (getchar() == EOF)
            exit(1);
    }
    phase = WARMUP;
    for (i = 0; i < nconns; ++i) {
        if (mode == CONNECT) {
            open_one(&conns[i]);
        } else {
            ++under_way;
            conns[i].start = now();
            start_exchange(&conns[i]);
        }
    }
    for (end = now() + (uint64_t)(warmup * 1e9); now() < end;)
        turn();

    phase = WINDOW;
    cpu = server_cpu();
    own = clock_ns(CLOCK_PROCESS_CPUTIME_ID);
    if (perf >= 0)
        ioctl(perf, PERF_EVENT_IOC_ENABLE, 0);
    begin = now();
    end = begin + (uint64_t)(seconds * 1e9);
    while (now() < end && (!max_messages || messages < max_messages))
        turn();
    end = now();
    if (perf >= 0)
        ioctl(perf, PERF_EVENT_IOC_DISABLE, 0);
    cpu = server_cpu() - cpu;
    own = clock_ns(CLOCK_PROCESS_CPUTIME_ID) - own;

    phase = DRAINING;
    while (under_way > 0)
        turn();
    for (i = 0; i < nconns + nidle; ++i)
        if (conns[i].fd >= 0)
            nothing_more(&conns[i]);
    if (perf >= 0 && read(perf, &instructions, sizeof(instructions)) < 0)
        instructions = 0;
    qsort(samples, nsamples < SAMPLES ? (size_t)nsamples : SAMPLES, sizeof(*samples), by_value);
    printf("{\"seconds\": %.6f, \"messages\": %ld, \"total\": %ld, \"bytes\": %.0f, ",
           (double)(end - begin) / 1e9, messages, total,
           (double)messages / depth * (double)(request_size + answer_size));
    printf("\"server_cpu\": %.6f, \"client_cpu\": %.6f, ", (double)cpu / 1e9, (double)own / 1e9);
    if (instructions)
        printf("\"instructions\": %llu, ", (unsigned long long)instructions);
    printf("\"p50_us\": %.1f, \"p99_us\": %.1f}\n", percentile(0.50), percentile(0.99));
    fflush(stdout);
    while (wait_for_go && getchar() != EOF)
        ;
}

int main(int argc, char **argv)
{
    struct rlimit limit;
    long i;
    int option;

    if (argc > 1 && strcmp(argv[1], "connect") == 0)
        mode = CONNECT;
    else if (argc > 1 && strcmp(argv[1], "relay") == 0)
        mode = RELAY;
    else if (argc < 2 || strcmp(argv[1], "echo") != 0)
        die("echo, connect or relay?");
    optind = 2;
    while ((option = getopt(argc, argv, "p:P:c:d:s:i:w:t:n:gI")) != -1)
        switch (option) {
        case 'p': port = atoi(optarg); break;
        case 'P': pid = atoi(optarg); break;
        case 'c': nconns = atol(optarg); break;
        case 'd': depth = atoi(optarg); break;
        case 's': size = (size_t)atol(optarg); break;
        case 'i': nidle = atol(optarg); break;
        case 'w': warmup = atof(optarg); break;
        case 't': seconds = atof(optarg); break;
        case 'n': max_messages = atol(optarg); break;
        case 'g': wait_for_go = 1; break;
        case 'I': count_instructions = 1; break;
        default: return 2;
        }
    if (nconns < 1 || nidle < 0 || depth < 1 || size < 1 || (mode != ECHO && nidle) ||
        (mode == RELAY && depth > 1) || (mode != RELAY && !port))
        die("these numbers make no sense");
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    signal(SIGALRM, on_alarm);
    alarm((unsigned)(warmup + seconds + 60));

#ifdef TLS
    tls = SSL_CTX_new(TLS_client_method());
    if (!tls)
        die("no memory");
#endif
    epoll = epoll_create1(0);
    conns = calloc((size_t)(nconns + nidle), sizeof(*conns));
    samples = malloc(SAMPLES * sizeof(*samples));
    if (epoll < 0 || !conns || !samples)
        die("no memory");
    request_size = mode == RELAY ? size : (size_t)depth * (size + 1);
    answer_size = mode == RELAY ? size : (size_t)depth * (size + 1 + strlen(PREFIX));
    for (i = 0; i < nconns + nidle; ++i) {
        if (mode == RELAY)
            make_chunks(&conns[i]);
        else
            make_lines(&conns[i], i);
    }
    if (mode == RELAY)
        listen_for_relay();
    open_counter();
    run();
    return 0;
}
