/* A small fast client: client orc|pread|cat COUNT PAUSE FILE prints the median and the 99th
 * percentile of so many turns, in nanoseconds, with a pause of so many microseconds before each.
 * orc is open, read and close; cat is what cat(1) does; pread reads an open file at offset 0. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char text[131072];

static void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static long now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000L + time.tv_nsec;
}

static int compare(const void *one, const void *other)
{
    long a = *(const long *)one, b = *(const long *)other;

    return (a > b) - (a < b);
}

static void open_read_close(const char *file, int as_cat)
{
    struct stat status;
    int descriptor = open(file, O_RDONLY);

    check(descriptor >= 0, "open");
    if (as_cat) {
        check(fstat(descriptor, &status) == 0, "fstat");
        while (read(descriptor, text, sizeof text) > 0)
            ;
    } else {
        check(read(descriptor, text, 4096) > 0, "read");
    }
    close(descriptor);
}

int main(int argc, char **argv)
{
    check(argc == 5, "usage");
    int as_cat = !strcmp(argv[1], "cat"), count = atoi(argv[2]), pause = atoi(argv[3]);
    int descriptor = strcmp(argv[1], "pread") ? -1 : open(argv[4], O_RDONLY);
    long *taken = calloc(count, sizeof *taken);

    for (int turn = 0; turn < count; turn++) {
        if (pause)
            usleep(pause);
        long before = now();
        if (descriptor >= 0)
            check(pread(descriptor, text, 4096, 0) > 0, "pread");
        else
            open_read_close(argv[4], as_cat);
        taken[turn] = now() - before;
    }
    qsort(taken, count, sizeof *taken, compare);
    printf("%ld %ld\n", taken[count / 2], taken[count * 99L / 100]);
    return 0;
}
