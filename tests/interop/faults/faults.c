// faults runs a program and keeps a journal of its unsynced changes of files below one directory, so that a test can
// undo them after a kill, as a loss of power would.
//
//   FAULTS_DIR=tree FAULTS_JOURNAL=file FAULTS_SIDE=dir faults PROGRAM ARGS...
//
// System calls are intercepted by seccomp rather than by symbols of libc, because programs in Go, and some libraries of
// Rust, do not use libc. The kernel stops the caller at each call that changes a file; this process writes the
// journal, and then lets the call continue or makes the call itself. A sync only writes the journal, which decides
// what counts as durable. Writes through mmap are not seen. crash_loss_test.go reads the journal.
//
// SIGTERM kills the program with SIGKILL; the journal is complete when this process has ended.
// FAULTS_STRICT=1: the sync of a file does not make its name durable, as in POSIX; otherwise it does, as with ext4's
// journal. FAULTS_ENOSPC=file: while this file exists, no file can grow.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/falloc.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "journal.h"

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#endif

static const int watched[] = {
    __NR_write, __NR_pwrite64, __NR_writev, __NR_pwritev, __NR_pwritev2, __NR_ftruncate, __NR_truncate,
    __NR_fallocate, __NR_openat2, __NR_renameat, __NR_renameat2, __NR_unlinkat, __NR_mkdirat, __NR_linkat,
    __NR_symlinkat, __NR_fsync, __NR_fdatasync, __NR_sync, __NR_syncfs, __NR_copy_file_range, __NR_sendfile,
    __NR_splice, __NR_io_uring_setup,
#ifdef __NR_open
    __NR_open, __NR_creat, __NR_rename, __NR_unlink, __NR_rmdir, __NR_mkdir, __NR_link, __NR_symlink,
#endif
};

static const char *dir_path, *full_path;
static size_t dir_len;
static int listener, target_fd;
static volatile pid_t target;
static struct seccomp_notif *call;

// === the program ===

// filter makes the kernel report the watched calls, and openat where it creates or truncates.
static int filter(void) {
    enum { N = sizeof watched / sizeof *watched };
    struct sock_filter f[N + 9];
    int n = 0;
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < N; i++)
        f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, watched[i], N - i + 3, 0);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, __NR_openat, 0, 2);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2]));
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT | O_TRUNC, 1, 0);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    f[n++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog prog = {n, f};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    // Go interrupts its threads with signals often; without the second flag, calls would be reported twice.
    long fd = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
                      SECCOMP_FILTER_FLAG_NEW_LISTENER | SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV, &prog);
    if (fd < 0) die("seccomp");
    return (int)fd;
}

union control {
    struct cmsghdr head;
    char space[CMSG_SPACE(sizeof(int))];
};

static void child(pid_t parent, int sock, char **argv) {
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
    if (getppid() != parent) _exit(0);
    int fd = filter();
    char byte = 0;
    struct iovec iov = {&byte, 1};
    union control control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.head.cmsg_level = SOL_SOCKET;
    control.head.cmsg_type = SCM_RIGHTS;
    control.head.cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(&control.head), &fd, sizeof fd);
    if (sendmsg(sock, &msg, 0) < 0) _exit(126);
    close(fd);
    close(sock);
    execvp(argv[0], argv);
    _exit(127);
}

static int receive(int sock) {
    char byte;
    struct iovec iov = {&byte, 1};
    union control control = {0};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    if (recvmsg(sock, &msg, MSG_CMSG_CLOEXEC) <= 0) die("no listener");
    int fd;
    memcpy(&fd, CMSG_DATA(&control.head), sizeof fd);
    return fd;
}

static void on_term(int sig) {
    (void)sig;
    if (target <= 0) _exit(0);
    kill(target, SIGKILL);
}

// === answers; they fail if the caller has been killed meanwhile ===

static void answer(uint64_t id, int64_t val, int error, int flags) {
    struct seccomp_notif_resp r = {.id = id, .val = val, .error = -error, .flags = flags};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &r);
}

static void go_on(void) { answer(call->id, 0, 0, SECCOMP_USER_NOTIF_FLAG_CONTINUE); }

static void done(int result) { answer(call->id, 0, result < 0 ? errno : 0, 0); }

// === arguments of a call ===

static int below(const char *path) {
    return !strncmp(path, dir_path, dir_len) && (path[dir_len] == '/' || !path[dir_len]);
}

static int peek(uint64_t at, void *to, size_t n) {
    struct iovec local = {to, n}, remote = {(void *)at, n};
    return process_vm_readv(call->pid, &local, 1, &remote, 1, 0) == (ssize_t)n;
}

// borrow duplicates a descriptor of the program; 0 unless it is a file or directory below the tree.
static int borrow(int fd, struct stat *st, int *out) {
    char link[64], path[PATH_MAX];
    int d = (int)syscall(SYS_pidfd_getfd, target_fd, fd, 0);
    if (d < 0) return 0;
    if (!fstat(d, st) && (S_ISREG(st->st_mode) || S_ISDIR(st->st_mode))) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", d);
        ssize_t n = readlink(link, path, sizeof path - 1);
        if (n > 0 && (path[n] = 0, below(path))) {
            *out = d;
            return 1;
        }
    }
    close(d);
    return 0;
}

struct name {
    char path[PATH_MAX];
    const char *base;
    uint64_t dir;
};

// name resolves a path argument of the call; 0 if the path is not below the tree.
static int name(int at, uint64_t addr, struct name *out) {
    char given[PATH_MAX], joined[2 * PATH_MAX], prefix[PATH_MAX] = "", link[64];
    size_t n = 0;
    for (;; n++) { // page by page, because the next page may not be mapped
        size_t step = 4096 - (addr + n) % 4096;
        if (n + step > sizeof given) step = sizeof given - n;
        if (!step || !peek(addr + n, given + n, step)) return 0;
        char *end = memchr(given + n, 0, step);
        if (end) break;
        n += step - 1;
    }
    if (given[0] != '/') {
        if (at == AT_FDCWD)
            snprintf(link, sizeof link, "/proc/%d/cwd", call->pid);
        else
            snprintf(link, sizeof link, "/proc/%d/fd/%d", call->pid, at);
        n = readlink(link, prefix, sizeof prefix - 1);
        if ((ssize_t)n < 0) return 0;
        prefix[n] = 0;
    }
    snprintf(joined, sizeof joined, "%s/%s", prefix, given);
    for (n = strlen(joined); n > 1 && joined[n - 1] == '/';) joined[--n] = 0;
    char *slash = strrchr(joined, '/');
    if (!strcmp(slash + 1, ".") || !strcmp(slash + 1, "..")) return 0;
    *slash = 0;
    char real[PATH_MAX];
    if (!realpath(*joined ? joined : "/", real) || !below(real)) return 0;
    struct stat st;
    if (stat(real, &st) || snprintf(out->path, PATH_MAX, "%s/%s", real, slash + 1) >= PATH_MAX) return 0;
    out->dir = st.st_ino;
    out->base = out->path + strlen(real) + 1;
    return 1;
}

static int is_full(void) { return full_path && !access(full_path, F_OK); }

// === contents ===

static uint64_t iov_size(uint64_t addr, int count) {
    struct iovec v[IOV_MAX];
    uint64_t sum = 0;
    if (count <= 0 || count > IOV_MAX || !peek(addr, v, count * sizeof *v)) return 0;
    for (int i = 0; i < count; i++) sum += v[i].iov_len;
    return sum;
}

// do_write makes a write of n bytes at off, or at the descriptor's own offset if off is -1.
static void do_write(int fd, int64_t off, uint64_t n) {
    struct stat st;
    int d;
    if (!n || !borrow(fd, &st, &d)) return go_on();
    int flags = fcntl(d, F_GETFL);
    if (flags & O_APPEND)
        off = st.st_size;
    else if (off == -1)
        off = lseek(d, 0, SEEK_CUR);
    if (is_full() && off + (int64_t)n > st.st_size) {
        answer(call->id, 0, ENOSPC, 0);
    } else {
        // With O_DSYNC the write is durable as soon as it returns.
        if (!(flags & O_DSYNC)) record_content(WRITE, d, &st, off, n, off, off + n);
        go_on();
    }
    close(d);
}

static void do_copy(int in, int out, uint64_t off_at, uint64_t n) {
    struct stat st;
    int d;
    int64_t off = -1;
    if (off_at && !peek(off_at, &off, sizeof off)) return go_on();
    if ((d = (int)syscall(SYS_pidfd_getfd, target_fd, in, 0)) >= 0) {
        // Callers may ask for more than there is.
        if (!fstat(d, &st) && S_ISREG(st.st_mode) && (uint64_t)st.st_size < n) n = st.st_size;
        close(d);
    }
    do_write(out, off, n);
}

static void do_truncate(int d, struct stat *st, uint64_t size) {
    record_content(SIZE, d, st, size, 0, size, st->st_size);
}

static void do_ftruncate(int fd, uint64_t size) {
    struct stat st;
    int d;
    if (!borrow(fd, &st, &d)) return go_on();
    do_truncate(d, &st, size);
    go_on();
    close(d);
}

static void do_fallocate(int fd, int mode, uint64_t off, uint64_t n) {
    struct stat st;
    int d;
    if (!borrow(fd, &st, &d)) return go_on();
    if (mode & (FALLOC_FL_COLLAPSE_RANGE | FALLOC_FL_INSERT_RANGE)) {
        answer(call->id, 0, EOPNOTSUPP, 0);
    } else if (is_full() && !(mode & FALLOC_FL_PUNCH_HOLE)) {
        answer(call->id, 0, ENOSPC, 0);
    } else {
        if (mode & (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_ZERO_RANGE))
            record_content(WRITE, d, &st, off, n, off, off + n);
        if (!(mode & FALLOC_FL_KEEP_SIZE) && off + n > (uint64_t)st.st_size)
            record_content(SIZE, d, &st, off + n, 0, 0, 0);
        go_on();
    }
    close(d);
}

// === names: the call is made here, so that its outcome is known before the next call ===

static void do_open(int at, uint64_t path, int flags, mode_t mode) {
    struct name p;
    struct stat st;
    if (!name(at, path, &p)) return go_on();
    int existed = !lstat(p.path, &st);
    if (existed && (flags & O_TRUNC) && !(flags & O_EXCL) && S_ISREG(st.st_mode)) {
        int d = open(p.path, O_RDONLY | O_CLOEXEC);
        if (d >= 0) {
            do_truncate(d, &st, 0);
            close(d);
        }
    }
    int d = open(p.path, flags | O_CLOEXEC, mode);
    if (d < 0) return done(-1);
    if (!existed && !fstat(d, &st)) record_name(CREATE, 0, st.st_ino, p.dir, p.base, 0, "");
    struct seccomp_notif_addfd a = {
        .id = call->id, .flags = SECCOMP_ADDFD_FLAG_SEND, .srcfd = d, .newfd_flags = flags & O_CLOEXEC};
    ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &a);
    close(d);
}

static void do_mkdir(int at, uint64_t path, mode_t mode) {
    struct name p;
    struct stat st;
    if (!name(at, path, &p)) return go_on();
    int r = mkdir(p.path, mode), e = errno;
    if (!r && !stat(p.path, &st)) record_name(MKDIR, 0, st.st_ino, p.dir, p.base, 0, "");
    errno = e;
    done(r);
}

static void do_unlink(int at, uint64_t path, int flags) {
    struct name p;
    struct stat st;
    if (!name(at, path, &p)) return go_on();
    if (lstat(p.path, &st)) return done(-1);
    int r, e;
    if (flags & AT_REMOVEDIR) {
        r = rmdir(p.path), e = errno;
        if (!r) record_name(RMDIR, 0, st.st_ino, p.dir, p.base, 0, "");
    } else {
        int saved = save_aside(p.path, &st);
        r = unlink(p.path), e = errno;
        if (!r) record_name(UNLINK, saved, st.st_ino, p.dir, p.base, 0, "");
    }
    errno = e;
    done(r);
}

static void do_link(int at, uint64_t path) {
    struct name p;
    struct stat st;
    if (name(at, path, &p) && lstat(p.path, &st)) record_name(LINK, 0, 0, p.dir, p.base, 0, "");
    go_on();
}

static void do_rename(int at, uint64_t from, int at2, uint64_t to, unsigned flags) {
    struct name a, b;
    struct stat st, old;
    if (!name(at, from, &a) || !name(at2, to, &b)) return go_on();
    if (lstat(a.path, &st)) return done(-1);
    int replaced = 0;
    if (flags & RENAME_EXCHANGE)
        replaced = EXCHANGED;
    else if (!(flags & RENAME_NOREPLACE) && !lstat(b.path, &old) && old.st_ino != st.st_ino)
        replaced = S_ISDIR(old.st_mode) ? REPLACED_DIR : save_aside(b.path, &old);
    int r = renameat2(AT_FDCWD, a.path, AT_FDCWD, b.path, flags), e = errno;
    if (!r) record_name(RENAME, replaced, st.st_ino, a.dir, a.base, b.dir, b.base);
    errno = e;
    done(r);
}

// === syncs ===

// A sync takes a while, during which the program can be killed: it counts only after its end.
struct sync {
    uint64_t id, ino, upto;
    int64_t due;
};
static struct sync syncs[4096];
static int sync_count, slow;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void begin_sync(uint64_t ino) {
    if (sync_count == 4096) die("too many syncs");
    int64_t takes = rand() % 16 ? 200000 + rand() % 600000 : 1000000 + rand() % 6000000;
    syncs[sync_count++] = (struct sync){call->id, ino, last_seq(), now() + slow * takes};
}

static void do_sync(int fd) {
    struct stat st;
    int d;
    if (!borrow(fd, &st, &d)) return go_on();
    begin_sync(st.st_ino);
    close(d);
}

// finish_syncs answers the syncs that are due, and returns the time until the next one, or -1.
static int64_t finish_syncs(void) {
    int64_t next = -1, t = now();
    for (int i = 0; i < sync_count;) {
        struct sync s = syncs[i];
        if (s.due <= t) {
            syncs[i] = syncs[--sync_count];
            record_sync(s.ino, s.upto);
            answer(s.id, 0, 0, 0);
            continue;
        }
        if (next < 0 || s.due - t < next) next = s.due - t;
        i++;
    }
    return next;
}

// === the loop ===

static void dispatch(void) {
    const __u64 *a = call->data.args;
    switch (call->data.nr) {
    case __NR_write: return do_write(a[0], -1, a[2]);
    case __NR_pwrite64: return do_write(a[0], a[3], a[2]);
    case __NR_writev: return do_write(a[0], -1, iov_size(a[1], a[2]));
    case __NR_pwritev:
    case __NR_pwritev2: return do_write(a[0], a[3], iov_size(a[1], a[2]));
    case __NR_copy_file_range: return do_copy(a[0], a[2], a[3], a[4]);
    case __NR_splice: return do_copy(a[0], a[2], a[3], a[4]);
    case __NR_sendfile: return do_copy(a[1], a[0], 0, a[3]);
    case __NR_ftruncate: return do_ftruncate(a[0], a[1]);
    case __NR_truncate: {
        struct name p;
        struct stat st;
        int d;
        if (name(AT_FDCWD, a[0], &p) && (d = open(p.path, O_RDONLY | O_CLOEXEC)) >= 0) {
            if (!fstat(d, &st)) do_truncate(d, &st, a[1]);
            close(d);
        }
        return go_on();
    }
    case __NR_fallocate: return do_fallocate(a[0], a[1], a[2], a[3]);
    case __NR_openat: return do_open(a[0], a[1], a[2], a[3]);
    case __NR_renameat: return do_rename(a[0], a[1], a[2], a[3], 0);
    case __NR_renameat2: return do_rename(a[0], a[1], a[2], a[3], a[4]);
    case __NR_unlinkat: return do_unlink(a[0], a[1], a[2]);
    case __NR_mkdirat: return do_mkdir(a[0], a[1], a[2]);
    case __NR_linkat: return do_link(a[2], a[3]);
    case __NR_symlinkat: return do_link(a[1], a[2]);
#ifdef __NR_open
    case __NR_open: return a[1] & (O_CREAT | O_TRUNC) ? do_open(AT_FDCWD, a[0], a[1], a[2]) : go_on();
    case __NR_creat: return do_open(AT_FDCWD, a[0], O_CREAT | O_WRONLY | O_TRUNC, a[1]);
    case __NR_rename: return do_rename(AT_FDCWD, a[0], AT_FDCWD, a[1], 0);
    case __NR_unlink: return do_unlink(AT_FDCWD, a[0], 0);
    case __NR_rmdir: return do_unlink(AT_FDCWD, a[0], AT_REMOVEDIR);
    case __NR_mkdir: return do_mkdir(AT_FDCWD, a[0], a[1]);
    case __NR_link: return do_link(AT_FDCWD, a[1]);
    case __NR_symlink: return do_link(AT_FDCWD, a[1]);
#endif
    case __NR_fsync:
    case __NR_fdatasync: return do_sync(a[0]);
    case __NR_sync:
    case __NR_syncfs: return begin_sync(0);
    default: // openat2 and io_uring: callers fall back to other calls
        answer(call->id, 0, ENOSYS, 0);
    }
}

int main(int argc, char **argv) {
    static char real[PATH_MAX];
    int sock[2];
    const char *dir = getenv("FAULTS_DIR");
    signal(SIGTERM, on_term);
    if (argc < 2 || !dir || !realpath(dir, real)) die("usage: FAULTS_DIR=… FAULTS_JOURNAL=… FAULTS_SIDE=… faults PROGRAM ARGS...");
    dir_path = real;
    dir_len = strlen(real);
    full_path = getenv("FAULTS_ENOSPC");
    open_journal();
    srand(getpid());
    slow = rand() % 4 ? 1 : 10;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sock)) die("socketpair");
    pid_t self = getpid();
    if (!(target = fork())) child(self, sock[1], argv + 1);
    close(sock[1]);
    listener = receive(sock[0]);
    target_fd = (int)syscall(SYS_pidfd_open, target, 0);
    signal(SIGPIPE, SIG_IGN);
    call = calloc(1, 4096);
    for (;;) {
        int64_t wait = finish_syncs();
        struct timespec t = {wait / 1000000000, wait % 1000000000};
        struct pollfd p = {listener, POLLIN, 0};
        int n = ppoll(&p, 1, wait < 0 ? 0 : &t, 0);
        if (n > 0 && p.revents & POLLIN) {
            memset(call, 0, sizeof *call);
            if (!ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, call)) dispatch();
        } else if (n > 0) {
            break;
        }
    }
    int status = 0;
    waitpid(target, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
