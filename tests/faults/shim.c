/* A fault at the k-th system call that changes something below a folder.
 *
 *   cc -shared -fPIC -O1 -o shim.so shim.c -ldl        LD_PRELOAD=shim.so
 *
 * Processes that were started with FAULTS_CONTROL=file, or that call faults_arm(file), share the numbers in that file
 * (struct control; injector.py has the same layout): calls are counted across all of them, and what is to happen at
 * which call is read from it. Each call can be written to a log, with its data, from which power.py makes the states
 * that a power cut may leave.
 *
 * A call counts when it changes a name or a byte below `root`: creating or truncating open, write, truncate, mkdir,
 * rename, link, unlink, rmdir; and fsync. Not seen: stores into shared mappings, and programs that make system calls
 * without libc. strace sees the latter: test_injector.py compares.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { NOTHING, KILL, KILL_ONE, TEAR, FAIL, SHORT, KILL_AFTER };
enum operation { CREATE, TRUNCATE, WRITE, RENAME, LINK, UNLINK, MKDIR, RMDIR, FSYNC };

struct control {
    uint64_t count;      /* calls so far */
    uint64_t at;         /* the call at which it happens, from 1 */
    int32_t action;
    int32_t error;       /* errno of FAIL */
    int32_t persistent;  /* FAIL, SHORT: also at every later call */
    int32_t dead;        /* the power is off: nothing changes any more */
    int32_t hits;        /* how often it happened */
    int32_t log;         /* 0 none, 1 names, 2 names and data */
    char root[PATH_MAX];
    char logged[PATH_MAX];
};

struct record { /* of the log; then first, second and data */
    uint32_t operation, pid;
    int64_t offset, result;
    uint32_t first, second, data, flags;
};

static struct control *control;
static int log_fd = -1;

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

int faults_arm(const char *path)
{
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return -1;
    void *page = mmap(NULL, sizeof(struct control), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    syscall(SYS_close, fd);
    if (page == MAP_FAILED) return -1;
    control = page;
    if (control->log) {
        fd = syscall(SYS_openat, AT_FDCWD, control->logged, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
        log_fd = syscall(SYS_fcntl, fd, F_DUPFD_CLOEXEC, 900); /* where nobody closes it by its number */
        syscall(SYS_close, fd);
    }
    return 0;
}

__attribute__((constructor)) static void begin(void)
{
    const char *path = getenv("FAULTS_CONTROL");
    if (path && *path) faults_arm(path);
}

/* Names. */

static int below(const char *path)
{
    size_t length = strlen(control->root);
    return !strncmp(path, control->root, length) && (path[length] == '/' || !path[length]);
}

static int named_at(int folder, const char *path, char *whole)
{
    if (!control || !path) return 0;
    if (path[0] == '/') snprintf(whole, PATH_MAX, "%s", path);
    else {
        char link[64], at[PATH_MAX];
        if (folder == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
        else snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t length = syscall(SYS_readlink, link, at, sizeof at - 1);
        if (length < 0) return 0;
        at[length] = 0;
        if (snprintf(whole, PATH_MAX, "%s/%s", at, path) >= PATH_MAX) return 0;
    }
    return below(whole);
}

static int named_by(int fd, char *whole)
{
    if (!control || fd < 0 || fd == log_fd) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = syscall(SYS_readlink, link, whole, PATH_MAX - 1);
    if (length < 0) return 0;
    whole[length] = 0;
    return below(whole);
}

static int there(const char *path)
{
    return syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
}

/* What happens. */

static void die(void)
{
    syscall(SYS_kill, syscall(SYS_getpid), SIGKILL);
    for (;;) syscall(SYS_pause);
}

static void put_down(int operation, const char *first, const char *second, int64_t offset, int64_t result,
                     const void *data, size_t bytes, int flags)
{
    if (log_fd < 0) return;
    if (control->log < 2 || result < 0) bytes = 0;
    struct record record = {operation, syscall(SYS_getpid), offset, result,
                            strlen(first), second ? strlen(second) : 0, bytes, flags};
    struct iovec parts[4] = {{&record, sizeof record}, {(void *)first, record.first},
                             {(void *)second, record.second}, {(void *)data, bytes}};
    if (syscall(SYS_writev, log_fd, parts, 4) < 0) die();
}

static int can(int operation, int error)
{
    if (error == EFBIG) return operation == WRITE || operation == TRUNCATE;
    if (error == EINTR) return operation == WRITE || operation == CREATE || operation == FSYNC;
    if (error == ENOSPC || error == EDQUOT) return operation != UNLINK && operation != RMDIR;
    return 1;
}

/* Counts a call. What is to happen: NOTHING, TEAR, FAIL (errno is set), SHORT or KILL_AFTER. */
static int due(int operation)
{
    if (__atomic_load_n(&control->dead, __ATOMIC_SEQ_CST)) die();
    uint64_t number = __atomic_add_fetch(&control->count, 1, __ATOMIC_SEQ_CST);
    int action = control->action, now = number == control->at || (control->persistent && number > control->at);
    if (!now || action == NOTHING) return NOTHING;
    if (action == FAIL && !can(operation, control->error)) return NOTHING;
    if ((action == SHORT) && operation != WRITE) return NOTHING;
    __atomic_add_fetch(&control->hits, 1, __ATOMIC_SEQ_CST);
    if (action == KILL) __atomic_store_n(&control->dead, 1, __ATOMIC_SEQ_CST);
    if (action == KILL || action == KILL_ONE) die();
    if (action == TEAR && operation != WRITE) return KILL_AFTER;
    if (action == FAIL) errno = control->error;
    return action;
}

static void after(int what)
{
    if (what != KILL_AFTER && what != TEAR) return;
    __atomic_store_n(&control->dead, 1, __ATOMIC_SEQ_CST);
    die();
}

/* Creating and truncating. */

static int opened(int folder, const char *path, int flags, mode_t mode)
{
    char whole[PATH_MAX];
    int changes = flags & (O_CREAT | O_TRUNC) && (flags & O_ACCMODE) != O_RDONLY && (flags & O_TMPFILE) != O_TMPFILE;
    if (!changes || !named_at(folder, path, whole)) return syscall(SYS_openat, folder, path, flags, mode);
    int old = there(whole);
    if (old && !(flags & O_TRUNC)) return syscall(SYS_openat, folder, path, flags, mode);
    int what = due(old ? TRUNCATE : CREATE);
    if (what == FAIL) return -1;
    int fd = syscall(SYS_openat, folder, path, flags, mode), error = errno;
    put_down(old ? TRUNCATE : CREATE, whole, NULL, 0, fd < 0 ? -1 : 0, NULL, 0, flags);
    after(what);
    errno = error;
    return fd;
}

#define MODE mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, int); va_end(list); }

int open(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE return opened(AT_FDCWD, path, flags | O_LARGEFILE, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE return opened(folder, path, flags | O_LARGEFILE, mode); }
int creat(const char *path, mode_t mode) { return opened(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return creat(path, mode); }

static FILE *opened_as_stream(const char *path, const char *mode, FILE *(*real)(const char *, const char *))
{
    char whole[PATH_MAX];
    if (!strpbrk(mode, "wa") || !named_at(AT_FDCWD, path, whole)) return real(path, mode);
    int old = there(whole), what = NOTHING;
    if (!old || strchr(mode, 'w')) {
        what = due(old ? TRUNCATE : CREATE);
        if (what == FAIL) return NULL;
        put_down(old ? TRUNCATE : CREATE, whole, NULL, 0, 0, NULL, 0, 0);
    }
    FILE *file = real(path, mode);
    after(what);
    return file;
}

FILE *fopen(const char *path, const char *mode) { REAL(fopen); return opened_as_stream(path, mode, real); }
FILE *fopen64(const char *path, const char *mode) { REAL(fopen64); return opened_as_stream(path, mode, real); }

/* Writing. */

static ssize_t written(int fd, const void *data, size_t bytes, off_t offset)
{
    char whole[PATH_MAX];
    int plain = offset < 0;
    if (!named_by(fd, whole))
        return plain ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, offset);
    int what = due(WRITE);
    if (what == FAIL) return -1;
    if ((what == SHORT || what == TEAR) && bytes > 1) bytes /= 2;
    int append = syscall(SYS_fcntl, fd, F_GETFL) & O_APPEND;
    off_t at = !plain && !append ? offset : (off_t)syscall(SYS_lseek, fd, 0, append ? SEEK_END : SEEK_CUR);
    ssize_t result = plain ? syscall(SYS_write, fd, data, bytes) : syscall(SYS_pwrite64, fd, data, bytes, offset);
    int error = errno;
    put_down(WRITE, whole, NULL, at, result, data, result > 0 ? result : 0, 0);
    after(what);
    errno = error;
    return result;
}

static ssize_t gathered(int fd, const struct iovec *parts, int number, off_t offset)
{
    char whole[PATH_MAX];
    if (!named_by(fd, whole))
        return offset < 0 ? syscall(SYS_writev, fd, parts, number)
                          : syscall(SYS_pwritev, fd, parts, number, (long)offset, (long)0);
    for (int part = 0; part < number; part++) /* a short write: the caller comes again for the rest */
        if (parts[part].iov_len) return written(fd, parts[part].iov_base, parts[part].iov_len, offset);
    return 0;
}

static ssize_t copied(int out, int in, off_t *offset, size_t bytes)
{
    static __thread char buffer[1 << 16];
    if (bytes > sizeof buffer) bytes = sizeof buffer;
    ssize_t got = offset ? syscall(SYS_pread64, in, buffer, bytes, *offset) : syscall(SYS_read, in, buffer, bytes);
    if (got <= 0) return got;
    ssize_t done = written(out, buffer, got, -1);
    if (offset && done > 0) *offset += done;
    if (!offset && done < got) syscall(SYS_lseek, in, (done < 0 ? 0 : done) - got, SEEK_CUR);
    return done;
}

ssize_t write(int fd, const void *data, size_t bytes) { return written(fd, data, bytes, -1); }
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t at) { return written(fd, data, bytes, at); }
ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t at) { return written(fd, data, bytes, at); }
ssize_t writev(int fd, const struct iovec *parts, int number) { return gathered(fd, parts, number, -1); }
ssize_t pwritev(int fd, const struct iovec *parts, int number, off_t at) { return gathered(fd, parts, number, at); }
ssize_t pwritev64(int fd, const struct iovec *parts, int number, off64_t at) { return gathered(fd, parts, number, at); }

ssize_t sendfile(int out, int in, off_t *offset, size_t bytes)
{
    char whole[PATH_MAX];
    if (!named_by(out, whole)) return syscall(SYS_sendfile, out, in, offset, bytes);
    return copied(out, in, offset, bytes);
}
ssize_t sendfile64(int out, int in, off64_t *offset, size_t bytes) { return sendfile(out, in, offset, bytes); }

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t bytes, unsigned flags)
{
    char whole[PATH_MAX];
    if (!named_by(out, whole)) return syscall(SYS_copy_file_range, in, from, out, to, bytes, flags);
    errno = EXDEV; /* callers fall back to read and write */
    return -1;
}

static int resized(int fd, off_t length)
{
    char whole[PATH_MAX];
    if (!named_by(fd, whole)) return syscall(SYS_ftruncate, fd, length);
    int what = due(TRUNCATE);
    if (what == FAIL) return -1;
    int result = syscall(SYS_ftruncate, fd, length), error = errno;
    put_down(TRUNCATE, whole, NULL, length, result, NULL, 0, 0);
    after(what);
    errno = error;
    return result;
}
int ftruncate(int fd, off_t length) { return resized(fd, length); }
int ftruncate64(int fd, off64_t length) { return resized(fd, length); }

/* Forcing to the disk. */

static int forced(int fd, int number)
{
    char whole[PATH_MAX];
    if (!named_by(fd, whole)) return syscall(number, fd);
    int what = due(FSYNC);
    if (what == FAIL) return -1;
    put_down(FSYNC, whole, NULL, 0, 0, NULL, 0, 0); /* the disk itself is left alone: the page cache survives us */
    after(what);
    return 0;
}
int fsync(int fd) { return forced(fd, SYS_fsync); }
int fdatasync(int fd) { return forced(fd, SYS_fdatasync); }

/* Names that change. */

static int changed(int operation, int from, const char *first, int to, const char *second, int flags, int number)
{
    char old[PATH_MAX], new[PATH_MAX] = "";
    int mine = named_at(from, first, old) | (second && operation != CREATE ? named_at(to, second, new) : 0);
    if (mine) {
        int what = due(operation);
        if (what == FAIL) return -1;
        int result = number == SYS_mkdirat ? syscall(number, from, first, flags)
                   : number == SYS_unlinkat ? syscall(number, from, first, flags)
                   : syscall(number, from, first, to, second, flags), error = errno;
        put_down(operation, old, second ? new : NULL, 0, result, NULL, 0, flags);
        after(what);
        errno = error;
        return result;
    }
    return number == SYS_mkdirat || number == SYS_unlinkat ? syscall(number, from, first, flags)
                                                           : syscall(number, from, first, to, second, flags);
}

int rename(const char *old, const char *new) { return changed(RENAME, AT_FDCWD, old, AT_FDCWD, new, 0, SYS_renameat2); }
int renameat(int from, const char *old, int to, const char *new) { return changed(RENAME, from, old, to, new, 0, SYS_renameat2); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) { return changed(RENAME, from, old, to, new, flags, SYS_renameat2); }
int link(const char *old, const char *new) { return changed(LINK, AT_FDCWD, old, AT_FDCWD, new, 0, SYS_linkat); }
int linkat(int from, const char *old, int to, const char *new, int flags) { return changed(LINK, from, old, to, new, flags, SYS_linkat); }
int unlink(const char *path) { return changed(UNLINK, AT_FDCWD, path, 0, NULL, 0, SYS_unlinkat); }
int unlinkat(int folder, const char *path, int flags) { return changed(flags & AT_REMOVEDIR ? RMDIR : UNLINK, folder, path, 0, NULL, flags, SYS_unlinkat); }
int rmdir(const char *path) { return changed(RMDIR, AT_FDCWD, path, 0, NULL, AT_REMOVEDIR, SYS_unlinkat); }
int remove(const char *path)
{
    int result = unlink(path);
    return result && errno == EISDIR ? rmdir(path) : result;
}
int mkdir(const char *path, mode_t mode) { return changed(MKDIR, AT_FDCWD, path, 0, NULL, mode, SYS_mkdirat); }
int mkdirat(int folder, const char *path, mode_t mode) { return changed(MKDIR, folder, path, 0, NULL, mode, SYS_mkdirat); }
