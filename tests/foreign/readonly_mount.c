/* Preloaded into programs of foreign test suites: what they mount read-only, they get through rafsfs.
 *
 * cover(1) of this folder seals what is in the directory and mounts it in its place. COVER is its path.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/wait.h>

static int cover(const char *verb, const char *directory)
{
    char command[8192];
    const char *program = getenv("COVER");
    if (!program)
        abort();
    snprintf(command, sizeof command, "LD_PRELOAD= '%s' %s '%s' 1>&2", program, verb, directory);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

int mount(const char *source, const char *target, const char *type, unsigned long flags, const void *data)
{
    int (*real)(const char *, const char *, const char *, unsigned long, const void *) = dlsym(RTLD_NEXT, "mount");
    int result = real(source, target, type, flags, data);
    if (result == 0 && (flags & MS_RDONLY) && cover("on", target) != 0)
        abort();
    return result;
}

int umount(const char *target)
{
    int (*real)(const char *) = dlsym(RTLD_NEXT, "umount");
    return cover("off", target) == 0 ? 0 : real(target);
}

int umount2(const char *target, int flags)
{
    int (*real)(const char *, int) = dlsym(RTLD_NEXT, "umount2");
    return cover("off", target) == 0 ? 0 : real(target, flags);
}
