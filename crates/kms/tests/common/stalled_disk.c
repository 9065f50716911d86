// Makes a disk hang: while the file that STALLED_DISK names exists, whatever is to be written or flushed waits.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/types.h>
#include <unistd.h>

static void wait_while_stalled(void) {
    const char *stalled = getenv("STALLED_DISK");
    while (stalled && access(stalled, F_OK) == 0) usleep(10000);
}

int fsync(int file) {
    wait_while_stalled();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(file);
}

int fdatasync(int file) {
    wait_while_stalled();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(file);
}

ssize_t pwrite64(int file, const void *bytes, size_t length, off64_t at) {
    wait_while_stalled();
    return ((ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64"))(file, bytes, length, at);
}
