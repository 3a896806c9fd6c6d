// A library for LD_PRELOAD that makes the environment of a program faulty. The directory FAULTS holds the faults that
// are in force; each is a file whose content is a number:
//
//   clock   seconds that the wall clock is ahead
//   errno   the error of every write, sync and opening of a file below the directory FAULTS_DATA
//   short   bytes that one write to such a file takes at most
//   sync    milliseconds that a sync takes
//
// The host name "hangs…" is never resolved, and "lies…" is resolved to 127.0.0.1.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long fault(const char *name) {
    const char *dir = getenv("FAULTS");
    char path[PATH_MAX], text[32];
    if (!dir) return 0;
    snprintf(path, sizeof path, "%s/%s", dir, name);
    int saved = errno;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    long value = 0;
    if (fd >= 0) {
        ssize_t n = syscall(SYS_read, fd, text, sizeof text - 1);
        text[n > 0 ? n : 0] = 0;
        value = atol(text);
        close(fd);
    }
    errno = saved;
    return value;
}

static int is_data(const char *path) {
    const char *data = getenv("FAULTS_DATA");
    return data && strncmp(path, data, strlen(data)) == 0;
}

static int is_data_fd(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return is_data(path);
}

// The error of a call on a file of the data directory; 0 without one.
static int data_error(int fd) {
    long error = fault("errno");
    return error && is_data_fd(fd) ? errno = error : 0;
}

static size_t shortened(int fd, size_t count) {
    long most = fault("short");
    return most && count > (size_t)most && is_data_fd(fd) ? (size_t)most : count;
}

ssize_t write(int fd, const void *buf, size_t count) {
    if (data_error(fd)) return -1;
    return syscall(SYS_write, fd, buf, shortened(fd, count));
}

ssize_t pwrite64(int fd, const void *buf, size_t count, off64_t at) {
    if (data_error(fd)) return -1;
    return syscall(SYS_pwrite64, fd, buf, shortened(fd, count), at);
}

ssize_t pwrite(int fd, const void *buf, size_t count, off_t at) { return pwrite64(fd, buf, count, at); }

static int synced(int fd, long call) {
    if (data_error(fd)) return -1;
    long ms = fault("sync");
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    if (ms) nanosleep(&time, NULL);
    return syscall(call, fd);
}

int fdatasync(int fd) { return synced(fd, SYS_fdatasync); }
int fsync(int fd) { return synced(fd, SYS_fsync); }

int open64(const char *path, int flags, ...) {
    va_list args;
    va_start(args, flags);
    mode_t mode = va_arg(args, mode_t);
    va_end(args);
    long error = fault("errno");
    if (error && is_data(path)) return errno = error, -1;
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

int clock_gettime(clockid_t clock, struct timespec *time) {
    int done = syscall(SYS_clock_gettime, clock, time);
    if (clock == CLOCK_REALTIME) time->tv_sec += fault("clock");
    return done;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return out ? *out = now.tv_sec : now.tv_sec;
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
    if (!real) real = dlsym(RTLD_NEXT, "getaddrinfo");
    while (host && strncmp(host, "hangs", 5) == 0) pause();
    return real(host && strncmp(host, "lies", 4) == 0 ? "127.0.0.1" : host, service, hints, found);
}
