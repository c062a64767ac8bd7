/*
 * A producer in C, with no library: it publishes a segment and counts in it until it is ended.
 *
 *     cc -o counter examples/counter.c
 *     ./counter /run/statsfs app/ticker        the directory, and the path in the tree
 *     ./counter /run/statsfs app/ticker 1000   the same, for so many ticks
 *
 * The whole file is one structure: KVM's binary statistics (the kernel's api.rst, 4.133), then what
 * that format cannot say as JSON, then the integers, which are counted in place.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define NAME_SIZE 48 /* of the path and of each name, with the NUL */
#define BUCKETS 32

enum { CUMULATIVE = 0, PEAK = 2, LOG_HIST = 4, SECONDS = 2 << 4 };

struct descriptor {
	uint32_t flags; /* kind | unit | base: 10 is 0, 2 is 1 << 8 */
	int16_t exponent;
	uint16_t size;   /* how many integers */
	uint32_t offset; /* of the first one, in the data */
	uint32_t bucket_size;
	char name[NAME_SIZE];
};

struct data {
	uint64_t ticks;
	uint64_t late[BUCKETS], late_sum; /* buckets from 0, 1, 2, 4, 8, ... ns */
	uint64_t late_max;
};

/* The compiler leaves the gaps: the data is at a multiple of 64, and so is the end. */
struct segment {
	uint32_t flags, name_size, num_desc, id_offset, desc_offset, data_offset;
	char id[NAME_SIZE];
	struct descriptor descriptors[4];
	char magic[8];
	uint32_t json_size, zero;
	char json[512];
	_Alignas(64) struct data data;
};

static const struct segment template = {
	.name_size = NAME_SIZE,
	.num_desc = 4,
	.id_offset = offsetof(struct segment, id),
	.desc_offset = offsetof(struct segment, descriptors),
	.data_offset = offsetof(struct segment, data),
	.descriptors = {
		{ CUMULATIVE, 0, 1, offsetof(struct data, ticks), 0, "ticks" },
		{ LOG_HIST | SECONDS, -9, BUCKETS, offsetof(struct data, late), 0, "late" },
		{ CUMULATIVE | SECONDS, -9, 1, offsetof(struct data, late_sum), 0, "late.sum" },
		{ PEAK | SECONDS, -9, 1, offsetof(struct data, late_max), 0, "late_max" },
	},
	.magic = { 's', 't', 'a', 't', 's', 'f', 's', 1 },
	.json = "{\"id\":\"................\", \"values\": {"
		"\"ticks\": {\"description\": \"Ticks of the clock\"},"
		"\"late\": {\"description\": \"How late the ticks were\"},"
		"\"late.sum\": {\"mode\": 292}, \"late_max\": {\"mode\": 292}}}", /* 0444 */
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* Creates, fills, locks, maps, closes and renames, in this order. */
static struct data *publish(const char *directory, const char *path)
{
	char hidden[64], name[64];
	uint64_t random;
	struct segment segment = template, *mapped;
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	int fd;

	if (strlen(path) >= NAME_SIZE || getrandom(&random, sizeof(random), 0) < 0)
		die(path);
	strcpy(segment.id, path);
	segment.json_size = strlen(segment.json);
	snprintf(hidden, sizeof(hidden), ".counter-%016jx", (uintmax_t)random);
	snprintf(name, sizeof(name), "counter-%016jx.stats", (uintmax_t)random);
	memcpy(strchr(segment.json, '.'), name + strlen("counter-"), 16); /* known by it, moved or not */
	if (chdir(directory) < 0 ||
	    (fd = open(hidden, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600)) < 0)
		die(directory);
	/* Blocks for all of it: on a full disk a hole would kill us, by SIGBUS, when we count. */
	if (posix_fallocate(fd, 0, sizeof(segment)) != 0 ||
	    pwrite(fd, &segment, sizeof(segment), 0) != sizeof(segment)) {
		unlink(hidden);
		die("no room");
	}
	/* The lock says that we are alive. It belongs to what was opened: the mapping keeps it, and
	 * the kernel drops it when we end, however we end. Who may read could lock before us. */
	if (fcntl(fd, F_OFD_SETLK, &lock) < 0 || fchmod(fd, 0644) < 0)
		die("lock");
	mapped = mmap(NULL, sizeof(segment), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (mapped == MAP_FAILED)
		die("mmap");
	close(fd);
	/* A child that we fork would keep the lock, and count as us. */
	madvise(mapped, sizeof(segment), MADV_DONTFORK);
	if (rename(hidden, name) < 0)
		die(name);
	return &mapped->data;
}

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return fprintf(stderr, "usage: %s DIRECTORY PATH [TICKS]\n", argv[0]), 2;
	struct data *data = publish(argv[1], argv[2]);
	uint64_t last = argc > 3 ? strtoull(argv[3], NULL, 10) : UINT64_MAX;

	for (uint64_t due = now(); data->ticks < last; due += 1000000) {
		struct timespec at = { due / 1000000000, due % 1000000000 };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
		uint64_t late = now() - due;
		int bucket = late ? 64 - __builtin_clzll(late) : 0;

		data->ticks++;
		data->late[bucket < BUCKETS ? bucket : BUCKETS - 1]++;
		data->late_sum += late;
		if (late > data->late_max)
			data->late_max = late;
	}
	return 0;
}
