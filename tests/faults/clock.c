/* A wall clock that is wrong: LD_PRELOAD=clock.so CLOCK_SHIFT=seconds CLOCK_STEP=seconds CLOCK_EVERY=seconds command

   CLOCK_SHIFT is added to what the clock says. Every CLOCK_EVERY seconds of real time it is set back by CLOCK_STEP.
   Only the wall clock: CLOCK_REALTIME, time and gettimeofday. The monotonic clock of a machine is never set. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long number(const char *name) {
    const char *text = getenv(name);
    return text ? atol(text) : 0;
}

static long shift(void) {
    static long by, step, every;
    static int known;
    struct timespec up;
    if (!known) {
        by = number("CLOCK_SHIFT");
        step = number("CLOCK_STEP");
        every = number("CLOCK_EVERY");
        known = 1;
    }
    if (!every) return by;
    syscall(SYS_clock_gettime, CLOCK_MONOTONIC, &up); /* one for all processes of the machine */
    return by - step * (up.tv_sec / every % 1000);
}

int clock_gettime(clockid_t which, struct timespec *at) {
    int status = (int)syscall(SYS_clock_gettime, which, at);
    if (!status && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) at->tv_sec += shift();
    return status;
}

int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    struct timespec now;
    (void)zone;
    if (clock_gettime(CLOCK_REALTIME, &now)) return -1;
    if (at) {
        at->tv_sec = now.tv_sec;
        at->tv_usec = now.tv_nsec / 1000;
    }
    return 0;
}

time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
