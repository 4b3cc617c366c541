static inline __attribute__((always_inline)) int leaf(int value)
{
	value = value * 3 + 1;
	__asm__ volatile("" : "+r"(value));
	return value;
}

static inline __attribute__((always_inline)) int middle(int value)
{
	if (value & 1)
		value = leaf(value) ^ 5;
	return leaf(value + 2);
}
