// A kernel module whose start takes a known time: it computes for so many milliseconds of the guest's clock, and says how long.

#include <linux/ktime.h>
#include <linux/module.h>

static unsigned int ms;
module_param(ms, uint, 0);

// A function of its own, which no compiler copies or takes apart.
static __attribute__((noipa)) unsigned int spin(unsigned int rounds)
{
	volatile unsigned int sum = 0;
	unsigned int round;

	for (round = 0; round < rounds; round++)
		sum += round;
	return sum;
}

static int __init spinner_init(void)
{
	u64 start = ktime_get_ns();

	while (ktime_get_ns() - start < ms * 1000000ULL)
		spin(20000);
	pr_info("spinner: %llu ns\n", ktime_get_ns() - start);
	return 0;
}

static void __exit spinner_exit(void)
{
}

module_init(spinner_init);
module_exit(spinner_exit);
MODULE_DESCRIPTION("A start of known length");
MODULE_LICENSE("GPL");
