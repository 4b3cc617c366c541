/* Tasks of known names that share the processors, and the guest's own account of their time: the truth for tasks.
 *
 * As the first process of a guest (or any other) it starts its own tasks and the programs named as arguments, then prints every few
 * seconds, for each process and each thread that has had 20 ms of processor time, on the console:
 *
 *     truth: REPORT PID TID COMM UTIME STIME CUTIME CSTIME RUN
 *
 * REPORT counts from 1. TID is 0 in the line of a process as a whole, ended threads included (/proc/PID/stat). COMM is in hex, as it
 * may hold any byte. UTIME and STIME are in clock ticks since the thread or process began, CUTIME and CSTIME those of the process'
 * children that have ended. RUN is schedstat's first field: nanoseconds that the thread (a process' first one) was on a processor
 * (proc(5), Documentation/scheduler/sched-stats.rst).
 * After a report's last line: "truth: REPORT end".
 *
 *     comm            what it does
 *     truth-spin      computes
 *     truth-threads   three threads: one computes as truth-one, one as truth-two, the first waits
 *     truth-nice      computes at nice 5
 *     truth-calls     system calls, one after the other: getppid, read of /dev/zero
 *     truth-sleeps    wakes 200 times a second to compute for a moment
 *     truth-forks     starts truth-child all the time, which computes for a moment and ends
 *     tr;th \xff(     computes at nice 5 under a name that is neither UTF-8 nor easy to print
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PERIOD_S 5

static volatile unsigned long sink;

static void compute(long steps)
{
    unsigned long x = 88172645463325252ul;
    for (long i = steps; i > 0; i--) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    sink = x;
}

static void compute_for_ever(void)
{
    for (;;)
        compute(1000000);
}

static void set_name(const char *name) { prctl(PR_SET_NAME, name, 0, 0, 0); }

static void *compute_as(void *name)
{
    set_name(name);
    compute_for_ever();
    return NULL;
}

static void threads(void)
{
    pthread_t one, two;
    pthread_create(&one, NULL, compute_as, "truth-one");
    pthread_create(&two, NULL, compute_as, "truth-two");
    pthread_join(one, NULL);
}

static void be_nice(void)
{
    if (nice(5) == -1)
        _exit(1);
    compute_for_ever();
}

static void calls(void)
{
    static char buffer[1 << 15];
    int zero = open("/dev/zero", O_RDONLY);
    for (;;) {
        for (int i = 0; i < 1000; i++)
            getppid();
        for (int i = 0; i < 100; i++)
            if (read(zero, buffer, sizeof buffer) < 0)
                _exit(1);
    }
}

static void sleeps(void)
{
    struct timespec period = {0, 5000000};
    for (;;) {
        compute(20000);
        nanosleep(&period, NULL);
    }
}

static void forks(void)
{
    for (;;) {
        pid_t child = fork();
        if (child == 0) {
            set_name("truth-child");
            compute(300000);
            _exit(0);
        }
        if (child > 0)
            waitpid(child, NULL, 0);
    }
}

static void start(const char *name, void (*work)(void))
{
    if (fork() == 0) {
        set_name(name);
        work();
        _exit(1);
    }
}

static int read_file(const char *path, char *buffer, int size)
{
    int file = open(path, O_RDONLY);
    int got = file < 0 ? -1 : (int)read(file, buffer, (size_t)size - 1);
    if (file >= 0)
        close(file);
    buffer[got > 0 ? got : 0] = 0;
    return got;
}

/* One line for a thread or a process. The name in stat(5) stands between the first "(" and the last ")", whatever it holds. */
static void report_one(FILE *console, int report, const char *directory, const char *pid, const char *tid)
{
    char path[600], stat[1024], run[256];
    snprintf(path, sizeof path, "%s/stat", directory);
    int got = read_file(path, stat, sizeof stat);
    snprintf(path, sizeof path, "%s/schedstat", directory);
    read_file(path, run, sizeof run);
    char *begin = strchr(stat, '('), *end = strrchr(stat, ')');
    if (got <= 0 || begin == NULL || end == NULL)
        return; /* it has ended */
    char hex[65] = "";
    for (char *c = begin + 1; c < end && c < begin + 17; c++)
        snprintf(hex + strlen(hex), 3, "%02x", (unsigned char)*c);
    unsigned long user = 0, system = 0;
    long child_user = 0, child_system = 0;
    sscanf(end + 1, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu %ld %ld", &user, &system, &child_user, &child_system);
    run[strcspn(run, " \n")] = 0;
    if (strtoull(run, NULL, 10) < 20000000 && user + system < 2)
        return; /* the console is slow */
    fprintf(console, "truth: %d %s %s %s %lu %lu %ld %ld %s\n", report, pid, tid, hex, user, system, child_user, child_system, run);
}

static void report_all(FILE *console, int report)
{
    DIR *processes = opendir("/proc");
    struct dirent *process, *thread;
    while (processes != NULL && (process = readdir(processes)) != NULL) {
        char path[300], thread_path[600];
        if (process->d_name[0] < '0' || process->d_name[0] > '9')
            continue;
        snprintf(path, sizeof path, "/proc/%s", process->d_name);
        report_one(console, report, path, process->d_name, "0");
        snprintf(path, sizeof path, "/proc/%s/task", process->d_name);
        DIR *threads_of = opendir(path);
        while (threads_of != NULL && (thread = readdir(threads_of)) != NULL) {
            if (thread->d_name[0] == '.')
                continue;
            snprintf(thread_path, sizeof thread_path, "%s/%s", path, thread->d_name);
            report_one(console, report, thread_path, process->d_name, thread->d_name);
        }
        if (threads_of != NULL)
            closedir(threads_of);
    }
    if (processes != NULL)
        closedir(processes);
    fprintf(console, "truth: %d end\n", report);
    fflush(console);
}

int main(int count, char **arguments)
{
    if (getpid() == 1) {
        mount("proc", "/proc", "proc", 0, NULL);
        mount("dev", "/dev", "devtmpfs", 0, NULL);
    }
    FILE *console = fopen("/dev/console", "w");
    if (console == NULL)
        return 1;
    /* A report is one write: nobody's line comes between. */
    setvbuf(console, NULL, _IOFBF, 1 << 16);

    start("truth-spin", compute_for_ever);
    start("truth-threads", threads);
    start("truth-nice", be_nice);
    start("truth-calls", calls);
    start("truth-sleeps", sleeps);
    start("truth-forks", forks);
    start("tr;th \xff(", be_nice);
    for (int i = 1; i < count; i++)
        if (fork() == 0) {
            execl(arguments[i], arguments[i], (char *)NULL);
            _exit(1);
        }
    fprintf(console, "truth: begins\n");
    fflush(console);

    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    for (int report = 1;; report++) {
        next.tv_sec += PERIOD_S;
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL) != 0)
            ;
        report_all(console, report);
    }
}
