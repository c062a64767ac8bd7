/*
 * statsfs.h: publish counters of a C or C++ program, for the host's statsfs daemon to show.
 *
 *     enum { REQUESTS, LATENCY, VALUES };
 *     static const struct statsfs_value values[VALUES] = {
 *             [REQUESTS] = { .name = "requests", .description = "Requests answered" },
 *             [LATENCY] = { .name = "latency", .kind = STATSFS_LOG_HIST, .size = 40,
 *                           .unit = STATSFS_SECONDS, .exponent = -9 },
 *     };
 *     struct statsfs_segment *segment = statsfs_publish("app/worker-1", values, VALUES);
 *     if (!segment)
 *             return fprintf(stderr, "%s\n", statsfs_error()), 1;
 *     uint64_t *requests = segment->slots[REQUESTS];
 *
 *     ++*requests;                              // shared memory: no call, no lock
 *     statsfs_observe(segment, LATENCY, 1500);  // in the unit of the value
 *
 * The directory is where `python -c 'import statsfs; print(statsfs.get_include())'` says. The file
 * needs C99 or C++11, Linux, and nothing but libc; with gcc -std=c99 include it first, or define
 * _DEFAULT_SOURCE. What it writes is described in docs/segments.md, "The format, for producers in other
 * languages". All that ends in "_" is private.
 *
 * Threading: any thread may publish and close. A slot has one writer: give each thread a segment of
 * its own, or add with __atomic_fetch_add.
 *
 * A segment lives until it is closed or the process ends, however it ends. A child of fork() counts
 * in private memory, starting at 0, which nobody sees: it publishes for itself.
 */
#ifndef STATSFS_H
#define STATSFS_H

#if !defined _DEFAULT_SOURCE && !defined _GNU_SOURCE
#define _DEFAULT_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#error "include statsfs.h before other headers, or define _DEFAULT_SOURCE"
#endif

#ifndef STATSFS_HOST_DIRECTORY
#define STATSFS_HOST_DIRECTORY "/run/statsfs"
#endif

/* What an integer is converted to when it is read; it takes 64 bits, whatever it is. */
enum statsfs_type {
	STATSFS_U64, STATSFS_BOOL, STATSFS_U8, STATSFS_U16, STATSFS_U32,
	STATSFS_S8, STATSFS_S16, STATSFS_S32, STATSFS_S64
};

/* A histogram has a sum behind its buckets, which `statsfs_observe` counts as well. */
enum statsfs_kind {
	STATSFS_CUMULATIVE, /* only grows */
	STATSFS_INSTANT,    /* goes up and down */
	STATSFS_PEAK,       /* the largest seen */
	STATSFS_LINEAR_HIST, /* `size` buckets, each `bucket_size` wide; the last has no upper end */
	STATSFS_LOG_HIST,    /* `size` buckets, at most 65, from 0, 1, 2, 4, 8, ... */
	STATSFS_HIST         /* a bucket up to each of the bounds, and one above */
};

enum statsfs_unit {
	STATSFS_NO_UNIT, STATSFS_BYTES, STATSFS_SECONDS, STATSFS_CYCLES, STATSFS_BOOLEAN
};

/* The totals that the directories above show. */
enum statsfs_aggregate {
	STATSFS_SUM = 1, STATSFS_MIN = 2, STATSFS_MAX = 4, STATSFS_AVG = 8,
	STATSFS_COUNT_ZERO = 16, STATSFS_COUNT_NONZERO = 32,
	STATSFS_NO_AGGREGATE = 64
};

/* One value. Only the name must be given: what is 0 is the default. */
struct statsfs_value {
	const char *name;
	const char *description;  /* one line */
	enum statsfs_kind kind;
	enum statsfs_unit unit;
	int exponent;             /* it counts units of base to this power */
	int base;                 /* 10, the default, or 2 */
	enum statsfs_type type;
	unsigned aggregate;       /* any of enum statsfs_aggregate; by default SUM, or MAX of a PEAK */
	unsigned mode;            /* of its file; by default 0644, or 0444 of INSTANT */
	int hidden;               /* counted in the totals, but not shown */
	unsigned size;            /* of LINEAR_HIST and LOG_HIST: how many buckets */
	unsigned bucket_size;     /* of LINEAR_HIST */
	const uint64_t *bounds;   /* of HIST: growing numbers, which are in their buckets */
	unsigned n_bounds;
};

struct statsfs_options {
	const char *directory;     /* by default as publish() in Python: see docs/processes.md */
	const char *const *labels; /* for each name of the path a Prometheus label, or NULL */
	unsigned mode;             /* of the segment's file: who may read; by default 0644 */
	int optional;              /* count privately where the segment is refused; statsfs_error()
				      says why */
};

struct statsfs_segment {
	uint64_t **slots; /* by the index of a value: its integer, or its buckets and then their sum */
	const char *file; /* NULL if the memory is private: nobody sees what is counted */
	struct statsfs_value *values_; /* for statsfs_observe: kind, size and bounds */
	char *file_;
	char *memory_;
	size_t size_;
	struct statsfs_live_ *live_;
	struct statsfs_segment *next_;
};

/* Errors: errno, and a text of one line for each thread. */

static __thread char statsfs_error_[512];

/* Why the last call in this thread, from this source file, failed: one line. */
static inline const char *statsfs_error(void)
{
	return statsfs_error_;
}

__attribute__((format(printf, 2, 3)))
static inline int statsfs_fail_(int number, const char *format, ...)
{
	va_list arguments;
	unsigned char *at;

	va_start(arguments, format);
	vsnprintf(statsfs_error_, sizeof(statsfs_error_), format, arguments);
	va_end(arguments);
	/* Control characters of ASCII and Unicode. */
	for (at = (unsigned char *)statsfs_error_; *at; at++)
		if (*at < 0x20 || *at == 0x7f || (at[0] == 0xc2 && at[1] < 0xa0))
			memset(at, '?', *at == 0xc2 ? 2 : 1);
	errno = number;
	return -1;
}

/* The checks: those of the collector, which refuses the whole file. */

/* The number of bytes of the first character, or 0 if it is not one of UTF-8. */
static inline int statsfs_character_(const char *text)
{
	const unsigned char *at = (const unsigned char *)text;
	int size = at[0] < 0x80 ? 1 : at[0] < 0xc2 ? 0 : at[0] < 0xe0 ? 2 : at[0] < 0xf0 ? 3 : 4;
	int i;

	if (at[0] > 0xf4)
		return 0;
	for (i = 1; i < size; i++)
		if ((at[i] & 0xc0) != 0x80)
			return 0;
	/* Too long, a surrogate, or beyond U+10FFFF. */
	if ((at[0] == 0xe0 && at[1] < 0xa0) || (at[0] == 0xed && at[1] > 0x9f) ||
	    (at[0] == 0xf0 && at[1] < 0x90) || (at[0] == 0xf4 && at[1] > 0x8f))
		return 0;
	return size;
}

static inline int statsfs_check_name_(const char *path, const char *what, const char *name,
				      size_t size, size_t suffix)
{
	size_t i;
	int step;

	if (size < 1 || size + suffix > 255)
		return statsfs_fail_(EINVAL, "segment '%s': %s '%.40s' has %zu bytes, not 1 to %zu",
				     path, what, size ? name : "", size, 255 - suffix);
	if (name[0] == '.')
		return statsfs_fail_(EINVAL, "segment '%s': %s '%.*s' starts with \".\"", path, what,
				     (int)size, name);
	for (i = 0; i < size; i += (size_t)step) {
		unsigned char first = (unsigned char)name[i], second = (unsigned char)name[i + 1];

		step = statsfs_character_(name + i);
		if (!step)
			return statsfs_fail_(EINVAL, "segment '%s': %s is not valid UTF-8", path, what);
		if (first == '/' || first < 0x20 || first == 0x7f || (first == 0xc2 && second < 0xa0))
			return statsfs_fail_(EINVAL, "segment '%s': %s '%.*s' has a \"/\" or a control "
					     "character", path, what, (int)size, name);
	}
	return 0;
}

/* Prometheus would rewrite any other. */
static inline int statsfs_check_label_(const char *path, const char *label)
{
	size_t size = strlen(label);

	if (statsfs_check_name_(path, "a label", label, size, 0) < 0)
		return -1;
	if (strspn(label, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_0123456789") < size ||
	    (label[0] >= '0' && label[0] <= '9') || !strncmp(label, "__", 2) ||
	    !strcmp(label, "le"))
		return statsfs_fail_(EINVAL, "segment '%s': label '%.40s': Prometheus takes letters, "
				     "digits and \"_\" of ASCII, no digit in front, and not \"le\" "
				     "or \"__...\"", path, label);
	return 0;
}

static inline int statsfs_check_path_(const char *path, const char *const *labels)
{
	const char *name = path, *end;
	int i;

	if (!path)
		return statsfs_fail_(EINVAL, "a segment without a path");
	for (i = 0;; i++, name = end + 1) {
		end = name + strcspn(name, "/");
		if (i == 8)
			return statsfs_fail_(EINVAL, "segment '%s': a path of more than 8 names", path);
		if (statsfs_check_name_(path, "a name of the path", name, (size_t)(end - name),
					0) < 0)
			return -1;
		if (labels && labels[i] && statsfs_check_label_(path, labels[i]) < 0)
			return -1;
		if (!*end)
			return 0;
	}
}

static inline int statsfs_is_histogram_(const struct statsfs_value *value)
{
	return value->kind >= STATSFS_LINEAR_HIST;
}

static inline unsigned statsfs_size_(const struct statsfs_value *value)
{
	if (value->kind == STATSFS_HIST)
		return value->n_bounds + 1;
	return statsfs_is_histogram_(value) ? value->size : 1;
}

static inline unsigned statsfs_aggregate_(const struct statsfs_value *value)
{
	if (value->aggregate)
		return value->aggregate & ~(unsigned)STATSFS_NO_AGGREGATE;
	return value->kind == STATSFS_PEAK ? STATSFS_MAX : STATSFS_SUM;
}

static inline unsigned statsfs_mode_(const struct statsfs_value *value)
{
	return value->mode ? value->mode : value->kind == STATSFS_INSTANT ? 0444 : 0644;
}

static inline const char *statsfs_find_fault_(const struct statsfs_value *value)
{
	const char *text = value->description ? value->description : "";
	unsigned aggregate = statsfs_aggregate_(value), mode = statsfs_mode_(value), i;
	int histogram = statsfs_is_histogram_(value), linear = value->kind == STATSFS_LINEAR_HIST;
	/* That of the sum is "Sum of NAME: " and that of the histogram. */
	size_t more = histogram ? strlen("Sum of : ") + strlen(value->name) : 0;

	if ((unsigned)value->kind > STATSFS_HIST || (unsigned)value->unit > STATSFS_BOOLEAN ||
	    (unsigned)value->type > STATSFS_S64)
		return "unknown kind, unit or type";
	if (value->aggregate > STATSFS_NO_AGGREGATE)
		return "unknown aggregate";
	if ((value->base && value->base != 2 && value->base != 10) ||
	    value->exponent < INT16_MIN || value->exponent > INT16_MAX)
		return "base is not 10 or 2, or exponent does not fit 16 bits";
	if (mode & ~0666u || (value->kind == STATSFS_INSTANT && mode & 0222))
		return "mode is not of read and write bits, or has a write bit and kind INSTANT";
	if (strlen(text) + more > 4096)
		return "a description of more than 4096 bytes";
	while (*text && statsfs_character_(text))
		text += statsfs_character_(text);
	if (*text)
		return "description is not valid UTF-8";
	if (!histogram)
		return value->size > 1 ? "only histograms have a size" : NULL;
	if (aggregate & ~(unsigned)STATSFS_SUM || value->type == STATSFS_BOOL)
		return "a histogram has counts, and no aggregate but SUM";
	if (linear ? value->bucket_size < 1 : value->bucket_size > 0)
		return "bucket_size is the width of the buckets of LINEAR_HIST, and only of these";
	if (value->kind == STATSFS_HIST) {
		if (!value->bounds || value->n_bounds < 1 || value->n_bounds > 1024)
			return "n_bounds is not 1 to 1024";
		for (i = 1; i < value->n_bounds; i++)
			if (value->bounds[i - 1] >= value->bounds[i])
				return "bounds do not grow";
	} else if (value->size < 1 || value->size > (linear ? 65535u : 65u))
		return linear ? "size is not 1 to 65535" : "size is not 1 to 65";
	return NULL;
}

static inline int statsfs_check_values_(const char *path, const struct statsfs_value *values,
					unsigned n)
{
	const char *fault;
	unsigned i;

	for (i = 0; i < n; i++) {
		const struct statsfs_value *value = &values[i];
		unsigned aggregate;
		size_t suffix = 0;

		if (!value->name)
			return statsfs_fail_(EINVAL, "segment '%s': value %u has no name", path, i);
		/* The longest of the files: the sum of a histogram, or an aggregate. */
		aggregate = statsfs_aggregate_(value);
		if (statsfs_is_histogram_(value))
			suffix = strlen(".sum");
		else if (aggregate & (aggregate - 1))
			suffix = strlen(aggregate & STATSFS_COUNT_NONZERO ? ".count_nonzero" :
					aggregate & STATSFS_COUNT_ZERO ? ".count_zero" : ".sum");
		if (statsfs_check_name_(path, "a value's name", value->name, strlen(value->name),
					suffix) < 0)
			return -1;
		fault = statsfs_find_fault_(value);
		if (fault)
			return statsfs_fail_(EINVAL, "segment '%s': value '%s': %s", path, value->name,
					     fault);
	}
	return 0;
}

/* The file, in memory. */

struct statsfs_bytes_ {
	char *at;
	size_t size, room;
	int failed; /* no memory */
};

static inline void statsfs_put_(struct statsfs_bytes_ *bytes, const void *data, size_t size)
{
	if (bytes->size + size > bytes->room) {
		size_t room = 2 * (bytes->size + size);
		char *grown = (char *)realloc(bytes->at, room);

		if (!grown) {
			bytes->failed = 1;
			return;
		}
		bytes->at = grown;
		bytes->room = room;
	}
	if (data)
		memcpy(bytes->at + bytes->size, data, size);
	else
		memset(bytes->at + bytes->size, 0, size);
	bytes->size += size;
}

static inline void statsfs_say_(struct statsfs_bytes_ *bytes, const char *text)
{
	statsfs_put_(bytes, text, strlen(text));
}

static inline void statsfs_say_number_(struct statsfs_bytes_ *bytes, uint64_t number)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)number);
	statsfs_say_(bytes, text);
}

/* What is within the quotes of a string of JSON. */
static inline void statsfs_say_json_(struct statsfs_bytes_ *bytes, const char *text)
{
	static const char plain[] = "\b\f\n\r\t\"\\", named[] = "bfnrt\"\\";
	char escape[8];

	for (; *text; text++) {
		const char *found = strchr(plain, *text);

		if (found)
			snprintf(escape, sizeof(escape), "\\%c", named[found - plain]);
		else if ((unsigned char)*text < 0x20)
			snprintf(escape, sizeof(escape), "\\u%04x", (unsigned char)*text);
		else
			snprintf(escape, sizeof(escape), "%c", *text);
		statsfs_say_(bytes, escape);
	}
}

static inline void statsfs_describe_(struct statsfs_bytes_ *bytes, const struct statsfs_value *value,
				     int sum)
{
	static const char *const types[] = { "u64", "bool", "u8", "u16", "u32",
					     "s8", "s16", "s32", "s64" };
	static const char *const aggregates[] = { "sum", "min", "max", "avg", "count_zero",
						  "count_nonzero" };
	const char *text = value->description ? value->description : "";
	unsigned aggregate = statsfs_aggregate_(value), i, some = 0;

	statsfs_say_(bytes, "\"");
	statsfs_say_json_(bytes, value->name);
	statsfs_say_(bytes, sum ? ".sum\":{\"type\":\"" : "\":{\"type\":\"");
	statsfs_say_(bytes, sum ? "u64" : types[value->type]);
	statsfs_say_(bytes, "\",\"aggregate\":[");
	for (i = 0; i < 6; i++)
		if (aggregate & 1u << i) {
			statsfs_say_(bytes, some++ ? ",\"" : "\"");
			statsfs_say_(bytes, aggregates[i]);
			statsfs_say_(bytes, "\"");
		}
	statsfs_say_(bytes, "],\"mode\":");
	statsfs_say_number_(bytes, statsfs_mode_(value) & (sum ? 0444 : 0666));
	statsfs_say_(bytes, ",\"description\":\"");
	if (sum) {
		statsfs_say_(bytes, "Sum of ");
		statsfs_say_json_(bytes, value->name);
		statsfs_say_(bytes, *text ? ": " : "");
	}
	statsfs_say_json_(bytes, text);
	statsfs_say_(bytes, value->hidden ? "\",\"hidden\":true" : "\"");
	if (value->kind == STATSFS_HIST && !sum) {
		for (i = 0; i < value->n_bounds; i++) {
			statsfs_say_(bytes, i ? "," : ",\"bounds\":[");
			statsfs_say_number_(bytes, value->bounds[i]);
		}
		statsfs_say_(bytes, "]");
	}
	statsfs_say_(bytes, "}");
}

static inline void statsfs_say_labels_(struct statsfs_bytes_ *bytes, const char *path,
				       const char *const *labels)
{
	statsfs_say_(bytes, ",\"labels\":[");
	for (; path; path = strchr(path + 1, '/'), labels++) {
		statsfs_say_(bytes, *path == '/' ? "," : "");
		statsfs_say_(bytes, *labels ? "\"" : "null");
		statsfs_say_json_(bytes, *labels ? *labels : "");
		statsfs_say_(bytes, *labels ? "\"" : "");
	}
	statsfs_say_(bytes, "]");
}

static inline void statsfs_put_descriptor_(struct statsfs_bytes_ *bytes,
					   const struct statsfs_value *value, int sum,
					   uint32_t offset, size_t name_size)
{
	int plain = sum || value->kind == STATSFS_HIST;
	uint32_t flags = (plain ? 0 : (uint32_t)value->kind) | (uint32_t)value->unit << 4 |
			 (value->base == 2 ? 0x100u : 0);
	int16_t exponent = (int16_t)value->exponent;
	uint16_t size = sum ? 1 : (uint16_t)statsfs_size_(value);
	uint32_t bucket_size = sum ? 0 : value->bucket_size;
	size_t end = bytes->size + 16 + name_size;

	statsfs_put_(bytes, &flags, 4);
	statsfs_put_(bytes, &exponent, 2);
	statsfs_put_(bytes, &size, 2);
	statsfs_put_(bytes, &offset, 4);
	statsfs_put_(bytes, &bucket_size, 4);
	statsfs_say_(bytes, value->name);
	statsfs_say_(bytes, sum ? ".sum" : "");
	if (!bytes->failed)
		statsfs_put_(bytes, NULL, end - bytes->size);
}

/* Makes the whole file; returns where its data is, or 0. */
static inline size_t statsfs_encode_(struct statsfs_bytes_ *bytes, const char *path,
				     const struct statsfs_value *values, unsigned n,
				     const char *const *labels, const char *id)
{
	struct statsfs_bytes_ json = { NULL, 0, 0, 0 };
	size_t longest = strlen(path), length, name_size, data_size = 0, data_offset;
	uint32_t count = 0, header[6], lengths[2];
	unsigned i, j;
	int sum, failed;

	for (i = 0; i < n; i++) {
		length = strlen(values[i].name) + (statsfs_is_histogram_(&values[i]) ? 4 : 0);
		longest = length > longest ? length : longest;
		count += statsfs_is_histogram_(&values[i]) ? 2u : 1u;
	}
	if (count < 1 || count > 4096) {
		statsfs_fail_(EINVAL, "segment '%s': %u values, not 1 to 4096", path, count);
		return 0;
	}
	name_size = longest < 48 ? 48 : (longest / 8 + 1) * 8;

	statsfs_say_(&json, "{\"id\":\"");
	statsfs_say_(&json, id);
	statsfs_say_(&json, "\",\"values\":{");
	for (i = 0; i < n; i++)
		for (sum = 0; sum <= statsfs_is_histogram_(&values[i]); sum++) {
			statsfs_say_(&json, i || sum ? "," : "");
			statsfs_describe_(&json, &values[i], sum);
		}
	statsfs_say_(&json, "}");
	if (labels)
		statsfs_say_labels_(&json, path, labels);
	statsfs_say_(&json, "}");
	data_offset = (24 + name_size + count * (16 + name_size) + 16 + json.size + 63) / 64 * 64;

	header[0] = 0;
	header[1] = (uint32_t)name_size;
	header[2] = count;
	header[3] = 24;
	header[4] = (uint32_t)(24 + name_size);
	header[5] = (uint32_t)data_offset;
	statsfs_put_(bytes, header, sizeof(header));
	statsfs_say_(bytes, path);
	if (!bytes->failed)
		statsfs_put_(bytes, NULL, header[4] - bytes->size);
	for (i = 0; i < n; i++)
		for (sum = 0; sum <= statsfs_is_histogram_(&values[i]); sum++) {
			statsfs_put_descriptor_(bytes, &values[i], sum, (uint32_t)data_size, name_size);
			data_size += 8 * (size_t)(sum ? 1 : statsfs_size_(&values[i]));
		}
	lengths[0] = (uint32_t)json.size;
	lengths[1] = 0;
	statsfs_put_(bytes, "statsfs\1", 8);
	statsfs_put_(bytes, lengths, sizeof(lengths));
	statsfs_put_(bytes, json.at, json.size);
	failed = bytes->failed || json.failed;
	free(json.at);
	data_size = (data_size + 63) / 64 * 64;
	if (!failed && data_offset + data_size > 1 << 20) {
		statsfs_fail_(EINVAL, "segment '%s': %zu bytes, not at most 1048576", path,
			      data_offset + data_size);
		return 0;
	}
	if (!failed) {
		statsfs_put_(bytes, NULL, data_offset + data_size - bytes->size);
		failed = bytes->failed;
	}
	if (failed) {
		statsfs_fail_(ENOMEM, "segment '%s': no memory", path);
		return 0;
	}
	for (i = 0; i < count; i++)
		for (j = 0; j < i; j++) {
			const char *names = bytes->at + header[4] + 16;
			const char *one = names + i * (16 + name_size);

			if (!strcmp(one, names + j * (16 + name_size))) {
				statsfs_fail_(EINVAL, "segment '%s': two values '%s'", path, one);
				return 0;
			}
		}
	return data_offset;
}

/* The directory. */

static inline int statsfs_may_publish_(const char *directory)
{
	struct stat status;

	return !stat(directory, &status) && S_ISDIR(status.st_mode) &&
	       !faccessat(AT_FDCWD, directory, W_OK | X_OK, AT_EACCESS);
}

static inline int statsfs_find_directory_(char *found, size_t size)
{
	const char *named = getenv("STATSFS_DIR"), *runtime = getenv("XDG_RUNTIME_DIR");
	struct passwd entry, *user = NULL;
	char room[4096];

	if (named && *named)
		return snprintf(found, size, "%s", named);
	snprintf(found, size, "%s", STATSFS_HOST_DIRECTORY);
	if (statsfs_may_publish_(found))
		return 0;
	if (!getpwuid_r(geteuid(), &entry, room, sizeof(room), &user) && user) {
		snprintf(found, size, "%s/%s", STATSFS_HOST_DIRECTORY, user->pw_name);
		if (statsfs_may_publish_(found))
			return 0;
	}
	if (!runtime || !*runtime)
		return statsfs_fail_(ENOENT, "no directory for segments: " STATSFS_HOST_DIRECTORY
				     " is missing, or not writable; make "
				     STATSFS_HOST_DIRECTORY ", or name one in STATSFS_DIR");
	snprintf(found, size, "%s/statsfs", runtime);
	if (mkdir(found, 0700) < 0 && errno != EEXIST)
		return statsfs_fail_(errno, "cannot make %s: %s", found, strerror(errno));
	return 0;
}

static inline int statsfs_check_directory_(int fd, const char *directory, const char *path)
{
	const char *host = STATSFS_HOST_DIRECTORY "/", *name = directory + strlen(host);
	struct stat status;
	size_t size;

	if (!strncmp(directory, host, strlen(host)) && *name && !strchr(name, '/')) {
		size = strlen(name);
		if (strncmp(path, name, size) != 0 || path[size] != '/')
			return statsfs_fail_(EINVAL, "segment '%s': paths in %s begin with %s/", path,
					     directory, name);
	}
	if (fstat(fd, &status) < 0)
		return statsfs_fail_(errno, "segment '%s' in %s: %s", path, directory,
				     strerror(errno));
	if (status.st_mode & 022)
		return statsfs_fail_(EPERM, "segment '%s': others than its owner may write %s: "
				     "chmod go-w %s", path, directory, directory);
	return 0;
}

/* Life and death. */

/* The living segments of this source file. A fork waits until one is whole, and in the list. */
struct statsfs_live_ {
	pthread_mutex_t mutex;
	struct statsfs_segment *first;
	int watching; /* whether forks are noticed */
};
static struct statsfs_live_ statsfs_live_ = { PTHREAD_MUTEX_INITIALIZER, NULL, 0 };

static inline void statsfs_before_fork_(void)
{
	pthread_mutex_lock(&statsfs_live_.mutex);
}

static inline void statsfs_after_fork_(void)
{
	pthread_mutex_unlock(&statsfs_live_.mutex);
}

/* The parent's memory would keep the parent's lock, and count what the child does as the parent's.
 * MADV_DONTFORK would leave a hole, where the child dies, or counts in what is mapped there next;
 * MADV_WIPEONFORK is for private memory. */
static inline void statsfs_disown_(void)
{
	struct statsfs_segment *one;

	for (one = statsfs_live_.first; one; one = one->next_) {
		one->file = NULL;
		if (mmap(one->memory_, one->size_, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
			abort(); /* rather than counting as the parent */
	}
	statsfs_live_.first = NULL;
	statsfs_after_fork_();
}

/* Creates, fills, locks, maps, closes and renames, in this order: docs/segments.md says why. */
static inline char *statsfs_create_(int directory, const char *name, const char *hidden,
				    const struct statsfs_bytes_ *bytes, unsigned mode)
{
	struct flock lock;
	char *memory = (char *)MAP_FAILED;
	size_t done = 0;
	ssize_t some = 0;
	int number, fd = openat(directory, hidden, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	if (fd < 0)
		return NULL;
	memset(&lock, 0, sizeof(lock));
	lock.l_type = F_WRLCK;
	lock.l_whence = SEEK_SET;
	/* On a full disk a hole would end the process, by SIGBUS, when it counts. */
	number = posix_fallocate(fd, 0, (off_t)bytes->size);
	while (!number && done < bytes->size) {
		some = pwrite(fd, bytes->at + done, bytes->size - done, (off_t)done);
		if (some < 0)
			number = errno;
		else
			done += (size_t)some;
	}
	/* 37 is F_OFD_SETLK, which glibc has only with _GNU_SOURCE. Who may read could lock first. */
	if (!number && (fcntl(fd, 37, &lock) < 0 || fchmod(fd, mode) < 0))
		number = errno;
	if (!number) {
		memory = (char *)mmap(NULL, bytes->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		if (memory == MAP_FAILED || renameat(directory, hidden, directory, name) < 0)
			number = errno;
	}
	close(fd);
	if (!number)
		return memory;
	if (memory != MAP_FAILED)
		munmap(memory, bytes->size);
	unlinkat(directory, hidden, 0);
	errno = number;
	return NULL;
}

static inline int statsfs_publish_in_(struct statsfs_segment *segment, const char *where,
				      const char *path, const char *id,
				      const struct statsfs_bytes_ *bytes, unsigned mode)
{
	char directory[4096], hidden[160], *name = hidden + 1, *at = name;
	const char *text = path;
	int fd, step, shown;

	/* Absolute, for `statsfs_close`, and without a "/" at the end. */
	if (*where == '/' || !getcwd(directory, sizeof(directory)))
		*directory = 0;
	shown = snprintf(directory + strlen(directory), sizeof(directory) - strlen(directory), "%s%s",
			 *where == '/' ? "" : "/", where);
	if (shown < 0 || (size_t)shown >= sizeof(directory) - 200)
		return statsfs_fail_(ENAMETOOLONG, "segment '%s': the directory's name is too long",
				     path);
	while (strlen(directory) > 1 && directory[strlen(directory) - 1] == '/')
		directory[strlen(directory) - 1] = 0;

	/* A character, and not a byte, that a file's name should not have is a "_". */
	*hidden = '.';
	for (; *text && at < name + 100; text += step, at++) {
		step = statsfs_character_(text);
		*at = strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-", *text)
		      ? *text : '_';
	}
	snprintf(at, 32, "-%s", id);

	fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0 && errno == ENOENT)
		return statsfs_fail_(ENOENT, "segment '%s': no directory %s: make it", path, directory);
	if (fd < 0)
		return statsfs_fail_(errno, "segment '%s' in %s: %s", path, directory, strerror(errno));
	segment->file_ = (char *)malloc(strlen(directory) + 170);
	if (!segment->file_ || statsfs_check_directory_(fd, directory, path) < 0) {
		if (!segment->file_)
			statsfs_fail_(ENOMEM, "segment '%s': no memory", path);
		close(fd);
		return -1;
	}
	sprintf(segment->file_, "%s/%s.stats", directory, name);
	segment->memory_ = statsfs_create_(fd, segment->file_ + strlen(directory) + 1, hidden, bytes,
					   mode);
	close(fd);
	if (!segment->memory_)
		return statsfs_fail_(errno, "segment '%s' in %s: %s", path, directory, strerror(errno));
	segment->file = segment->file_;
	segment->next_ = statsfs_live_.first;
	statsfs_live_.first = segment;
	return 0;
}

/* End a segment, and free it: its slots are not to be used any more. The collector keeps what was
 * counted, and removes the file; it is removed here only where no collector has ever been. */
static inline void statsfs_close(struct statsfs_segment *segment)
{
	struct statsfs_segment **at;
	char *end;
	int up, collected = 0;

	if (!segment)
		return;
	pthread_mutex_lock(&segment->live_->mutex);
	for (at = &segment->live_->first; *at && *at != segment; at = &(*at)->next_)
		;
	if (*at)
		*at = segment->next_;
	/* In a forked child it is the parent's file. The collector reads subdirectories as well. */
	if (segment->file) {
		char *place = strdup(segment->file);

		for (up = 0; place && up < 2 && (end = strrchr(place, '/')); up++) {
			/* There is room for it: the name of the file is longer. */
			strcpy(end + 1, ".collector");
			collected |= !access(place, F_OK);
			*end = 0;
		}
		if (place && !collected)
			unlink(segment->file);
		free(place);
	}
	if (segment->memory_)
		munmap(segment->memory_, segment->size_);
	pthread_mutex_unlock(&segment->live_->mutex);
	free(segment->file_);
	free(segment->values_);
	free(segment->slots);
	free(segment);
}

/* Copies what `statsfs_observe` needs; returns whether there was memory. */
static inline int statsfs_copy_values_(struct statsfs_segment *segment,
				       const struct statsfs_value *values, unsigned n)
{
	size_t bounds = 0;
	uint64_t *copied;
	unsigned i;

	for (i = 0; i < n; i++)
		bounds += values[i].n_bounds;
	segment->slots = (uint64_t **)calloc(n + 1, sizeof(*segment->slots));
	segment->values_ = (struct statsfs_value *)calloc(1, n * sizeof(*values) + 8 * bounds + 8);
	if (!segment->slots || !segment->values_)
		return 0;
	copied = (uint64_t *)(segment->values_ + n);
	for (i = 0; i < n; i++) {
		segment->values_[i] = values[i];
		if (values[i].kind != STATSFS_HIST)
			continue;
		memcpy(copied, values[i].bounds, 8 * (size_t)values[i].n_bounds);
		segment->values_[i].bounds = copied;
		copied += values[i].n_bounds;
	}
	return 1;
}

static inline int statsfs_try_(struct statsfs_segment *segment, const char *path, const char *id,
			       const struct statsfs_bytes_ *bytes,
			       const struct statsfs_options *options)
{
	char found[4096];
	unsigned mode = options->mode ? options->mode : 0644;
	int done;

	if (mode & ~0644u || (mode & 0600) != 0600)
		return statsfs_fail_(EINVAL, "segment '%s': mode %#o, not 0600 and bits to read", path,
				     mode);
	if (!options->directory && statsfs_find_directory_(found, sizeof(found)) < 0)
		return -1;
	pthread_mutex_lock(&statsfs_live_.mutex);
	if (!statsfs_live_.watching)
		statsfs_live_.watching = !pthread_atfork(statsfs_before_fork_, statsfs_after_fork_,
							 statsfs_disown_);
	done = statsfs_live_.watching
	       ? statsfs_publish_in_(segment, options->directory ? options->directory : found, path,
				     id, bytes, mode)
	       : statsfs_fail_(ENOMEM, "segment '%s': no memory", path);
	pthread_mutex_unlock(&statsfs_live_.mutex);
	return done;
}

/* `statsfs_publish` with options. What is wrong with the values or with the path is an error, also
 * of an optional segment. */
static inline struct statsfs_segment *
statsfs_publish_with(const char *path, const struct statsfs_value *values, unsigned n,
		     const struct statsfs_options *options)
{
	struct statsfs_segment *segment;
	struct statsfs_bytes_ bytes = { NULL, 0, 0, 0 };
	size_t offset;
	uint64_t random;
	char id[17];
	void *memory;
	unsigned i;

	*statsfs_error_ = 0;
	if (statsfs_check_path_(path, options->labels) < 0 ||
	    statsfs_check_values_(path, values, n) < 0)
		return NULL;
	if (getrandom(&random, sizeof(random), 0) != sizeof(random)) {
		statsfs_fail_(errno, "segment '%s': %s", path, strerror(errno));
		return NULL;
	}
	snprintf(id, sizeof(id), "%016llx", (unsigned long long)random);
	offset = statsfs_encode_(&bytes, path, values, n, options->labels, id);
	segment = (struct statsfs_segment *)calloc(1, sizeof(*segment));
	if (!offset || !segment || !statsfs_copy_values_(segment, values, n)) {
		if (offset)
			statsfs_fail_(ENOMEM, "segment '%s': no memory", path);
		goto failed;
	}
	segment->live_ = &statsfs_live_;
	segment->size_ = bytes.size;
	if (statsfs_try_(segment, path, id, &bytes, options) < 0) {
		if (!options->optional)
			goto failed;
		memory = mmap(NULL, bytes.size, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (memory == MAP_FAILED)
			goto failed;
		segment->memory_ = (char *)memory;
	}
	free(bytes.at);
	for (i = 0; i < n; i++) {
		segment->slots[i] = (uint64_t *)(void *)(segment->memory_ + offset);
		offset += 8 * ((size_t)statsfs_size_(&values[i]) +
			       (statsfs_is_histogram_(&values[i]) ? 1 : 0));
	}
	return segment;

failed:
	free(bytes.at);
	if (segment) {
		free(segment->file_);
		free(segment->values_);
		free(segment->slots);
	}
	free(segment);
	return NULL;
}

/* Publish n values of this process under a path, 1 to 8 names joined by "/"; they start at 0.
 * NULL where that is refused: `errno` and `statsfs_error()` say why. */
static inline struct statsfs_segment *
statsfs_publish(const char *path, const struct statsfs_value *values, unsigned n)
{
	static const struct statsfs_options none = { NULL, NULL, 0, 0 };

	return statsfs_publish_with(path, values, n, &none);
}

/* Count an observation in a histogram, and add it to the sum. */
static inline void statsfs_observe(struct statsfs_segment *segment, unsigned index,
				   uint64_t observed)
{
	const struct statsfs_value *value = &segment->values_[index];
	uint64_t *buckets = segment->slots[index];
	unsigned size = statsfs_size_(value), low = 0, high;
	uint64_t bucket = 0;

	if (value->kind == STATSFS_LOG_HIST)
		bucket = observed ? 64 - (unsigned)__builtin_clzll(observed) : 0;
	else if (value->kind == STATSFS_LINEAR_HIST)
		bucket = observed / value->bucket_size;
	else {
		for (high = value->n_bounds; low < high;) {
			unsigned middle = (low + high) / 2;

			if (value->bounds[middle] < observed)
				low = middle + 1;
			else
				high = middle;
		}
		bucket = low;
	}
	buckets[bucket < size ? bucket : size - 1]++;
	buckets[size] += observed;
}

#endif
