/*
 * A program that makes code at run time, as JIT compilers do, and names it in /tmp/perf-PID.map.
 *
 *     jit NAME closed     writes the file once and closes it
 *     jit NAME open       keeps it open, and makes and names more code every half second
 *     jit NAME none       writes none
 *
 * NAME becomes its comm. Each time: main, run, jit_outer_N, jit_inner_N, which spins; all have frame pointers, and the code that was
 * made has no table.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#define AREA (1 << 20)
#define MAX_FUNCTIONS 1000

static unsigned char *area, *end;
static FILE *map;

static void emit(const void *bytes, size_t size)
{
    memcpy(end, bytes, size);
    end += size;
}

static void name(const unsigned char *start, const char *kind, int number)
{
    if (map != NULL)
        fprintf(map, "%lx %lx jit_%s_%d\n", (unsigned long)start, (unsigned long)(end - start), kind, number);
}

/* push %rbp; mov %rsp,%rbp ... pop %rbp; ret */
static const unsigned char PROLOGUE[] = {0x55, 0x48, 0x89, 0xe5}, EPILOGUE[] = {0x5d, 0xc3};

static void (*make(int number))(void)
{
    const uint32_t rounds = 3000000;
    unsigned char *inner = end;
    emit(PROLOGUE, sizeof PROLOGUE);
    emit("\xb9", 1); /* mov $rounds,%ecx */
    emit(&rounds, sizeof rounds);
    emit("\xff\xc9\x75\xfc", 4); /* 1: dec %ecx; jne 1b */
    emit(EPILOGUE, sizeof EPILOGUE);
    name(inner, "inner", number);
    unsigned char *outer = end;
    emit(PROLOGUE, sizeof PROLOGUE);
    emit("\x48\xb8", 2); /* movabs $inner,%rax */
    emit(&inner, sizeof inner);
    emit("\xff\xd0", 2); /* call *%rax */
    emit(EPILOGUE, sizeof EPILOGUE);
    name(outer, "outer", number);
    return (void (*)(void))outer;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

__attribute__((noinline)) static void run(int grows)
{
    void (*function)(void) = make(0);
    double next = now() + 0.5;
    if (map != NULL && grows)
        fflush(map);
    else if (map != NULL)
        fclose(map);
    printf("jit: running\n");
    fflush(stdout);
    for (int number = 1;;) {
        function();
        if (grows && number < MAX_FUNCTIONS && now() > next) {
            function = make(number++);
            fflush(map);
            next = now() + 0.5;
        }
    }
}

int main(int count, char **arguments)
{
    char path[64];
    if (count < 3)
        return 2;
    prctl(PR_SET_NAME, arguments[1]);
    area = end = mmap(NULL, AREA, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (area == MAP_FAILED)
        return 1;
    snprintf(path, sizeof path, "/tmp/perf-%d.map", getpid());
    if (strcmp(arguments[2], "none") != 0 && (map = fopen(path, "w")) == NULL)
        return 1;
    run(strcmp(arguments[2], "open") == 0);
    return 0;
}
