/* A file system that fails: calls that write below FAILING_BELOW are counted, and from number FAILING_AT on they fail.
 *
 * FAILING_WITH=ENOSPC: all later ones too, as on a full disk. EIO: that one only. FAILING_COUNT: file for the number of calls.
 * Loaded with LD_PRELOAD.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long calls;

static int below(const char *path) {
  const char *folder = getenv("FAILING_BELOW");
  char absolute[PATH_MAX];
  if (!folder || !path) return 0;
  if (path[0] != '/') {
    if (!getcwd(absolute, sizeof absolute)) return 0;
    strncat(absolute, "/", sizeof absolute - strlen(absolute) - 1);
    strncat(absolute, path, sizeof absolute - strlen(absolute) - 1);
    path = absolute;
  }
  return strncmp(path, folder, strlen(folder)) == 0;
}

static int below_descriptor(int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

static int fails(void) {
  long number = __sync_add_and_fetch(&calls, 1);
  const char *at = getenv("FAILING_AT"), *with = getenv("FAILING_WITH");
  if (!at || !atol(at)) return 0;
  int full = with && !strcmp(with, "ENOSPC");
  if (full ? number < atol(at) : number != atol(at)) return 0;
  errno = full ? ENOSPC : EIO;
  return 1;
}

__attribute__((destructor)) static void count(void) {
  const char *file = getenv("FAILING_COUNT");
  if (!file) return;
  FILE *stream = fopen(file, "w");
  if (stream) {
    fprintf(stream, "%ld", calls);
    fclose(stream);
  }
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int creates(int flags) { return (flags & (O_CREAT | O_TRUNC)) != 0; }

int open64(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = creates(flags) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (creates(flags) && below(path) && fails()) return -1;
  return REAL(open64)(path, flags, mode);
}

int open(const char *path, int flags, ...) {
  va_list rest;
  va_start(rest, flags);
  mode_t mode = creates(flags) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  if (creates(flags) && below(path) && fails()) return -1;
  return REAL(open64)(path, flags, mode);
}

ssize_t write(int descriptor, const void *bytes, size_t size) {
  if (below_descriptor(descriptor) && fails()) return -1;
  return REAL(write)(descriptor, bytes, size);
}

int fsync(int descriptor) {
  if (below_descriptor(descriptor) && fails()) return -1;
  return REAL(fsync)(descriptor);
}

int rename(const char *from, const char *to) {
  if (below(to) && fails()) return -1;
  return REAL(rename)(from, to);
}

int mkdir(const char *path, mode_t mode) {
  if (below(path) && fails()) return -1;
  return REAL(mkdir)(path, mode);
}

int ftruncate64(int descriptor, off64_t size) {
  if (below_descriptor(descriptor) && fails()) return -1;
  return REAL(ftruncate64)(descriptor, size);
}
