/*
 * Ends this process when its supervisor is gone, whatever the rest of the process is doing.
 *
 * A thread of Python cannot promise that: it needs the GIL, which native code may hold for ever. This thread
 * takes no lock that anybody else holds. PR_SET_PDEATHSIG is no way out: it fires when the parent's *thread*
 * ends, and Trio's threads come and go.
 *
 * The supervisor is gone when the other end of a descriptor (stdin) is closed, or when the parent changes.
 * From then on the process has the grace to end by itself, and at the end of it _exit() ends it.
 */

#if defined(__linux__)
#define _GNU_SOURCE /* POLLRDHUP */
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE /* kqueue */
#endif

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <time.h>
#include <unistd.h>

#if defined(__APPLE__)
#include <sys/event.h>
#else
#include <poll.h>
#endif

#define EXPORT __attribute__((visibility("default")))

enum {
    PARENT_CHECK_MS = 250, /* how late a changed parent is seen where nothing reports it */
    GRACE_CHECK_MS = 20,   /* how late a changed grace is seen */
};

static struct {
    int fd;
    int exit_code;
    pid_t parent;
} watch;

static atomic_bool started;
static atomic_int grace_left_ms;

static bool parent_changed(void) { return getppid() != watch.parent; }

#if defined(__APPLE__)

/* poll() is not used here: on macOS it is built on the same filters, but reports end of file and unread data
 * together. EV_CLEAR makes unread data wake the thread once for each arrival, not for ever. */
static void wait_for_orphanhood(void) {
    const struct timespec interval = {.tv_sec = 0, .tv_nsec = PARENT_CHECK_MS * 1000000L};
    struct kevent changes[2];
    EV_SET(&changes[0], (uintptr_t)watch.fd, EVFILT_READ, EV_ADD | EV_CLEAR, 0, 0, NULL);
    EV_SET(&changes[1], (uintptr_t)watch.parent, EVFILT_PROC, EV_ADD, NOTE_EXIT, 0, NULL);
    /* One by one: a filter that cannot be added must not keep the other one out. Without either, and without a
     * queue, the parent is still looked at. */
    int queue = kqueue();
    for (int i = 0; i < 2; i++) kevent(queue, &changes[i], 1, NULL, 0, NULL);
    while (!parent_changed()) {
        struct kevent event;
        int count = kevent(queue, NULL, 0, &event, 1, &interval);
        if (count > 0 && (event.filter == EVFILT_PROC || (event.flags & EV_EOF) != 0)) return;
        if (count < 0) nanosleep(&interval, NULL);
    }
}

#else

static void wait_for_orphanhood(void) {
    /* No POLLIN: data is the reader's business. POLLHUP, POLLERR and POLLNVAL need not be asked for. */
    struct pollfd polled = {.fd = watch.fd, .events = POLLRDHUP};
    while (!parent_changed()) {
        if (poll(&polled, 1, PARENT_CHECK_MS) > 0) return;
    }
}

#endif

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static void *run(void *unused) {
    (void)unused;
    const struct timespec interval = {.tv_sec = 0, .tv_nsec = GRACE_CHECK_MS * 1000000L};
    wait_for_orphanhood();
    int64_t orphaned_at_ms = now_ms();
    while (now_ms() - orphaned_at_ms < atomic_load(&grace_left_ms)) nanosleep(&interval, NULL);
    /* What this process has forked ends with it. A supervisor that lives sees to that itself. */
    if (parent_changed() && getpgrp() == getpid()) kill(0, SIGKILL);
    _exit(watch.exit_code);
}

/*
 * The grace counts from the moment the supervisor went. It may be set before that and after: a worker that has
 * begun an orderly end asks for more time than one that has not noticed anything.
 */
EXPORT void mlxsup_watch_set_grace_ms(int grace_ms) { atomic_store(&grace_left_ms, grace_ms); }

/* Returns 0 or an errno. One watch for each process. */
EXPORT int mlxsup_watch_start(int fd, int grace_ms, int exit_code) {
    if (atomic_exchange(&started, true)) return EALREADY;
    /* A descriptor of its own: the caller's number may be closed and mean another file later. */
    watch.fd = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    if (watch.fd < 0) {
        int error = errno;
        atomic_store(&started, false);
        return error;
    }
    watch.exit_code = exit_code;
    watch.parent = getppid();
    mlxsup_watch_set_grace_ms(grace_ms);

    /* The process's signals are for the threads that expect them. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_t thread;
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = pthread_create(&thread, NULL, run, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (error != 0) {
        close(watch.fd);
        atomic_store(&started, false);
        return error;
    }
    pthread_detach(thread);
    return 0;
}
