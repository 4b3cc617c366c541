/* Mappings of every kind that /proc/PID/maps names, and many of them: the truth for mappings.
 *
 *     mappings-truth DATA     DATA: a file to map without execute permission
 *
 * It maps 400 anonymous pages of alternating permissions (a tree of mappings with several levels), executable memory of no file, of a
 * memfd, of a System V segment and of shared anonymous memory, and DATA; prints "truth: mapped" and waits for ever.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/shm.h>
#include <unistd.h>

static void check(int is_good, const char *what)
{
    if (!is_good) {
        perror(what);
        exit(1);
    }
}

static void map(int flags, int file, const char *what)
{
    check(mmap(NULL, 8192, PROT_READ | PROT_EXEC, flags, file, 0) != MAP_FAILED, what);
}

int main(int argc, char **argv)
{
    check(argc == 2, "usage");
    char *pages = mmap(NULL, 400 * 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    check(pages != MAP_FAILED, "mmap");
    for (int i = 0; i < 400; i += 2)
        check(mprotect(pages + i * 4096, 4096, PROT_READ | PROT_WRITE) == 0, "mprotect");

    int memory = memfd_create("of a \xff memfd", 0);
    check(memory >= 0 && ftruncate(memory, 8192) == 0, "memfd");
    int segment = shmget(0x1234, 8192, IPC_CREAT | 0700);
    check(segment >= 0 && shmat(segment, NULL, SHM_RDONLY | SHM_EXEC) != (void *)-1, "shm");
    int data = open(argv[1], O_RDONLY);
    check(data >= 0 && mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, data, 0) != MAP_FAILED, "data");
    map(MAP_PRIVATE | MAP_ANONYMOUS, -1, "anonymous");
    map(MAP_PRIVATE, memory, "memfd");
    map(MAP_SHARED | MAP_ANONYMOUS, -1, "shared");
    puts("truth: mapped");
    fflush(stdout);
    for (;;)
        pause();
}
