/*
 * A producer in C: it publishes a segment and counts in it until it is ended.
 *
 *     cc -I "$(python -c 'import statsfs; print(statsfs.get_include())')" -o counter counter.c
 *     ./counter /run/statsfs app/ticker        the directory, and the path in the tree
 *     ./counter /run/statsfs app/ticker 1000   the same, for so many ticks
 */
#define _DEFAULT_SOURCE
#include <statsfs.h>
#include <time.h>

enum { TICKS, LATE, LATE_MAX, VALUES };

static const struct statsfs_value values[VALUES] = {
	[TICKS] = { .name = "ticks", .description = "Ticks of the clock" },
	[LATE] = { .name = "late", .description = "How late the ticks were", .kind = STATSFS_LOG_HIST,
		   .size = 32, .unit = STATSFS_SECONDS, .exponent = -9 },
	[LATE_MAX] = { .name = "late_max", .kind = STATSFS_PEAK, .mode = 0444,
		       .unit = STATSFS_SECONDS, .exponent = -9 },
};

static uint64_t now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

int main(int argc, char **argv)
{
	struct statsfs_options options = { .directory = argc > 2 ? argv[1] : NULL };
	struct statsfs_segment *segment;

	if (argc < 3)
		return fprintf(stderr, "usage: %s DIRECTORY PATH [TICKS]\n", argv[0]), 2;
	if (!(segment = statsfs_publish_with(argv[2], values, VALUES, &options)))
		return fprintf(stderr, "%s\n", statsfs_error()), 1;
	uint64_t *ticks = segment->slots[TICKS], *late_max = segment->slots[LATE_MAX];

	for (uint64_t due = now(); argc < 4 || *ticks < strtoull(argv[3], NULL, 10); due += 1000000) {
		struct timespec at = { due / 1000000000, due % 1000000000 };

		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL);
		uint64_t late = now() - due;

		++*ticks;
		statsfs_observe(segment, LATE, late);
		if (late > *late_max)
			*late_max = late;
	}
	return 0;
}
