/* The functions of statsfs.h, for Python to call; a C++ program as well. */
#include <statsfs.h>

#ifdef __cplusplus
extern "C" {
#endif

struct statsfs_segment *publish(const char *path, const struct statsfs_value *values, unsigned n,
				const struct statsfs_options *options)
{
	return options ? statsfs_publish_with(path, values, n, options)
		       : statsfs_publish(path, values, n);
}

void observe(struct statsfs_segment *segment, unsigned index, uint64_t observed)
{
	statsfs_observe(segment, index, observed);
}

void end(struct statsfs_segment *segment)
{
	statsfs_close(segment);
}

const char *error(void)
{
	return statsfs_error();
}

#ifdef __cplusplus
}
#endif
