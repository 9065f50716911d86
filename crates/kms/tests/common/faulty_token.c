// A PKCS#11 library before another one. It passes everything on, and logs in as its folder says:
//
//   hang    exists: C_Login does not return before it is gone
//   locked  exists: C_Login answers CKR_PIN_LOCKED
//   logins  a line for every C_Login
//
// FAULTY_TOKEN names the folder, FAULTY_TOKEN_OF the library behind.

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long CK_RV;
typedef CK_RV (*Login)(unsigned long session, unsigned long user, unsigned char *pin, unsigned long length);

// PKCS#11 2.40: a version, then 68 functions in a fixed order.
struct functions {
    unsigned char version[2];
    void *function[68];
};

enum { LOGIN = 18, CKR_GENERAL_ERROR = 5, CKR_PIN_LOCKED = 0xa4 };

static struct functions ours;
static Login behind;

static const char *in_folder(const char *name) {
    static __thread char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("FAULTY_TOKEN"), name);
    return path;
}

static CK_RV login(unsigned long session, unsigned long user, unsigned char *pin, unsigned long length) {
    FILE *logins = fopen(in_folder("logins"), "a");
    if (!logins) return CKR_GENERAL_ERROR;
    fputs("login\n", logins);
    fclose(logins);
    while (access(in_folder("hang"), F_OK) == 0) usleep(10000);
    if (access(in_folder("locked"), F_OK) == 0) return CKR_PIN_LOCKED;
    return behind(session, user, pin, length);
}

CK_RV C_GetFunctionList(struct functions **list) {
    struct functions *theirs;
    void *library = dlopen(getenv("FAULTY_TOKEN_OF"), RTLD_NOW);
    if (!library) return CKR_GENERAL_ERROR;
    CK_RV (*get)(struct functions **) = (CK_RV (*)(struct functions **))dlsym(library, "C_GetFunctionList");
    if (!get || get(&theirs) != 0) return CKR_GENERAL_ERROR;
    memcpy(&ours, theirs, sizeof ours);
    behind = (Login)theirs->function[LOGIN];
    ours.function[LOGIN] = (void *)login;
    *list = &ours;
    return 0;
}
