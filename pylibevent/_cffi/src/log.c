/* What libevent logs. It does so with its locks held and anywhere, so nothing of Python runs
 * here: messages wait in a ring until a callback or a call of ours is over. */
#include "pyle.h"

#include <stdio.h>
#include <unistd.h>

#define RING 64
#define TEXT 512

int pyle_log_waiting;
static struct { int severity; char text[TEXT]; } ring[RING];
static unsigned first, count, lost;
static pthread_mutex_t ring_lock = PTHREAD_MUTEX_INITIALIZER;

void pyle_log(int severity, const char *text)
{
    int error = errno;

    if (severity == EVENT_LOG_ERR) /* the process is about to end */
        fprintf(stderr, "libevent: %s\n", text);
    pthread_mutex_lock(&ring_lock);
    if (count < RING) {
        unsigned at = (first + count++) % RING;
        ring[at].severity = severity;
        strncpy(ring[at].text, text, TEXT - 1);
        ring[at].text[TEXT - 1] = '\0';
        __atomic_store_n(&pyle_log_waiting, 1, __ATOMIC_RELEASE);
    } else {
        ++lost;
    }
    pthread_mutex_unlock(&ring_lock);
    errno = error;
}

static void on_fatal(int code)
{
    (void)code;
    abort(); /* exit() would run Python in the middle of libevent */
}

void pyle_log_init(void)
{
    event_set_log_callback(pyle_log);
    event_set_fatal_callback(on_fatal);
}

int pyle_log_take(char *out, int size)
{
    int severity = -1;

    pthread_mutex_lock(&ring_lock);
    if (count > 0) {
        severity = ring[first].severity;
        snprintf(out, (size_t)size, "%s", ring[first].text);
        first = (first + 1) % RING;
        --count;
    } else if (lost > 0) {
        severity = EVENT_LOG_WARN;
        snprintf(out, (size_t)size, "%u messages lost", lost);
        lost = 0;
    }
    if (count == 0 && lost == 0)
        __atomic_store_n(&pyle_log_waiting, 0, __ATOMIC_RELEASE);
    pthread_mutex_unlock(&ring_lock);
    return severity;
}

void pyle_log_lock(int on)
{
    if (on)
        pthread_mutex_lock(&ring_lock);
    else
        pthread_mutex_unlock(&ring_lock);
}
