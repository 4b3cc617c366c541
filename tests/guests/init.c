/* The initramfs' first process: loads the kernel's modules, mounts the disk, hands over to the program on it.
 *
 * A program of its own and not a busybox script, because Debian's busybox has neither unwind tables nor frame pointers: what it
 * does at boot would be in no user stack, and it does it all the time.
 *
 * On the kernel's command line: guestprof.init=PATH (default: /sbin/init), guestprof.arguments=A,B for it.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_ARGUMENTS 16

static void fail(const char *what)
{
    perror(what);
    exit(1); /* which panics, and so ends a test that waits */
}

static void load_modules(void)
{
    char path[256];
    FILE *list = fopen("/modules/list", "r");
    while (list != NULL && fgets(path, sizeof path, list) != NULL) {
        path[strcspn(path, "\n")] = 0;
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0 || syscall(SYS_finit_module, file, "", 0) != 0)
            fail(path);
        close(file);
    }
}

static struct sockaddr ipv4(const char *text)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    struct sockaddr any;
    inet_pton(AF_INET, text, &address.sin_addr);
    memcpy(&any, &address, sizeof any);
    return any;
}

static void set_up_network(void)
{
    int control = socket(AF_INET, SOCK_DGRAM, 0);
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP};
    struct ifreq card = {.ifr_name = "eth0"};
    struct rtentry route = {.rt_flags = RTF_UP | RTF_GATEWAY};

    ioctl(control, SIOCSIFFLAGS, &loopback);
    card.ifr_addr = ipv4("10.0.2.15");
    if (ioctl(control, SIOCSIFADDR, &card) != 0)
        fail("eth0");
    card.ifr_addr = ipv4("255.255.255.0");
    ioctl(control, SIOCSIFNETMASK, &card);
    card.ifr_flags = IFF_UP;
    ioctl(control, SIOCSIFFLAGS, &card);
    route.rt_gateway = ipv4("10.0.2.2");
    route.rt_dst = route.rt_genmask = ipv4("0.0.0.0");
    if (ioctl(control, SIOCADDRT, &route) != 0)
        fail("route");
    close(control);
}

/* The value of a switch on the kernel's command line, or NULL. */
static char *option(const char *command_line, const char *name)
{
    static char values[2][2048];
    static int count;
    const char *found = strstr(command_line, name);
    if (found == NULL)
        return NULL;
    char *value = values[count++ % 2];
    found += strlen(name);
    snprintf(value, sizeof values[0], "%.*s", (int)strcspn(found, " \n"), found);
    return value;
}

int main(void)
{
    static char command_line[4096];
    char *arguments[MAX_ARGUMENTS + 2] = {"/sbin/init"};

    mount("dev", "/dev", "devtmpfs", 0, NULL);
    mount("proc", "/proc", "proc", 0, NULL);
    int file = open("/proc/cmdline", O_RDONLY);
    if (file < 0 || read(file, command_line, sizeof command_line - 1) <= 0)
        fail("/proc/cmdline");
    close(file);
    umount("/proc");

    load_modules();
    set_up_network();
    const char *disk = access("/dev/vda1", F_OK) == 0 ? "/dev/vda1" : "/dev/vda";
    if (mount(disk, "/root", "ext4", 0, NULL) != 0)
        fail(disk);

    char *program = option(command_line, "guestprof.init="), *list = option(command_line, "guestprof.arguments=");
    if (program != NULL)
        arguments[0] = program;
    int count = 1;
    for (char *word = list == NULL ? NULL : strtok(list, ","); word != NULL && count <= MAX_ARGUMENTS; word = strtok(NULL, ","))
        arguments[count++] = word;

    /* As switch_root does, but for emptying the old root: it is small. */
    if (mount("/dev", "/root/dev", NULL, MS_MOVE, NULL) != 0 || chdir("/root") != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 ||
        chroot(".") != 0 || chdir("/") != 0)
        fail("switch_root");
    execv(arguments[0], arguments);
    fail(arguments[0]);
}
