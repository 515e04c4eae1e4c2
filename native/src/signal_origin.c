/*
 * Says on stderr where a signal came from that ends this process: from itself, or from which other process.
 *
 * A crash and a `kill -SEGV` leave the same exit status. Only a handler within the process is told which it was,
 * and a handler of Python is too late: it waits for the GIL, which the code that crashed may hold.
 *
 * Each handler runs under the flags and the mask of the one that was there before it, and then calls that one: so
 * faulthandler still dumps its stacks, Python's own handlers still run between two bytecodes, and the process still
 * ends by the signal. It says one line for each signal number, once:
 *
 *     mlxsup: signal 11 sent by process 1234 (KEY)
 *     mlxsup: signal 11 raised here (KEY)
 *
 * Process 0 is one that cannot be seen from here, as from within a container. Whoever knows the key knows that the
 * line is not somebody's text that a library has printed.
 */

#if defined(__linux__)
#define _GNU_SOURCE /* SI_TKILL */
#elif defined(__APPLE__)
#define _DARWIN_C_SOURCE
#endif

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { KEY_CHARS_MAX = 32, LINE_BYTES_MAX = 128 };

struct watched {
    int number;
    struct sigaction before;
    atomic_bool told;
};

static struct watched watched[] = {
    {.number = SIGABRT},
    {.number = SIGTRAP},
    {.number = SIGTERM},
#if !defined(__APPLE__)
    /* The kernel of macOS makes these look like faults of the process's own, whoever sent them: si_code is that of
     * a fault and si_pid is 0. So they are left alone there, and nothing is known of them. */
    {.number = SIGSEGV},
    {.number = SIGBUS},
    {.number = SIGILL},
    {.number = SIGFPE},
#endif
};

enum { WATCHED = sizeof watched / sizeof *watched };

static atomic_bool started;
static pid_t own_pid;
static char key[KEY_CHARS_MAX + 1];

/* From here to on_signal(): nothing but what POSIX calls async-signal-safe. */

struct line {
    char bytes[LINE_BYTES_MAX];
    size_t count;
};

static void add_text(struct line *line, const char *text) {
    while (*text != '\0' && line->count < sizeof line->bytes) line->bytes[line->count++] = *text++;
}

static void add_number(struct line *line, long number) {
    char digits[24];
    size_t first = sizeof digits - 1;
    digits[first] = '\0';
    do {
        digits[--first] = (char)('0' + number % 10);
        number /= 10;
    } while (number > 0);
    add_text(line, digits + first);
}

static bool came_from_outside(const siginfo_t *info) {
#if defined(__APPLE__)
    /* si_code is 0 for a fault too, but then nobody is named. */
    return info->si_pid != 0 && info->si_pid != own_pid;
#else
    /* With every other code the kernel speaks for itself, or for a timer of this process; si_pid then means nothing. */
    bool sent = info->si_code == SI_USER || info->si_code == SI_TKILL || info->si_code == SI_QUEUE;
    return sent && info->si_pid != own_pid;
#endif
}

static void tell(int number, const siginfo_t *info) {
    struct line line = {.count = 0};
    /* Whatever somebody was writing, this is a line of its own. */
    add_text(&line, "\nmlxsup: signal ");
    add_number(&line, number);
    if (came_from_outside(info)) {
        add_text(&line, " sent by process ");
        add_number(&line, info->si_pid);
    } else {
        add_text(&line, " raised here");
    }
    add_text(&line, " (");
    add_text(&line, key);
    add_text(&line, ")\n");
    /* A pipe that nobody reads must not keep the process from ending. */
    struct pollfd polled = {.fd = STDERR_FILENO, .events = POLLOUT};
    if (poll(&polled, 1, 0) != 1 || (polled.revents & POLLOUT) == 0) return;
    if (write(STDERR_FILENO, line.bytes, line.count) < 0) return; /* There is nobody left to tell. */
}

static void pass_on(const struct sigaction *before, int number, siginfo_t *info, void *context) {
    if ((before->sa_flags & SA_SIGINFO) != 0) {
        before->sa_sigaction(number, info, context);
    } else if (before->sa_handler != SIG_DFL) {
        before->sa_handler(number);
    } else {
        /* It is blocked in here, and ends the process when this handler returns. */
        sigaction(number, before, NULL);
        raise(number);
    }
}

static void on_signal(int number, siginfo_t *info, void *context) {
    int error = errno;
    for (size_t i = 0; i < WATCHED; i++) {
        struct watched *found = &watched[i];
        if (found->number != number) continue;
        /* Once: a fault in tell() comes back to here and has to get on. And a child that was forked is not the
         * process whose end is asked about. */
        if (!atomic_exchange(&found->told, true) && getpid() == own_pid) tell(number, info);
        errno = error;
        pass_on(&found->before, number, info, context);
        return;
    }
}

/*
 * Returns 0 or an errno; once for each process. `text` is the key. A handler that somebody installs later takes the
 * place of this one. A signal that is ignored stays ignored.
 */
EXPORT int mlxsup_signal_origin_start(const char *text) {
    if (strlen(text) > KEY_CHARS_MAX) return EINVAL;
    if (atomic_exchange(&started, true)) return EALREADY;
    strcpy(key, text);
    own_pid = getpid();
    /* All are known before the first is installed: it may be needed at once. */
    for (size_t i = 0; i < WATCHED; i++) {
        if (sigaction(watched[i].number, NULL, &watched[i].before) != 0) return errno;
    }
    for (size_t i = 0; i < WATCHED; i++) {
        struct sigaction action = watched[i].before;
        if ((action.sa_flags & SA_SIGINFO) == 0 && action.sa_handler == SIG_IGN) continue;
        action.sa_sigaction = on_signal;
        action.sa_flags |= SA_SIGINFO | SA_ONSTACK;
        if (sigaction(watched[i].number, &action, NULL) != 0) return errno;
    }
    return 0;
}
